"""Several methods at once: what each of them puts into the backbone adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from posegen.adapters.base import Adapter, Paper, State
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.ip_adapter import IPAdapter
from posegen.backbones.base import Backbone, Injection, Step
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import PoseDrawing
from posegen.ranges import NotNegative


class Composite(Adapter):
    """Named methods on one backbone, as a pipeline of diffusers has several ControlNets, or one and an IP-Adapter.

    Each part has its own state and sees the text alone; injections add. Guidance and dropping happen in all parts
    together; parts whose guidance has other weights cannot be joined. Where one part encodes prompts in a way of its
    own (SP-Ctrl), all see these. ``adapter.init.NAME=FOLDER`` starts a part from a method folder.

    Args:
        methods: by name; null: ``pose``, a ControlNet, and ``person``, an IP-Adapter.
        strengths: factor of a part's influence by name, 1 where there is none.
        frozen: names of the parts that do not train.
    """

    needs = ControlNet.needs | IPAdapter.needs
    places = ControlNet.places | IPAdapter.places
    starts_neutral = False
    paper = Paper("Several methods at once", "posegen")

    def __init__(
        self,
        methods: Mapping[str, Adapter] | None = None,
        strengths: Mapping[str, NotNegative] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        parts = {"pose": ControlNet(), "person": IPAdapter()} if methods is None else methods
        for key, names in (("strengths", strengths or {}), ("frozen", frozen)):
            if unknown := sorted(set(names) - parts.keys()):
                raise ValueError(f"adapter.{key} names {', '.join(unknown)}; the methods are {', '.join(parts)}")
        if other := [name for name, part in parts.items() if part.sample != "image" or not part.ranked]:
            raise ValueError(f"adapter.methods.{other[0]} is no method that influences the making of an image")
        self.methods: Any = nn.ModuleDict(dict(sorted(parts.items())))  # whatever the order in a file
        self.strengths, self.frozen = dict(strengths or {}), list(frozen)
        own = {
            "needs": frozenset().union(*(part.needs for part in parts.values())),
            "places": frozenset().union(*(part.places for part in parts.values())),
            "starts_neutral": all(part.starts_neutral for part in parts.values()),
            "hint": next((part.hint for part in self.methods.values() if part.hint is not None), None),
        }
        self.__dict__.update(own)  # facts of these parts, in the place of the class's
        if len(trained := self._own("loss")) > 1:
            several = f"{' and '.join(trained)} have losses of their own, which no run can minimise together"
            raise ValueError(f"adapter.methods: {several}; name all but one of them in adapter.frozen")

    def _own(self, method: str) -> list[str]:
        """The parts that train and override a method of `Adapter`."""
        default = getattr(Adapter, method)
        return [n for n, p in self.methods.items() if n not in self.frozen and getattr(type(p), method) is not default]

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(part.reads for part in self.methods.values()))

    @property
    def trains(self) -> bool:
        return any(part.trains for name, part in self.methods.items() if name not in self.frozen)

    @property
    def left_out(self) -> Mapping[str, str]:
        return {begin: why for part in self.methods.values() for begin, why in part.left_out.items()}

    @property
    def remark(self) -> str:
        return "; ".join(filter(None, (part.remark for part in self.methods.values())))

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        trained: list[nn.Parameter] = []
        for name, part in self.methods.items():
            part.faithful = part.faithful or self.faithful
            part.attach(backbone)  # which freezes the backbone anew
            own = [p for p in backbone.parameters() if p.requires_grad]
            if own and name in self.frozen:
                fix = "leave it out of adapter.frozen"
                raise UserError(f"adapter.frozen has {name}, which changes the backbone's weights as well; {fix}")
            trained += own
            if name in self.frozen:
                part.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    def encode(self, batch: PoseBatch) -> State:
        states = {name: part.encode(self._drawn(batch, part)) for name, part in self.methods.items()}
        given = None if batch.text is None else batch.text.tokens
        spoken = [state for state in states.values() if state.text.tokens is not given]
        return self._joined(states, spoken[0] if given is not None and spoken else None)

    def _drawn(self, batch: PoseBatch, part: Adapter) -> PoseBatch:
        """The batch with the poses as a part wants them drawn, where that is another way than the first part's."""
        if part.hint is None or repr(part.hint) == repr(self.hint) or batch.hint is None:
            return batch
        drawing: PoseDrawing = part.hint
        hints = [torch.from_numpy(drawing(people, batch.size)) for people in batch.keypoints]
        return replace(batch, hint=torch.stack(hints).to(batch.hint))

    def _joined(self, states: Mapping[str, State], text: State | None = None) -> State:
        """One state of the parts', with the text of ``text``, or of the first of them."""
        conditions = {f"{name}.{key}": v for name, state in states.items() for key, v in state.conditions.items()}
        return replace(text or next(iter(states.values())), conditions=conditions)

    def _states(self, state: State) -> dict[str, State]:
        """The state of each part."""
        found = {}
        for name in self.methods:
            begin = f"{name}."
            own = {k.removeprefix(begin): v for k, v in state.conditions.items() if k.startswith(begin)}
            found[name] = replace(state, conditions=own)
        return found

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        injections = []
        for name, own in self._states(state).items():
            made, strength = self.methods[name].inject(own, latents, timesteps), self.strengths.get(name, 1.0)
            injections.append(made if strength == 1 else made.scaled(strength))
        return reduce(add, injections)

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """The branches of all parts side by side; a UserError where they have other weights."""
        found = {name: self.methods[name].branches(own, guidance) for name, own in self._states(state).items()}
        weights = {name: [weight for weight, _ in branches] for name, branches in found.items()}
        first = next(iter(weights))
        if other := [name for name in weights if weights[name] != weights[first]]:
            guided = f"{first} and {other[0]} have guidance of different kinds"
            raise UserError(f"adapter.methods: {guided}; sample with sampler.guidance=1 or use one of them")
        rows = ({name: branches[i][1] for name, branches in found.items()} for i in range(len(weights[first])))
        return [(weight, self._joined(states)) for weight, states in zip(weights[first], rows, strict=True)]

    def drop(self, state: State, keep: Tensor) -> State:
        """Each part drops its own conditions; the text is dropped where one of them drops it."""
        states, text = self._states(state), state
        for name, own in states.items():
            states[name] = text = self.methods[name].drop(replace(own, text=text.text), keep)
        return self._joined(states, text)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """That of the one part that trains with a loss of its own; else the mean squared error."""
        for name in self._own("loss"):
            return self.methods[name].loss(step, self._states(state)[name], batch)
        return super().loss(step, state, batch)

    def parameter_groups(self, recipe: Any) -> list[dict[str, Any]]:
        """Those of all parts; each weight is in one group."""
        if random := [name for name in self.frozen if name not in (self.init or {})]:
            fix = f"set +adapter.init.{random[0]}=FOLDER, a cell or method folder of it"
            raise UserError(f"adapter.frozen has {random[0]}, whose weights would stay random; {fix}")
        special = self._own("parameter_groups")
        order = [*special, *(name for name in self.methods if name not in (*special, *self.frozen))]
        groups, seen = [], set[int]()
        for group in (group for name in order for group in self.methods[name].parameter_groups(recipe)):
            own = [p for p in group["params"] if id(p) not in seen]
            seen |= {id(p) for p in own}
            groups += [{**group, "params": own}] if own else []
        shared = len(groups) == sum(group.keys() == {"params"} for group in groups)  # one group is what others have
        return [{"params": [p for group in groups for p in group["params"]]}] if shared and groups else groups

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Files of several parts together; each takes the keys that it knows, in their order."""
        placed: dict[str, Tensor] = {}
        rest = dict(official)
        for name, part in self.methods.items():
            converted, unknown = known(part.convert, rest)
            begin = f"adapter.methods.{name}."
            placed |= {key.replace("adapter.", begin, 1) if key.startswith("adapter.") else key: value
                       for key, value in converted.items()}  # fmt: skip
            rest = {key: rest[key] for key in unknown}
        if rest:
            raise UnknownKeys(rest, type(self).__name__)
        return placed


def known(
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], official: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Sequence[str]]:
    """What a method makes of the keys that it knows, and those that it does not."""
    try:
        return convert(official), ()
    except UnknownKeys as error:
        rest = {key: value for key, value in official.items() if key not in error.keys}
        return convert(rest) if rest else {}, error.keys
