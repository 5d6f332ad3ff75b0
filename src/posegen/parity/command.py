"""The verb ``posegen parity``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from posegen.errors import UserError
from posegen.parity.case import Case, is_metric, read_json
from posegen.parity.compare import compare


def main(arguments: Sequence[str]) -> int:
    """Compares every case at or below the given folders and files; 0 only where every output of every case agrees.

    Raises:
        UserError: a folder or file holds no case, or a case cannot be read.
    """
    if not arguments:
        raise UserError(
            "posegen parity needs the folder of a reference case, or the json file of a metric's, or a folder of either: posegen parity FOLDER..."
        )
    passed: list[bool] = []
    for place in cases(arguments):
        case = Case.read(place)
        found = compare(case)
        print(f"{case.name}  ({case.method}: {case.module})", *found, sep="\n")
        passed.append(all(line.ok for line in found))
        verdict, things = "passed" if passed[-1] else "FAILED", "values" if place.is_file() else "tensors"
        print(f"  {verdict}: {sum(line.ok for line in found)} of {len(found)} {things} agree\n", flush=True)
    print(f"{sum(passed)} of {len(passed)} cases passed")
    return 0 if all(passed) else 1


def cases(arguments: Sequence[str]) -> Iterator[Path]:
    """Folders with a ``case.json``, and json files with the case of a metric; other json files in folders are passed over.

    Raises:
        UserError: there is none at or below an argument.
    """
    for argument in arguments:
        place = Path(argument).expanduser()
        found = (
            [place] if place.is_file() else sorted(case for file in place.rglob("*.json") if (case := case_of(file)))
        )
        if not found:
            raise UserError(
                f"{place}: no reference case here; expected a folder with case.json and io.safetensors, the json file of a metric's case, or a folder of either"
            )
        yield from found


def case_of(file: Path) -> Path | None:
    """The case that a json file in a folder belongs to."""
    if file.name == "case.json":
        return file.parent
    return file if is_metric(read_json(file)) else None
