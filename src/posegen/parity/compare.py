"""Compares what posegen computes for a reference case with what the official program computed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from posegen.errors import UserError
from posegen.parity.build import Inexpressible, UnknownPart
from posegen.parity.case import TENSORS, Case

Port = Callable[[Case], Iterable[tuple[str, Tensor]]]
PASSED, FAILED, INEXPRESSIBLE, UNKNOWN = "passed", "FAILED", "cannot be expressed", "no such method here"


@dataclass(frozen=True)
class OutputCheck:
    output: str  # its name
    ok: bool  # computed, of the expected shape and within tolerance everywhere
    absolute: float = float("nan")  # largest absolute error
    relative: float = float("nan")  # largest error relative to the expected value, where that is not zero
    outside: float = 1.0  # share of the values outside tolerance
    used: float = float("nan")  # largest error as a share of the tolerance at its place
    reason: str = ""  # why it could not be compared

    def __str__(self) -> str:
        verdict = "ok" if self.ok else FAILED
        if self.reason:
            return f"  {self.output:34} {verdict}: {self.reason}"
        errors = f"abs {self.absolute:8.2e}  rel {self.relative:8.2e}  outside {self.outside:7.3%}"
        return f"  {self.output:34} {errors}  {verdict}"


@dataclass(frozen=True)
class Comparison:
    case: Case
    verdict: str  # ``passed``, ``FAILED``, ``cannot be expressed`` or ``no such method here``
    lines: Sequence[OutputCheck] = ()  # one per output of the case; none where nothing was computed
    reason: str = ""  # why nothing was computed


def compare(case: Case) -> Comparison:
    """Computes the outputs of a case and compares them; an output that is not computed has failed, by name."""
    if (port := port_of(case.method)) is None:
        return Comparison(case, UNKNOWN, reason=f"posegen has no method {case.method!r} to compare with this case")
    try:
        with torch.no_grad():
            computed = dict(port(case))
    except UserError as error:
        verdicts = {Inexpressible: INEXPRESSIBLE, UnknownPart: UNKNOWN}
        return Comparison(case, verdicts.get(type(error), FAILED), reason=str(error))
    except Exception as error:  # a port that breaks fails its case and lets the others run
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({place.filename.rpartition('/')[2]}:{place.lineno})"
        return Comparison(case, FAILED, reason=reason)
    if not case.expected:
        return Comparison(case, FAILED, reason=f"{case.place / TENSORS} holds no tensor out.*")
    places = [(name, name, value) for name, value in case.expected.items()]
    on_the_way = sorted(computed.keys() & (case.mids.keys() - case.expected.keys()))  # those that were computed too
    places += [(f"mid.{name}", name, case.mids[name]) for name in on_the_way]
    lines = []
    for shown, name, expected in places:
        found = agree(shown, computed[name], expected, *case.tolerance(name)) if name in computed else None
        lines.append(found or OutputCheck(shown, ok=False, reason="not computed"))
    return Comparison(case, PASSED if all(line.ok for line in lines) else FAILED, lines)


def port_of(method: str) -> Port | None:
    """``<method>_outputs`` of ``posegen.parity.<method>``; None where there is none."""
    name = f"posegen.parity.{method}"
    if not method.isidentifier() or find_spec(name) is None:
        return None
    return getattr(import_module(name), f"{method}_outputs", None)


def agree(name: str, computed: Tensor, expected: Tensor, rtol: float, atol: float) -> OutputCheck:
    """Elementwise ``|computed - expected| <= atol + rtol * |expected|``; not-a-number equals itself."""
    if computed.shape != expected.shape and not computed.numel() == expected.numel() == 1:
        return OutputCheck(name, ok=False, reason=f"has shape {list(computed.shape)} instead of {list(expected.shape)}")
    a, b = computed.detach().double().reshape(expected.shape), expected.double()
    equal = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(equal, 0.0, (a - b).abs().nan_to_num(float("inf"), float("inf")))
    allowed, size = atol + rtol * b.abs().nan_to_num(), b.abs()
    if not error.numel():
        return OutputCheck(name, True, 0.0, 0.0, 0.0, 0.0)
    relative = torch.where(size > 0, error / size, 0.0).max().item()
    outside, used = (error > allowed).double().mean().item(), torch.where(error > 0, error / allowed, 0.0).max().item()
    return OutputCheck(name, outside == 0, error.max().item(), relative, outside, used)
