"""The words behind the verbs that read folders of results: ``FOLDER ... key=value ...``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from posegen.config.problems import misspelt
from posegen.errors import UserError


def read_words(verb: str, words: Sequence[str], options: Mapping[str, Any]) -> DictConfig:
    """``folders`` and the options, which have their defaults where no word sets them.

    Raises:
        UserError: there is no such option.
    """
    values, folders = dict(options), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in options:
            values[key] = value if isinstance(options[key], str) else yaml.safe_load(value)
        elif word.startswith("-"):
            raise UserError(
                f"{word}: posegen {verb} takes options as key=value: {', '.join(f'{k}=...' for k in options)}"
            )
        elif equals and key.isidentifier() and not Path(word).exists():
            raise UserError(str(misspelt(key, "no such option", key, options)))
        else:
            folders.append(word)
    return OmegaConf.create({"folders": folders, **values})


def benchmark_folders(verb: str, folders: Sequence[str]) -> list[Path]:
    """The named folders; by default every benchmark under ``outputs/benchmark``.

    Raises:
        UserError: there is none.
    """
    found = [Path(folder) for folder in folders] or sorted(
        path.parent for path in Path("outputs/benchmark").glob("*/cells.json")
    )
    if not found:
        raise UserError(
            "outputs/benchmark holds no benchmark; run posegen benchmark first, or name its folder: "
            f"posegen {verb} FOLDER"
        )
    return found
