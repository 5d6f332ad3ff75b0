"""List methods, backbones, data sets, experiments, ..., each with a description."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from posegen.config.groups import group_lines, groups, roots_of
from posegen.config.problems import misspelt
from posegen.errors import UserError


def main(cfg: DictConfig) -> None:
    found = groups(roots_of(HydraConfig.get()))
    for group in [group_named(str(name), found) for name in cfg.groups]:
        width = max(map(len, found[group]))
        print(group)
        for name, option in found[group].items():
            paper = f"  [{option.paper}]" if option.paper else ""
            print(f"  {name:<{width}}  {option.summary}{paper}".rstrip())
        print()
    if not cfg.groups:
        print(f"{group_lines(found)}\n\nposegen list GROUP tells what each option is.")


def group_named(name: str, known: Iterable[str]) -> str:
    """The group that a user means: ``adapters`` is ``adapter``, ``launchers`` is ``hydra/launcher``."""
    names = list(known)
    for candidate in (name, name.removesuffix("s"), f"hydra/{name}", f"hydra/{name.removesuffix('s')}"):
        if candidate in names:
            return candidate
    raise UserError(str(misspelt(name, "no such group", name, names)))
