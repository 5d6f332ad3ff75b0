"""The one protocol: a method turns poses into influences on a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from posegen.backbones.base import BACKBONE_PLACES, Backbone, Injection, Step
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.poses.drawing import PoseDrawing

STRIPS = "FID of four-panel strips"  # HumanSD's FID, of four pictures in one, which no protocol repeats
HUMANSD_FIGURE = "results figure of IDEA-Research/HumanSD's README, its own evaluation"
StateValue: TypeAlias = Tensor | tuple[Tensor, ...]


class Published(NamedTuple):
    """A published number of a method."""

    data: str  # the data set, by its authors' name
    metric: str  # as the source calls it (``AP``, ``CAP``, ``PCE``, ``FID``, ``KID``, ``CLIP``)
    value: float  # in percent where the source gives percent, KID times 100
    source: str
    read: bool = True  # False for a number from memory; tables leave those out

    @classmethod
    def of(cls, data: str, source: str, **values: float) -> tuple[Published, ...]:
        """The numbers of one source on one data set, by metric."""
        return tuple(cls(data, metric, value, source) for metric, value in values.items())

    @property
    def column(self) -> str:
        """The column of a protocol that repeats the source's computation; the programs call the papers' CAP SAP."""
        return f"paper_{'SAP' if self.metric == 'CAP' else self.metric}"


@dataclass(frozen=True)
class Paper:
    """Where a method comes from, and the numbers that are published about it (plain tuples will do)."""

    title: str
    id: str
    code: str = ""
    licence: str = ""
    published: Sequence[Published | tuple[str, str, float, str]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "published", tuple(Published(*row) for row in self.published))


@dataclass(frozen=True, eq=False)
class State:
    """Everything a method derived from a batch, once per image; every tensor has the batch as its first dimension."""

    text: Text
    null_text: Text  # the negative (in training: empty) prompts
    conditions: Mapping[str, StateValue] = field(default_factory=dict)  # tensors by name, or tuples of them

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, name: str) -> Tensor:
        """A condition that is one tensor."""
        value = self.conditions[name]
        assert isinstance(value, Tensor), name
        return value

    def all(self, name: str) -> tuple[Tensor, ...]:
        """A condition that is a tuple of tensors."""
        value = self.conditions[name]
        assert isinstance(value, tuple), name
        return value

    def rows(self, rows: slice | Tensor) -> State:
        """The state of some images."""
        conditions = {name: _combined(lambda value: value[rows], value) for name, value in self.conditions.items()}
        return State(self.text[rows], self.null_text[rows], conditions)

    def without_text(self) -> State:
        return replace(self, text=self.null_text)

    def keep_text(self, keep: Tensor) -> State:
        """The prompts where ``keep [B]`` is true, the null prompt elsewhere."""
        return replace(self, text=self.text.keep(keep, self.null_text))

    def having(self, **conditions: StateValue) -> State:
        """The same state with some conditions added or replaced."""
        return replace(self, conditions={**self.conditions, **conditions})

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """One state for several branches of guidance, so that they run as one batch."""
        parts = {name: [s.conditions[name] for s in states] for name in states[0].conditions}
        joined = {name: _combined(lambda *tensors: torch.cat(tensors), *values) for name, values in parts.items()}
        return State(Text.cat([s.text for s in states]), Text.cat([s.null_text for s in states]), joined)


def _combined(combine: Callable[..., Tensor], *values: StateValue) -> StateValue:
    """The tensors of conditions of the same form, combined one by one."""
    if isinstance(values[0], Tensor):
        return combine(*values)
    return tuple(combine(*parts) for parts in zip(*values, strict=True))


class Adapter(nn.Module, ABC):
    """A pose-guidance method: one file with a subclass and one yaml with its ``_target_``; nothing else is edited.

    Override the methods that differ. The rest is shared by all methods, which makes the comparison fair.

    Example::

        class Mine(Adapter):
            needs = frozenset({"hint"})
            places = frozenset({"mid"})
            paper = Paper("My method", "arXiv:0000.00000")

            def attach(self, backbone):
                super().attach(backbone)
                self.net = nn.Conv2d(3, backbone.geometry.channels[-1], 1)

            def encode(self, batch):
                return self.text_state(batch).having(pose=self.net(batch.hint))

            def inject(self, state, latents, timesteps):
                return Injection(mid=...)

    The facts of the class are read before anything is built. Facts that depend on settings are properties of the
    instance: `reads`, `trains`, `left_out`, `remark`, and the last three attributes.
    """

    needs: ClassVar[frozenset[str]]  # fields of `PoseBatch` that `encode` reads besides the text (``hint``, ...)
    places: ClassVar[frozenset[str]] = frozenset()  # where it influences the backbone, some of `BACKBONE_PLACES`
    paper: ClassVar[Paper]
    sample: ClassVar[Literal["image", "pose"]] = "image"
    population: ClassVar[Literal["train", "test"]] = "train"  # whose samples ``needs`` means by ``population``
    trainable: ClassVar[bool] = True  # False where there is nothing to train
    ranked: ClassVar[bool] = True  # False for reference rows, which bound the methods and compete with none
    divisible: ClassVar[bool] = False  # it trains the whole U-Net and nothing else, which trainer=fsdp can divide
    starts_neutral: ClassVar[bool] = True  # before training the backbone's predictions are unchanged
    beside: ClassVar[Mapping[str, str]] = {}  # beginnings of the keys of official files that are left out -> why
    #: settings that are attributes, not arguments
    declared: ClassVar[tuple[str, ...]] = ("faithful", "recipes", "init", "official")
    checkable: ClassVar[bool] = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    hint: PoseDrawing | None = None  # how poses are drawn for this method, None where it reads no drawing
    faithful: bool = False  # official quirks are reproduced rather than corrected
    #: what its weights start from (method folder, official file or files, ``hub:...``), or that by the name of a part
    init: str | Sequence[str] | Mapping[str, Any] | None = None
    recipes: Mapping[str, Mapping[str, float]] = {}  # name of a recipe -> optimiser settings, see `Backbone.recipe`

    @property
    def reads(self) -> frozenset[str]:
        """The fields of a batch that `encode` reads with these settings."""
        return self.needs

    @property
    def trains(self) -> bool:
        """Whether the method trains anything with these settings."""
        return self.trainable

    @property
    def left_out(self) -> Mapping[str, str]:
        """Beginnings of the keys of official files that `convert` leaves out with these settings -> why."""
        return self.beside

    @property
    def remark(self) -> str:
        """A note below the table; final once the images are generated."""
        return ""

    @property
    def backbone(self) -> Backbone:
        """The backbone that `attach` was given; not a sub-module, because its weights are not the adapter's."""
        if "_backbone" not in self.__dict__:
            raise RuntimeError(f"{type(self).__name__} has no backbone yet; call attach(backbone) first")
        return self.__dict__["_backbone"]

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.backbone.network.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(chain(self.parameters(), self.backbone.network.parameters())).dtype

    @classmethod
    def unserved(cls, backbone: type[Backbone]) -> str | None:
        """Why the method cannot work on a class of backbones; None where it can."""
        return missing_places(cls.__name__, cls.places, backbone)

    def attach(self, backbone: Backbone) -> None:
        """Builds the method's modules from ``backbone.geometry`` and decides which weights train.

        The default freezes the backbone.
        Raises UserError: the backbone lacks a place that the method needs."""
        if sentence := missing_places(
            type(self).__name__, self.places, type(backbone)
        ):  # `Composite` has its parts' places
            raise UserError(sentence)
        self.__dict__["_backbone"] = backbone
        backbone.requires_grad_(False)
        backbone.eval()

    @abstractmethod
    def encode(self, batch: PoseBatch) -> State:
        """Everything that is computed once per image."""

    @abstractmethod
    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        """The influence on one pass of the backbone at ``timesteps [B]``; called every step."""

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """(weight, state) pairs; guidance sums their predictions. Default: classifier-free guidance on the text."""
        return [(1.0, state)] if guidance == 1.0 else [(guidance, state), (1.0 - guidance, state.without_text())]

    def drop(self, state: State, keep: Tensor) -> State:
        """The state of a training step without the conditions where ``keep [B]`` is false. Default: drops the text."""
        return state.keep_text(keep)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Named losses; ``loss`` is minimised, the others are logged. Default: mean squared error."""
        return {"loss": torch.nn.functional.mse_loss(step.prediction.float(), step.target.float())}

    def parameter_groups(self, recipe: Any) -> list[dict[str, Any]]:
        """Groups as torch's optimisers take them, of everything that trains here and in the backbone. Default: one.
        A group may change the run's optimiser settings, ``recipe`` (``lr``, ``weight_decay``, ...)."""
        return [{"params": [p for p in chain(self.parameters(), self.backbone.parameters()) if p.requires_grad]}]

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1]. Default: the shared sampler's; only reference rows differ."""
        return sampler(self, batch)

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict to ``{"adapter.<key>" or "backbone.<key>": tensor}``. Default: the keys as they are.
        Raises UnknownKeys: some keys have no place."""
        return dict(official)

    def text_state(self, batch: PoseBatch) -> State:
        """The part of the state that every method has: the batch's encoded prompts, or its prompts encoded here."""
        text = batch.text if batch.text is not None else self.backbone.encode_text(batch.prompts)
        null = batch.negative_text if batch.negative_text is not None else self.backbone.encode_text([""])
        null = null.to(text.tokens)
        null = null if len(null) == len(text) else null.expand(len(text))
        if batch.sizes is None:
            return State(text, null)
        sizes = batch.sizes.to(text.tokens.device)  # of the image, whatever the text
        return State(replace(text, sizes=sizes), replace(null, sizes=sizes))


def missing_places(method: str, places: frozenset[str], backbone: type[Backbone]) -> str | None:
    """What a sentence says of the ``places`` that a method needs and a class of backbones lacks."""
    if not (missing := sorted(places - backbone.places)):
        return None
    wanted = "; ".join(f"{p} ({BACKBONE_PLACES.get(p, 'a place of another backbone')})" for p in missing)
    has = f"{backbone.__name__} has {', '.join(sorted(backbone.places)) or 'no place'}"
    choose = "choose a backbone= that has it, such as mannequin or sd15, or another adapter="
    return f"{method} needs {wanted}, and {has}; {choose}"
