"""The verb ``posegen parity``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from posegen.parity.case import Case
from posegen.parity.compare import compare
from posegen.runner.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Compares every case at or below the given folders; 0 only where every output of every case agrees.

    Raises:
        UserError: a folder holds no case, or a case cannot be read.
    """
    if not arguments:
        raise UserError("posegen parity needs the folder of a reference case, or a folder of such folders: posegen parity FOLDER...")
    passed: list[bool] = []
    for folder in cases(arguments):
        case = Case.read(folder)
        found = compare(case)
        print(f"{case.name}  ({case.method}: {case.module})", *found, sep="\n")
        passed.append(all(line.ok for line in found))
        print(f"  {'passed' if passed[-1] else 'FAILED'}: {sum(line.ok for line in found)} of {len(found)} tensors agree\n", flush=True)
    print(f"{sum(passed)} of {len(passed)} cases passed")
    return 0 if all(passed) else 1


def cases(arguments: Sequence[str]) -> Iterator[Path]:
    """Folders with a ``case.json``.

    Raises:
        UserError: there is none at or below an argument.
    """
    for argument in arguments:
        place = Path(argument).expanduser()
        found = sorted(file.parent for file in place.rglob("case.json")) if place.is_dir() else []
        if not found:
            raise UserError(f"{place}: no reference case here; expected a folder with case.json and io.safetensors, or a folder of such folders")
        yield from found
