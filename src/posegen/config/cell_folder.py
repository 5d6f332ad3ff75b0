"""Where a cell lies: ``<output>/<study>/<method>/<data>[,key=value ...]/seed<k>``, a function of its overrides."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.hashes import value_hash

#: Last parts of keys that change no result (where things lie, who computes, how it is shown), or do so through others
#: (``budget.train_images`` through ``data.train.count``).
NEUTRAL_KEYS = frozenset({
    "cache", "workers", "progress", "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "plugins",
    "use_distributed_sampler", "default_root_dir", "profiler", "log_every_n_steps", "enable_checkpointing",
    "enable_progress_bar", "enable_model_summary", "train_images",
})  # fmt: skip
#: Callbacks that change no result.
NEUTRAL_CALLBACKS = frozenset({"checkpoint", "progress", "live"})
#: Overrides that do not belong in the name of the last folder: these stand elsewhere in the path ...
PLACED = frozenset({"adapter", "data", "seed", "study"})
#: ... and these, with whatever is below them, change no result, or do so through other keys.
UNNAMED = frozenset({
    "logger", "hydra", "paths", "experiment", "benchmark", "objective", "force", "shard", "shards", "title", "baseline",
    "headline", "reproduction", "validation", "dashboard",
})  # fmt: skip

LONGEST = 150  # characters of a folder's name; file systems allow 255 bytes


def cell_folder(_root_: DictConfig) -> str:
    """``${cell_folder:}``: the folder of a cell; it names the overrides that change results."""
    parts = [override.lstrip("+~").partition("=") for override in HydraConfig.get().overrides.task]
    given = [(key.split("@")[0], text) for key, _, text in parts]  # ``adapter@package`` counts as ``adapter``
    named = sorted(f"{key}={short_value(_root_, key, text)}" for key, text in given if is_named(key, text))
    name = ",".join([str(_root_.dataset), *named]).replace("/", "-").replace(" ", "")
    if len(name) > LONGEST:
        name = f"{name[:120]}~{value_hash(named, 8)}"
    return str(Path(_root_.paths.output) / _root_.study / str(_root_.method) / name / f"seed{_root_.seed}")


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
    if isinstance(value, ListConfig) and any(os.sep in str(each) for each in value):
        return "+".join(Path(str(each)).name for each in value)
    text = text if value is None or isinstance(value, DictConfig) else str(value)
    return Path(text).name if os.sep in text else text
