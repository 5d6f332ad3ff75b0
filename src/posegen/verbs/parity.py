"""Compare methods with tensors of their official implementations.

Without ``cases`` those that the package ships are read. The exit code is 0 only where something was compared and
every output of every case agrees. Cases of methods that posegen does not have are named and counted; they do not fail.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from posegen.parity.case import SHIPPED, Case, find_cases
from posegen.parity.compare import FAILED, INEXPRESSIBLE, PASSED, UNKNOWN, Comparison, compare

ROW = "{:31} {:12} {:>10} {:>14} {:>13}  {}".format

#: Methods without a case -> why.
NO_PROGRAM = {
    "dnaf": "no official program was published, so there is nothing to compare with",
    "controlnet_union, composite, lora_control": "compared with diffusers' pipelines in the tests",
    "token_control": "the official program needs FLUX.1, so there is no case yet",
}


def main(cfg: DictConfig) -> int:
    """Compares every case at or below ``cases``; prints a row per case, and the outputs of given or failed cases."""
    places = [case for place in cfg.cases or [SHIPPED] for case in find_cases(Path(place).expanduser())]
    found: list[Comparison] = []
    print(ROW("case", "method", "compared", "largest error", "of tolerance", "verdict"))
    for place in places:
        found.append(compare(Case.read(place)))
        show_comparison(found[-1], every_output=bool(cfg.cases) or found[-1].verdict == FAILED)
    if not cfg.cases:
        print(*(f"{names}: {reason}" for names, reason in NO_PROGRAM.items()), sep="\n")
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in (PASSED, UNKNOWN, INEXPRESSIBLE)}
    beside = f"; {counts[UNKNOWN]} of methods that posegen does not have" if counts[UNKNOWN] else ""
    beside += f"; {counts[INEXPRESSIBLE]} cannot be expressed" if counts[INEXPRESSIBLE] else ""
    comparable = len(found) - counts[UNKNOWN]
    print(f"{counts[PASSED]} of {comparable} cases passed{beside}")
    return 0 if counts[PASSED] == comparable > 0 else 1


def show_comparison(found: Comparison, every_output: bool) -> None:
    """A row of the table, and below it a line per output or the reason why there is none."""
    case, lines = found.case, found.lines
    compared = f"{sum(line.ok for line in lines)} of {len(lines)}" if lines else "-"
    largest, used = (
        max((getattr(line, name) for line in lines if not line.reason), default=None) for name in ("absolute", "used")
    )
    error, share = ("-" if largest is None else f"{largest:.1e}"), ("-" if used is None else f"{100 * used:.2g} %")
    print(ROW(case.name, case.method, compared, error, share, found.verdict), flush=True)
    if found.reason:
        print(f"  {found.verdict}: {found.reason}")
    elif every_output:
        things = "values" if case.method == "metrics" else "tensors"
        print(f"  {case.module}", *lines, f"  {found.verdict}: {compared} {things} agree\n", sep="\n")
