"""Files of configurations as Hydra reads them, with messages that name the file and the line, and within limits.

Hydra finds the classes that read ``file://`` and ``pkg://`` in its registry of sources; importing this module puts
those of below into it. Hydra has no public place for this, so this is the one module that imports its private ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from posegen.errors import UserError

LARGEST = 100_000  # values in a file, aliases (*name) counted with all that they stand for


class ConfigurationFiles(FileConfigSource):
    """The files of a folder."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path) / self._normalize_file_name(config_path)
        content = file.read_bytes() if file.is_file() else b""
        return loaded(content, str(file), lambda: super(ConfigurationFiles, self).load_config(config_path))


class ConfigurationsOfPackages(ImportlibResourcesConfigSource):
    """The files of a package."""

    def _read_config(self, res: Any) -> ConfigResult:
        return loaded(res.read_bytes(), str(res), lambda: super(ConfigurationsOfPackages, self)._read_config(res))


def loaded(content: bytes, name: str, load: Callable[[], ConfigResult]) -> ConfigResult:
    """What ``load`` reads from a file with this content; a `UserError` says what is wrong with it and where."""
    try:
        text = content.decode()
        if "*" in text and (size := expanded(yaml.compose(text))) > LARGEST:
            many = f"stand for more than {LARGEST:,} values" if size < float("inf") else "stand for what they stand in"
            raise UserError(f"{name}: its aliases (*name) {many}; write it out, or leave it out")
        result = load()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: this is no text in UTF-8; save the file in that encoding") from error
    except yaml.reader.ReaderError as error:
        line = content.decode()[: error.position].count("\n") + 1
        raise UserError(f"{name}, line {line}: this is no yaml: a character that no text has") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}, line {line}: this is no yaml: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{name}: its values are nested too deeply, or contain themselves") from error
    except (OmegaConfBaseException, OSError) as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
    if not isinstance(result.config, DictConfig):
        raise UserError(f"{name}, line 1: expected lines of the form key: value, and this is a list")
    return result


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


Plugins.instance()  # it registers Hydra's sources
SourcesRegistry.instance().types.update({"file": ConfigurationFiles, "pkg": ConfigurationsOfPackages})
