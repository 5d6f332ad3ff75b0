"""What there is to choose from, read from the file tree: neither Hydra nor torch is imported, so help, listing and completion answer at once."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posegen.config.problems import misspelt
from posegen.errors import UserError

HELP = """List what there is to choose from: groups, their options, and what each is.

  posegen list                       all groups
  posegen list adapters              the methods, with their papers
  posegen list backbones data        several groups
  posegen list experiments --config-dir ~/my/conf

Options from other packages are found through --config-dir, hydra.searchpath=[pkg://their.conf] or the variable POSEGEN_SEARCHPATH."""


# Where configurations lie.


def conf_dir() -> Path:
    """``posegen/conf`` of an installed wheel, else the checkout's ``conf``."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def third_party() -> list[str]:
    """Search path entries of the variable POSEGEN_SEARCHPATH: comma-separated ``pkg://package.folder`` or folders."""
    return [searchable(entry) for entry in os.environ.get("POSEGEN_SEARCHPATH", "").split(",") if entry.strip()]


def searchable(entry: str) -> str:
    """A folder or url as Hydra's search path wants it."""
    entry = entry.strip()
    return entry if "://" in entry else f"file://{Path(entry).expanduser().resolve()}"


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
    """Every folder that holds groups: posegen's own first, then those of other packages."""
    found = [folder_of(entry) for entry in (*third_party(), *extra)]
    return [main or conf_dir(), *(folder for folder in found if folder and folder.is_dir())]


# Groups and options.


@dataclass(frozen=True)
class Option:
    """One yaml file of a group, chosen as ``group=name``."""

    group: str
    name: str
    file: Path

    @property
    def summary(self) -> str:
        """The first sentence of the leading comment."""
        lines = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#") or (lines and line == "#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.lstrip("# ").rstrip())
        return re.split(r"(?<=\.)\s(?=[A-Z])", " ".join(lines).strip(), maxsplit=1)[0].rstrip(".")

    @property
    def target(self) -> str | None:
        """The ``_target_``, its own or that of the option it extends."""
        text = self.file.read_text(encoding="utf-8")
        if found := re.search(r"^_target_:\s*([\w.]+)", text, re.MULTILINE):
            return found[1]
        bases = re.search(r"^defaults:\s*\[?\s*(?:-\s*)?([\w/]+)", text, re.MULTILINE)
        if bases is None:
            return None
        root = self.file.parents[len(self.name.split("/")) - 1]  # the group's folder
        base = (
            root / f"{bases[1].removeprefix(f'/{self.group}/')}.yaml"
            if bases[1].startswith("/")
            else self.file.parent / f"{bases[1]}.yaml"
        )
        return (
            Option(self.group, base.relative_to(root).with_suffix("").as_posix(), base).target
            if base.is_file() and base != self.file
            else None
        )


def groups(where: Sequence[Path] | None = None) -> dict[str, dict[str, Option]]:
    """Group -> option name -> option, both sorted; ``adapter/reference/real.yaml`` is the option ``reference/real`` of ``adapter``."""
    found: dict[str, dict[str, Option]] = {}
    for root in where or roots():
        for file in sorted(root.rglob("*.yaml")):
            parts = file.relative_to(root).with_suffix("").parts
            depth = 2 if parts[0] == "hydra" else 1
            if len(parts) > depth:
                group, name = "/".join(parts[:depth]), "/".join(parts[depth:])
                found.setdefault(group, {}).setdefault(name, Option(group, name, file))
    return {group: dict(sorted(found[group].items())) for group in sorted(found)}


def primaries(where: Sequence[Path] | None = None) -> set[str]:
    """Names of the primary files, one per verb that composes a configuration."""
    return {file.stem for root in where or roots() for file in root.glob("*.yaml")}


# Facts of a class, read from its source.


def source_of(target: str) -> tuple[Path, str] | None:
    """(file, class name) of a dotted ``_target_``, found without importing anything."""
    top, *rest = target.split(".")
    spec = importlib.util.find_spec(top)
    for place in spec.submodule_search_locations or () if spec else ():
        for depth in range(len(rest) - 1, -1, -1):
            stem = Path(place).joinpath(*rest[:depth])
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                if file.is_file() and depth < len(rest):
                    return file, rest[depth]
    return None


def facts(target: str) -> dict[str, str]:
    """``doc`` (first line of the docstring) and ``paper`` (title and id) of a class, as far as its source tells them as literals."""
    place = source_of(target)
    if place is None:
        return {}
    tree = ast.parse(place[0].read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == place[1]), None)
    if node is None:
        return {}
    found = {"doc": (ast.get_docstring(node) or "").split("\n")[0].rstrip(".")}
    for statement in node.body:
        names = [
            t.id for t in getattr(statement, "targets", [getattr(statement, "target", None)]) if isinstance(t, ast.Name)
        ]
        if "paper" in names and isinstance(call := getattr(statement, "value", None), ast.Call):
            literals = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
            found["paper"] = ", ".join(str(value) for value in literals[:2])
    return {key: value for key, value in found.items() if value}


# What is printed.


def table(options: Mapping[str, Option]) -> str:
    """One line per option: name, what it is, and its paper."""
    width = max(map(len, options))
    lines = []
    for name, option in options.items():
        known = facts(option.target) if option.target else {}
        paper = f"  [{known['paper']}]" if "paper" in known else ""
        lines.append(f"  {name:<{width}}  {option.summary or known.get('doc', '')}{paper}".rstrip())
    return "\n".join(lines)


def overview(found: Mapping[str, Mapping[str, Option]], width: int = 160) -> str:
    """One line per group with the names of its options."""
    column = max(map(len, found), default=0)
    lines = []
    for group, options in found.items():
        line = f"  {group:<{column}}  {', '.join(options)}"
        lines.append(line if len(line) <= width else f"{line[: width - 4].rpartition(',')[0]}, ...")
    return "\n".join(lines)


def group_named(name: str, known: Iterable[str]) -> str:
    """The group that a user means: ``adapters`` is ``adapter``, ``launchers`` is ``hydra/launcher``."""
    names = list(known)
    for candidate in (name, name.removesuffix("s"), f"hydra/{name}", f"hydra/{name.removesuffix('s')}"):
        if candidate in names:
            return candidate
    raise UserError(str(misspelt(name, "no such group", name, names)))


def main(argv: Sequence[str]) -> int:
    """``posegen list [group ...]``."""
    parser = argparse.ArgumentParser(
        "posegen list", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="group")
    parser.add_argument("--config-dir", "-cd", action="append", default=[], help="a folder with more groups")
    arguments = parser.parse_args(list(argv))
    wanted = [word for word in arguments.groups if not word.startswith("hydra.searchpath=")]
    extra = [entry for word in arguments.groups if word not in wanted for entry in searchpath(word)]
    found = groups(roots([*arguments.config_dir, *extra]))
    for group in [group_named(name, found) for name in wanted]:
        print(f"{group}\n{table(found[group])}\n")
    if not wanted:
        print(f"{overview(found)}\n\nposegen list GROUP tells what each option is.")
    return 0


def searchpath(override: str) -> list[str]:
    """The entries of a ``hydra.searchpath=[...]`` override."""
    return [
        entry.strip(" '\"") for entry in override.partition("=")[2].strip("[]'\" ").split(",") if entry.strip(" '\"")
    ]
