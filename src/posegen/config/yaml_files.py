"""What is wrong with a file of configurations, with the file and the line.

Hydra reads these files, and its errors name neither. So the files of a user are looked at before Hydra for aliases that
never end, and after an error of Hydra for its cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posegen.errors import UserError

DEPTHS = ("", "*/", "*/*/")  # primary files, options of groups, and of groups in groups
LARGEST = 100_000  # values in a file, aliases (*name) counted with all that they stand for
#: What Hydra raises for files that it cannot read, among other things.
UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError)


@contextmanager
def readable_files(folders: Iterable[Path]) -> Iterator[None]:
    """While the block lets Hydra read files of ``folders``: a `UserError` names one that cannot be read."""
    files = [file for folder in folders for depth in DEPTHS for file in sorted(folder.glob(f"{depth}*.yaml"))]
    for file in files:
        if reason := endless(file, file.stat().st_mtime_ns):
            raise UserError(reason)
    try:
        yield
    except UNREADABLE as error:
        if reason := next(filter(None, map(fault, files)), None):
            raise UserError(reason) from error
        raise


@lru_cache(maxsize=1024)
def endless(file: Path, changed_ns: int) -> str | None:
    """What is wrong with the aliases of a file; None where they can be written out, and where it is no yaml at all."""
    try:
        text = file.read_text(encoding="utf-8")
        size = expanded(yaml.compose(text)) if "*" in text else 0
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    many = f"stand for more than {LARGEST:,} values" if size < float("inf") else "stand for what they stand in"
    return f"{file}: its aliases (*name) {many}; write it out, or leave it out" if size > LARGEST else None


def fault(file: Path) -> str | None:
    """Why a file is no configuration; None for one that is."""
    content = file.read_bytes()
    try:
        text = content.decode()
        config = OmegaConf.load(file)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"{file}, line {line}: this is no text in UTF-8; save the file in that encoding"
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        return f"{file}, line {line}: this is no yaml: a character that no text has"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"{file}, line {line}: this is no yaml: {error.problem}"
    except RecursionError:
        return f"{file}: its values are nested too deeply, or contain themselves"
    except (OmegaConfBaseException, OSError) as error:
        return f"{file}: {str(error).splitlines()[0]}"
    if not isinstance(config, DictConfig):
        return f"{file}, line 1: expected lines of the form key: value, and this is a list"
    return None


def expanded(node: yaml.Node | None) -> float:
    """How many values a document has when every alias is replaced by what it stands for; infinity for a cycle."""
    known: dict[int, float] = {}

    def size(part: Any) -> float:
        if id(part) not in known:
            known[id(part)] = float("inf")  # seen again inside of it
            inner = part.value if isinstance(part, yaml.CollectionNode) else ()
            known[id(part)] = 1 + sum(sum(map(size, x)) if isinstance(x, tuple) else size(x) for x in inner)
        return known[id(part)]

    return size(node) if node else 0
