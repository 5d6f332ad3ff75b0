"""The groups and their options, read from the file tree without Hydra and torch, so that the help answers at once."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


def conf_dir() -> Path:
    """``posegen/conf`` of an installed wheel, else the checkout's ``conf``."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def third_party() -> list[str]:
    """Search path entries of the variable POSEGEN_SEARCHPATH: comma-separated ``pkg://package.folder`` or folders."""
    return [searchable(entry) for entry in os.environ.get("POSEGEN_SEARCHPATH", "").split(",") if entry.strip()]


def searchable(entry: str) -> str:
    """A folder or url in the form of Hydra's search path."""
    entry = entry.strip()
    return entry if "://" in entry else f"file://{Path(entry).expanduser().resolve()}"


def search_entries(overrides: Iterable[str]) -> list[str]:
    """The entries of ``hydra.searchpath=[...]`` among overrides."""
    lists = [word.partition("=")[2].strip("[]'\" ") for word in overrides if word.startswith("hydra.searchpath=")]
    return [entry.strip(" '\"") for each in lists for entry in each.split(",") if entry.strip(" '\"")]


def folder_of(entry: str) -> Path | None:
    """The folder of a search path entry; a package is located, not imported."""
    scheme, _, path = searchable(entry).partition("://")
    if scheme == "file":
        return Path(path)
    top, *rest = path.replace("/", ".").strip(".").split(".")
    spec = importlib.util.find_spec(top) if scheme == "pkg" else None
    places = [Path(place).joinpath(*rest) for place in spec.submodule_search_locations or ()] if spec else []
    return next((place for place in places if place.is_dir()), None)


def roots(extra: Iterable[str] = (), main: Path | None = None) -> list[Path]:
    """Every folder that holds groups: posegen's first, then those of other packages."""
    found = [folder_of(entry) for entry in (*third_party(), *extra)]
    return [main or conf_dir(), *(folder for folder in found if folder and folder.is_dir())]


def roots_of(hydra: Any) -> list[Path]:
    """The same of a composed configuration, from its ``hydra`` node."""
    sources = [source for source in hydra.runtime.config_sources if source.provider not in ("hydra", "schema")]
    main = next((Path(source.path) for source in sources if source.provider == "main"), None)
    return roots([f"{s.schema}://{s.path}" for s in sources if s.provider not in ("main", "posegen")], main)


@dataclass(frozen=True)
class Option:
    """One yaml file of a group, chosen as ``group=name``."""

    group: str
    name: str
    file: Path

    @cached_property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8", errors="replace")  # composing says what is wrong

    @property
    def summary(self) -> str:
        """The first sentence of the leading comment."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#") or (lines and (line == "#" or line.startswith("# Paper:"))):
                break
            if not line.startswith("# @package"):
                lines.append(line.lstrip("# ").rstrip())
        return re.split(r"(?<=\.)\s(?=[A-Z])", " ".join(lines).strip(), maxsplit=1)[0].rstrip(".")

    @property
    def anywhere(self) -> bool:
        """Whether the file may set any key."""
        return re.search(r"^# @package _global_", self.text, re.MULTILINE) is not None

    @property
    def target(self) -> str | None:
        """The ``_target_``, or that of the option it extends."""
        return self.found(r"^_target_:\s*([\w.]+)")

    @property
    def paper(self) -> str | None:
        """``# Paper: title, id``, or that of the option it extends."""
        return self.found(r"^# Paper: (.+)$")

    def found(self, pattern: str) -> str | None:
        """The first match in the file, or in the file that its defaults name first."""
        if match := re.search(pattern, self.text, re.MULTILINE):
            return match[1]
        base = re.search(r"^defaults:\s*\[?\s*(?:-\s*)?([\w/]+)", self.text, re.MULTILINE)
        if base is None:
            return None
        root = self.file.parents[len(self.name.split("/")) - 1]  # the group's folder
        inside = base[1].startswith("/")
        place = root / base[1].removeprefix(f"/{self.group}/") if inside else self.file.parent / base[1]
        file = place.with_name(f"{place.name}.yaml")
        if not file.is_file() or file == self.file:
            return None
        return Option(self.group, file.relative_to(root).with_suffix("").as_posix(), file).found(pattern)


#: Group -> option -> its file.
KnownGroups = Mapping[str, Mapping[str, Option]]


def groups(where: Sequence[Path] | None = None) -> dict[str, dict[str, Option]]:
    """Group -> option -> its file, sorted; ``adapter/reference/real.yaml`` is ``reference/real`` of ``adapter``."""
    found: dict[str, dict[str, Option]] = {}
    for root, file in ((folder, file) for folder in where or roots() for file in sorted(folder.rglob("*.yaml"))):
        parts = file.relative_to(root).with_suffix("").parts
        depth = 2 if parts[0] == "hydra" else 1
        if len(parts) > depth:
            group, name = "/".join(parts[:depth]), "/".join(parts[depth:])
            found.setdefault(group, {}).setdefault(name, Option(group, name, file))
    return {group: dict(sorted(found[group].items())) for group in sorted(found)}


def primaries(where: Sequence[Path] | None = None) -> set[str]:
    """Names of the primary files, among them one per verb."""
    return {file.stem for root in where or roots() for file in root.glob("*.yaml")}


def shown_path(option: Option) -> str:
    """``conf/adapter/controlnet.yaml``, or the folder it lies in where that is no ``conf``."""
    root = option.file.parents[len(option.name.split("/")) + len(option.group.split("/")) - 1]
    return str(option.file.relative_to(root.parent))


def group_lines(found: KnownGroups, width: int = 160) -> str:
    """One line per group with the names of its options."""
    column = max(map(len, found), default=0)
    lines = [f"  {group:<{column}}  {', '.join(options)}" for group, options in found.items()]
    return "\n".join(x if len(x) <= width else f"{x[: width - 4].rpartition(',')[0]}, ..." for x in lines)
