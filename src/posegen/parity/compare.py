"""Compares what this project computes for a reference case with what the official implementation computed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from posegen.errors import UserError
from posegen.parity.case import Case


@dataclass(frozen=True)
class Line:
    """How one output agrees.

    Attributes:
        output: its name.
        ok: computed, of the expected shape and within tolerance everywhere.
        absolute: largest absolute error.
        relative: largest error relative to the expected value, where that is not zero.
        outside: share of the values outside tolerance.
        reason: why it could not be compared.
    """

    output: str
    ok: bool
    absolute: float = float("nan")
    relative: float = float("nan")
    outside: float = 1.0
    reason: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        if self.reason:
            return f"  {self.output:34} {verdict}: {self.reason}"
        return f"  {self.output:34} abs {self.absolute:8.2e}  rel {self.relative:8.2e}  outside {self.outside:7.3%}  {verdict}"


def compare(case: Case) -> list[Line]:
    """One line per output of the case; an output that is not computed has failed, by name."""
    try:
        computed = method_of(case)(case)
        missing = "not computed"
    except UserError as error:
        computed, missing = {}, str(error)
    except Exception as error:  # a port that breaks fails its case and lets the others run
        place = traceback.extract_tb(error.__traceback__)[-1]
        computed, missing = {}, f"{type(error).__name__}: {error} ({place.filename.rpartition('/')[2]}:{place.lineno})"
    return list(lines(case, computed, missing))


def lines(case: Case, computed: Mapping[str, Tensor], missing: str) -> Iterator[Line]:
    if not case.expected:
        yield Line("(no outputs)", ok=False, reason=f"{case.folder / 'io.safetensors'} holds no tensor out.*")
    for name, expected in case.expected.items():
        yield (
            agree(name, computed[name], expected, *case.tolerance(name))
            if name in computed
            else Line(name, ok=False, reason=missing)
        )
    for name in computed.keys() - case.expected.keys() - case.mids.keys():
        yield Line(name, ok=False, reason="computed, but the case has no such output")
    for name in sorted(computed.keys() & (case.mids.keys() - case.expected.keys())):
        yield agree(f"mid.{name}", computed[name], case.mids[name], *case.tolerance(name))


def agree(name: str, made: Tensor, expected: Tensor, rtol: float, atol: float) -> Line:
    """Elementwise ``|made - expected| <= atol + rtol * |expected|``; not-a-number equals itself."""
    if made.shape != expected.shape and not made.numel() == expected.numel() == 1:
        return Line(name, ok=False, reason=f"has shape {list(made.shape)} instead of {list(expected.shape)}")
    a, b = made.detach().double().reshape(expected.shape), expected.double()
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    error = error.nan_to_num(nan=float("inf"))
    size = b.abs()
    outside = (error > atol + rtol * size.nan_to_num()).double().mean().item() if error.numel() else 0.0
    relative = (error / size)[size > 0]
    return Line(
        name,
        outside == 0.0,
        error.max().item() if error.numel() else 0.0,
        relative.max().item() if relative.numel() else 0.0,
        outside,
    )


def method_of(case: Case):  # type: ignore[no-untyped-def]
    """``posegen.parity.<method>.compute``.

    Raises:
        UserError: there is no such module.
    """
    name = f"posegen.parity.{case.method}"
    if not case.method.isidentifier() or find_spec(name) is None:
        raise UserError(f"method {case.method!r} of {case.folder / 'case.json'} has no {name}")
    return import_module(name).compute
