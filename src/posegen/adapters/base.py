"""The one protocol: a method turns poses into influences on a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from posegen.backbones.base import Backbone, Injection, Step
from posegen.data.base import PoseBatch
from posegen.poses.drawing import PoseDrawing


class Published(NamedTuple):
    """A number that somebody published about a method.

    Attributes:
        data: the data set, by the name that its authors gave it.
        metric: as the source calls it (``AP``, ``CAP``, ``PCE``, ``FID``, ``KID``, ``CLIP``); one that no protocol repeats under a name of its own, such as
            HumanSD's FID, which is that of strips of four pictures.
        value: in percent where the source gives percent, KID times 100.
        source: the table or figure.
        read: False for a number that is only remembered; tables leave those out.
    """

    data: str
    metric: str
    value: float
    source: str
    read: bool = True

    @property
    def column(self) -> str:
        """The column of a protocol that repeats the source's computation; what some papers call CAP is SAP in all programs."""
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


@dataclass(frozen=True)
class Official:
    """How the released program computes the same values at a higher cost; ``posegen profile compare=true`` measures this project against it.

    Attributes:
        settings: constructor arguments that choose the published form of the method's own layers.
        guidance: the branches of guidance run as one ``batched`` pass or as ``sequential`` ones.
        encodes_every_pass: the conditions are computed again in every pass of the sampler instead of once per image.
        decoder_gradients: training computes gradients of the frozen U-Net's decoder, which nobody uses.
        unfused_attention: attention holds the matrix of all weights instead of going through it in blocks.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    guidance: Literal["batched", "sequential"] = "batched"
    encodes_every_pass: bool = False
    decoder_gradients: bool = False
    unfused_attention: bool = True


@dataclass(frozen=True, eq=False)
class State:
    """Everything a method derived from a batch, once per image; every tensor has the batch as its first dimension.

    Attributes:
        text: ``[B, L, D]`` text states of the prompts.
        null_text: ``[B, L, D]`` text states of the negative (in training: empty) prompt.
        conditions: the method's own tensors by name.
    """

    text: Tensor
    null_text: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def without_text(self) -> State:
        return replace(self, text=self.null_text)

    def keep_text(self, keep: Tensor) -> State:
        """Text states where ``keep [B]`` is true, those of the null prompt elsewhere."""
        return replace(self, text=torch.where(keep.view(-1, 1, 1), self.text, self.null_text))

    def having(self, **conditions: Tensor) -> State:
        """The same state with some conditions replaced."""
        return replace(self, conditions={**self.conditions, **conditions})

    @staticmethod
    def cat(states: Sequence[State]) -> State:
        """One state for several branches of guidance, so that they run as one batch."""
        conditions = {name: torch.cat([s.conditions[name] for s in states]) for name in states[0].conditions}
        return State(torch.cat([s.text for s in states]), torch.cat([s.null_text for s in states]), conditions)


class Adapter(nn.Module, ABC):
    """A pose-guidance method. Override what the method does differently; the rest is shared by all methods and makes the comparison fair.

    A new method is one file with a subclass and one yaml with its ``_target_``; nothing else is edited.

    Example::

        class Mine(Adapter):
            needs = frozenset({"hint"})
            paper = Paper("My method", "arXiv:0000.00000")

            def attach(self, backbone):
                super().attach(backbone)
                self.net = nn.Conv2d(3, backbone.geometry.channels[-1], 1)

            def encode(self, batch):
                return self.text_state(batch).having(pose=self.net(batch.hint))

            def inject(self, state, latents, timesteps):
                return Injection(mid=...)

    Attributes:
        needs: fields of `PoseBatch` that `encode` reads besides the text (``hint``, ``images``, ``twins``, ``source``).
        sample: what the method generates.
        paper: where the method comes from.
        hint: how poses are drawn for this method, None where it reads no drawing.
        population: the split whose samples ``needs`` means by ``population``.
        trainable: False where there is nothing to train.
        ranked: False for reference rows, which bound the methods and compete with none.
        starts_neutral: the backbone's predictions are its own before training; False where a published method starts otherwise.
        official: what the released program does at a higher cost.
        beside: parts of official files that are left out, by key prefix, and why.
        faithful: official quirks are reproduced rather than corrected.
        remark: what a table must say about this row; known once it has generated.
    """

    needs: ClassVar[frozenset[str]]
    paper: ClassVar[Paper]
    sample: ClassVar[Literal["image", "pose"]] = "image"
    population: ClassVar[Literal["train", "test"]] = "train"
    trainable: ClassVar[bool] = True
    ranked: ClassVar[bool] = True
    starts_neutral: ClassVar[bool] = True
    official: ClassVar[Official] = Official()
    beside: ClassVar[Mapping[str, str]] = {}
    hint: PoseDrawing | None = None
    faithful: bool = False
    remark: str = ""

    def attach(self, backbone: Backbone) -> None:
        """Builds the method's modules from ``backbone.geometry``, operates on the U-Net where the method asks for it, and says who trains.

        The default keeps a reference (not a sub-module: the backbone's weights are not the adapter's) and freezes the backbone.
        """
        object.__setattr__(self, "backbone", backbone)
        backbone.requires_grad_(False)
        backbone.eval()

    @abstractmethod
    def encode(self, batch: PoseBatch) -> State:
        """Everything that is computed once per image."""

    @abstractmethod
    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        """The influence on one pass of the U-Net at ``timesteps [B]``; called every step."""

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """(weight, state) pairs; the guided prediction is the weighted sum of theirs. Default: classifier-free guidance on the text."""
        if guidance == 1.0:
            return [(1.0, state)]
        return [(guidance, state), (1.0 - guidance, state.without_text())]

    def drop(self, state: State, keep: Tensor) -> State:
        """The state with conditions removed where ``keep [B]`` is false, for training with dropped conditions. Default: drops the text."""
        return state.keep_text(keep)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Named losses; ``loss`` is minimised, the others are logged. Default: mean squared error."""
        return {"loss": torch.nn.functional.mse_loss(step.prediction.float(), step.target.float())}

    def generate(self, batch: PoseBatch, sampler: Callable[[Adapter, PoseBatch], Tensor]) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] for a batch. Default: what the shared sampler makes of `inject` and `branches`; only reference rows differ."""
        return sampler(self, batch)

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict to ``{"adapter.<key>" or "backbone.<key>": tensor}`` of this project; raises ValueError naming keys it cannot place.

        The default takes keys as they are, for weights of this project.
        """
        return dict(official)

    def text_state(self, batch: PoseBatch) -> State:
        """The part of the state that every method has: cached text states where the batch brings them, encoded prompts otherwise."""
        backbone: Backbone = self.backbone  # type: ignore[assignment]
        text = batch.text if batch.text is not None else backbone.encode_text(batch.prompts)
        null = batch.negative_text if batch.negative_text is not None else backbone.encode_text([""])
        return State(text, null.to(text).expand(len(text), -1, -1))
