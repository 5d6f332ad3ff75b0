"""When two tensors agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posegen.parity.case import Case
from posegen.parity.compare import agree, compare

NAN, INF = float("nan"), float("inf")
CLIP = {"inputs": {"image": [[1.0, 0.0]], "text": [[1.0, 0.0]]}}


@pytest.mark.parametrize(
    ("made", "expected", "ok"),
    [
        ([1.0, 100.0], [1.0, 100.9], True),  # 1 % of the expected value
        ([1.0, 100.0], [1.0, 102.0], False),
        ([0.0], [0.05], True),  # or 0.1
        ([0.0], [0.2], False),
        ([NAN, INF, -INF], [NAN, INF, -INF], True),
        ([NAN], [0.0], False),
        ([0.0], [NAN], False),
        ([INF], [-INF], False),
        ([1e30], [INF], False),
    ],
)
def test_tolerance_is_absolute_plus_relative(made: list[float], expected: list[float], ok: bool) -> None:
    assert agree("x", torch.tensor(made), torch.tensor(expected), rtol=0.01, atol=0.1).ok is ok


def test_one_number_may_have_any_shape_and_others_may_not() -> None:
    assert agree("x", torch.tensor(1.0), torch.ones(1), 0.0, 0.0).ok
    line = agree("x", torch.ones(2), torch.ones(2, 1), 0.0, 0.0)
    assert not line.ok and "has shape [2] instead of [2, 1]" in str(line)


def test_the_report_has_both_errors_and_the_share_outside() -> None:
    line = agree("x", torch.tensor([1.0, 2.0, 5.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 4.0]), 0.0, 0.1)
    assert (line.absolute, line.relative, line.outside, line.used) == (1.0, 0.25, 0.25, 10.0)


def test_tolerances_are_the_outputs_own_or_those_of_loops_or_the_cases() -> None:
    sampling = {"steps": {"loop": 5}, "tolerance": {"rtol": 3.0, "atol": 4.0}}
    facts = {"rtol": 1.0, "atol": 2.0, "tolerances": {"own": {"rtol": 5.0, "atol": 6.0}}, "sampling": sampling}
    case = Case(Path(), facts, {}, {}, {}, {})
    assert [case.tolerance(name) for name in ("x", "loop.x", "own")] == [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]


def test_a_case_without_outputs_fails() -> None:
    found = compare(Case(Path("somewhere"), {"method": "metrics", "module": "clip_score", **CLIP}, {}, {}, {}, {}))
    assert found.verdict == "FAILED" and "holds no tensor out.*" in found.reason


@pytest.mark.parametrize("method", ["invented", "case", "os.path", ""])
def test_a_method_that_posegen_does_not_have_is_no_failure(method: str) -> None:
    assert compare(Case(Path("somewhere"), {"method": method}, {}, {}, {}, {})).verdict == "no such method here"
