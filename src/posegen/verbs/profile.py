"""Measure time, memory, parameters and FLOPs of a method.

Prints a row per phase and writes it as json and csv; ``profile.csv`` collects all methods that were measured.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.tables import csv_text
from posegen.runner.cell import provenance
from posegen.runner.precision import device_of
from posegen.train.profiling import Phase, in_fresh_process, measure_phase

ProfileRow = dict[str, Any]
PHASES = {"forward": "one pass", "train": "training step", "sample": "guided sampling step"}
PROFILE_COLUMNS = ("what", "ms", "img/s", "peak MiB", "GFLOP", "TFLOP/s", "% of matrix rate")
SHARE = " %"  # end of the names of columns that only the files have; the printed notes have them in words
#: Setting -> (its usual value, the developers' benchmark of another one).
DEVELOPERS_BENCHMARKS = {
    "compare": (False, "python experiments/profile/against_official.py adapter=..."),
    "what": ("method", "python experiments/profile/metrics.py"),
}


def main(cfg: DictConfig) -> None:
    """Measures, prints a table, and writes it."""
    phases = phases_of(cfg)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    rows, notes = measured(config, phases)
    print("\n".join([*text_table(rows), "", *notes]))
    left = ("hydra", "paths", "logger", "estimator", "protocol", "data")
    settings = {key: value for key, value in config.items() if key not in left}
    out = f"{cfg.out}{''.join(f'-{way}' for way in unusual_ways(config))}"
    facts = {"rows": rows, "notes": notes, "settings": settings, "device": device_name(cfg), **provenance()}
    write_json(Path(f"{out}.json"), facts)
    write_text(Path(f"{out}.csv"), csv_text(rows[0], (list(row.values()) for row in rows)))
    folder = Path(cfg.paths.output) / cfg.study
    merged = collected_rows(folder)
    write_text(folder / "profile.csv", csv_text(merged[0], (list(row.values()) for row in merged)))
    print(f"\n{out}.json (also .csv)")
    print(f"{folder / 'profile.csv'}: all methods and ways of computing that were measured there")


def phases_of(cfg: DictConfig) -> list[Phase]:
    """The phases to measure; a `UserError` where there are none or a setting cannot be used."""
    for key, (usual, script) in DEVELOPERS_BENCHMARKS.items():
        if cfg.get(key, usual) != usual:
            raise UserError(f"{key}={cfg[key]} is a developers' benchmark outside the package: {script}")
    method: Any = get_class(cfg.adapter._target_)
    wanted = list(cfg.phases)
    if not method.ranked:
        raise UserError(f"adapter {cfg.method} is a reference row and computes nothing; choose a method with adapter=")
    if possible := [phase for phase in wanted if phase != "train" or method.trainable]:
        return possible
    raise UserError(f"phases={wanted}: nothing of that is done by adapter {cfg.method}; add sample")


def measured(config: Mapping[str, Any], phases: Sequence[Phase]) -> tuple[list[ProfileRow], list[str]]:
    """(one row per phase, notes): time, memory, FLOPs, their share of the device's matrix rate, and shares of time."""
    rows: list[ProfileRow] = []
    notes: list[str] = []
    found: dict[str, Any] = {}
    for phase in phases:
        found = in_fresh_process(measure_phase, config, phase)
        seconds, flops, rate = min(found["seconds"]), found["flops"] or 0, found["matrix_rate"]
        passes = config["sampler"]["steps"] if phase == "sample" else 1
        speeds = (flops / 1e9 or None, flops / seconds / 1e12 or None, 100 * flops / seconds / rate or None)
        images = config["batch"] / (seconds * passes)
        figures = (PHASES[phase], 1000 * seconds, images, found["memory_mb"], *speeds)
        shares = {kind + SHARE: 100 * share for kind, share in found["shares"].items()}
        rows.append(dict(zip(PROFILE_COLUMNS, figures, strict=True)) | shares)
        largest = sorted(found["shares"].items(), key=lambda item: -item[1])
        words = (f"{kind} {100 * share:.0f} %" for kind, share in largest if share >= 0.01)
        notes.append(f"time, {PHASES[phase]}: {', '.join(words)}")
    rate = f"matrix rate, measured: {found['matrix_rate'] / 1e12:.3g} TFLOP/s in {config['trainer']['precision']}"
    notes += [rate, parameters_note(found)]
    if "sample" in phases:
        notes.append(f"img/s of sampling are of {config['sampler']['steps']} steps, without encoding and decoding")
    return rows, [*notes, conditions_note(config)]


def parameters_note(found: Mapping[str, Any]) -> str:
    unet, adapter, trained = (f"{found[f'{name}_parameters'] / 1e6:.2f} M" for name in ("unet", "adapter", "trained"))
    return f"parameters: U-Net {unet}, adapter {adapter}, trained {trained}"


def conditions_note(config: Mapping[str, Any]) -> str:
    """The conditions that the numbers hold for."""
    flags = [*unusual_ways(config), f"checkpointing {config['compute']['checkpointing']}"]
    size = [f"{config['size']} px", f"batch {config['batch']}", config["trainer"]["precision"]]
    size.append(f"{config['budget']['threads']} CPU thread(s)")
    method = f"adapter {config['method']} on backbone {config['backbone_name']}"
    return f"{method}: {', '.join([*size, *flags])}; the best of {config['repeats']}"


def collected_rows(folder: Path) -> list[ProfileRow]:
    """The rows of all measurements below a folder, with the settings that they hold for."""
    rows: list[ProfileRow] = []
    for file in sorted(folder.rglob("*.json")):
        found = read_json(file)
        settings = (found.get("settings") if isinstance(found, dict) else None) or {}
        if "backbone_name" not in settings or settings.get("compare"):
            continue
        try:
            rows += measured_rows(found, settings)
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no measurement of posegen profile; delete it or move it away") from error
    return rows


def measured_rows(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[ProfileRow]:
    """The rows of one measurement."""
    facts = {"method": settings["method"], "backbone": settings["backbone_name"]}
    facts |= {"computed": " ".join(unusual_ways(settings)) or "eager"}
    facts |= {"precision": settings["trainer"]["precision"], "checkpointing": settings["compute"]["checkpointing"]}
    facts |= {"pixels": settings["size"], "batch": settings["batch"], "device": found["device"]}
    return [facts | {key: row[key] for key in (*PROFILE_COLUMNS, *row) if key in row} for row in found["rows"]]


def unusual_ways(config: Mapping[str, Any]) -> list[str]:
    return [
        name.replace("compile", "compiled")
        for name in ("channels_last", "compile", "packed")
        if config["compute"].get(name)
    ]


def device_name(cfg: DictConfig) -> str:
    device = device_of(cfg.trainer.accelerator)
    if device.type == "mps":
        return f"GPU of a Mac ({platform.machine()})"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cfg.budget.threads} CPU thread(s)"


def text_table(rows: Sequence[ProfileRow]) -> list[str]:
    """Rows as text columns, the first to the left."""
    columns = [column for column in rows[0] if not column.endswith(SHARE)]
    grid = [columns, *([figure_text(row[column]) for column in columns] for row in rows)]
    first, *widths = [max(map(len, cells)) for cells in zip(*grid, strict=True)]
    lines = ([name.ljust(first), *map(str.rjust, figures, widths)] for name, *figures in grid)
    return ["  ".join(line).rstrip() for line in lines]


def figure_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if 0 < abs(value) < 5e-4:
        return f"{value:.1e}"
    return f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 3}f}"
