"""Where a cell lies: ``<output>/<study>/<method>/<data>[,key=value ...]/seed<k>``, a function of its overrides."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from posegen.config.typed_text import ELSEWHERE, as_hydra_writes, is_place, is_sentence
from posegen.errors import UserError
from posegen.io.hashes import outline_hash, text_hash, value_hash

#: Last parts of keys that change no result (where things lie, who computes, how it is shown), or do so through others
#: (``budget.train_images`` through ``data.train.count``).
NEUTRAL_KEYS = frozenset({
    "cache", "workers", "progress", "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "plugins",
    "use_distributed_sampler", "default_root_dir", "profiler", "log_every_n_steps", "enable_checkpointing",
    "enable_progress_bar", "enable_model_summary", "train_images", "in_backward",
})  # fmt: skip
#: Callbacks that change no result.
NEUTRAL_CALLBACKS = frozenset({"checkpoint", "progress", "live", "validation_loss"})
#: Overrides that do not belong in the name of the last folder: these stand elsewhere in the path ...
PLACED = frozenset({"adapter", "data", "seed", "study"})
#: ... and these, with whatever is below them, change no result, or do so through other keys.
UNNAMED = frozenset({
    "logger", "hydra", "paths", "experiment", "benchmark", "objective", "force", "shard", "shards", "title", "baseline",
    "headline", "reproduction", "validation", "dashboard",
})  # fmt: skip

#: What a cell holds before anything is computed; hidden files are locks and temporary ones.
NO_RESULT = frozenset({"status.json", "config.yaml", "progress.json", "run.json", "curves", "live", "wandb"})

LONGEST = 150  # bytes of a folder's name; file systems allow 255
PLAIN = re.compile(r"[\w.+@:%()\[\]{}'-]*")  # a value that a folder's name shows as it is


def cell_folder(_root_: DictConfig) -> str:
    """``${cell_folder:}``: the folder of a cell; it names the overrides that change results.

    Texts and files stand there with some digits of the hash of their content, so that different ones never share a
    folder.
    """
    study = study_folder(_root_)
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # it may ask for this folder
    parts = [str(override).lstrip("+~").partition("=") for override in task]
    given = {key.split("@")[0]: text for key, _, text in parts}  # ``adapter@package`` counts as ``adapter``
    named = sorted(f"{key}={short_value(_root_, key, text)}" for key, text in given.items() if is_named(key, text))
    name = ",".join([str(_root_.dataset), *named]).replace("/", "-").replace(" ", "")
    if len(encoded := os.fsencode(name)) > LONGEST:
        name = f"{encoded[:120].decode(errors='ignore')}~{value_hash(named, 8)}"
    return str(Path(_root_.paths.output) / study / str(_root_.method) / name / f"seed{_root_.seed}")


def study_folder(config: DictConfig) -> Path:
    """The study as a relative path; a `UserError` refuses one outside of the output folder, or none."""
    text = str(config.study or "")
    study = Path(text)
    if study.is_absolute() or ".." in study.parts:
        raise UserError(f"study={text} leads out of {config.paths.output}; give a name, and the place as paths.output=")
    if not text.strip() or "\0" in text:
        raise UserError(f"study={config.study}: expected a name for the folder of the results, such as study=first_try")
    if long := next((part for part in study.parts if len(os.fsencode(part)) > 255), None):
        raise UserError(f"study={long[:40]}...: {len(os.fsencode(long))} bytes; a folder's name has at most 255")
    return study


def untouched(cell: Path) -> bool:
    """Whether nothing was computed in a cell: whatever started there failed, or was stopped, before that."""
    found = cell.iterdir() if cell.is_dir() else ()
    return all(path.name in NO_RESULT or path.name.startswith(".") for path in found)


def is_inside(folder: Path, place: Path) -> bool:
    """Whether ``folder`` lies below ``place``, by their names."""
    names = [Path(os.path.abspath(path)) for path in (folder, place)]
    return names[0] != names[1] and names[0].is_relative_to(names[1])


def require_inside(folder: Path, output: Path) -> Path:
    """``folder``, if it lies below ``paths.output``; a `UserError` names the ways out."""
    if not is_inside(folder, output):
        fix = "give study= a name without .. and without a slash in front; to write elsewhere set paths.output=FOLDER"
        raise UserError(f"{folder} lies outside the output folder {output}; {fix}")
    return folder


def is_named(key: str, text: str) -> bool:
    first, last = key.split(".")[0].split("/")[0], key.split(".")[-1]
    alike = key == "trainer" and text in ("default", "ddp", "fsdp")  # they differ in neutral keys alone
    neutral = alike or last in NEUTRAL_KEYS or first in UNNAMED or key in PLACED
    return not (neutral or (first == "callbacks" and key.split(".")[1:2] and key.split(".")[1] in NEUTRAL_CALLBACKS))


def short_value(config: DictConfig, key: str, text: str) -> str:
    """The value in the configuration, since Hydra rewrites what was typed (1e-3 to 0.001); of a path its name."""
    value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    if value is None or isinstance(value, DictConfig):
        value = as_hydra_writes(text) if text.startswith("{") else text
    if is_sentence(key) and not isinstance(value, ListConfig):
        return with_digits(str(value), re.sub(r"[^\w.+-]+", "_", unicodedata.normalize("NFC", str(value)))[:40])
    values = [str(each) for each in value] if isinstance(value, ListConfig) else [str(value)]
    if is_place(key) or any(os.sep in each for each in values):
        return "+".join(Path(each).name + place_digits(key, Path(each)) for each in values)
    shown = str(value)
    return shown if all(map(PLAIN.fullmatch, values)) else with_digits(shown, shown)


def with_digits(text: str, shown: str) -> str:
    """A text as it is shown in a name; where that is not all of it, with digits of its hash."""
    return text if text == shown and PLAIN.fullmatch(text) else f"{shown.strip('_')}~{text_hash(text, 6)}"


def place_digits(key: str, place: Path) -> str:
    """Digits of what is at a path; none where nothing is. Data sets count by their content, but not in the name."""
    if ELSEWHERE.match(str(place)):
        return f"~{text_hash(str(place), 6)}"
    place = place.expanduser()
    inner = place / "method"  # of a cell
    if not place.exists() or (key.startswith("data.") and place.is_dir()):
        return ""
    return f"~{outline_hash(inner if inner.is_dir() else place, 6)}"
