"""Configurations, composed by Hydra's public functions inside and outside of a running application."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, open_dict, read_write

from posegen.config import groups, resolvers  # noqa: F401  (the latter registers what ${...} may ask for)
from posegen.config.official import with_addresses
from posegen.config.yaml_files import readable_files

HYDRA_VERSION = "1.3"  # of Hydra, whose defaults hold


class OtherPackages(SearchPathPlugin):
    """Finds groups of other packages through the variable POSEGEN_SEARCHPATH."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for entry in groups.third_party():
            search_path.append("posegen", entry)


Plugins.instance().register(OtherPackages)


def compose(name: str, overrides: Sequence[str] = (), main: Path | None = None) -> DictConfig:
    """The configuration ``name.yaml`` of the folder ``main``, by default posegen's, with its ``hydra`` node."""
    running = GlobalHydra.instance().is_initialized()  # then it has chosen the folder
    folder = str(main or groups.conf_dir())
    with (
        readable_files(user_folders(overrides, main)),
        nullcontext() if running else hydra.initialize_config_dir(folder, version_base=HYDRA_VERSION),
    ):
        return hydra.compose(name, list(overrides), return_hydra_config=True)


def user_folders(overrides: Sequence[str], main: Path | None = None) -> list[Path]:
    """The folders with configurations that are not posegen's: of the search path, and ``main``."""
    return [folder for folder in groups.roots(groups.search_entries(overrides), main) if folder != groups.conf_dir()]


@contextmanager
def composed(name: str, overrides: Sequence[str] = (), main: Path | None = None) -> Iterator[DictConfig]:
    """As `compose`, without the ``hydra`` node, which ``${hydra:...}`` and ``HydraConfig`` have meanwhile."""
    cfg = compose(name, overrides, main)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
            with_addresses(cfg)
        yield cfg
    finally:
        HydraConfig.instance().cfg = before
