"""Measure time, memory, parameters and FLOPs of a method."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json, write_text

if TYPE_CHECKING:
    from posegen.verbs.profiling.sides import Phase

Row = dict[str, Any]
SUBJECTS = ("method", "metrics")
PHASES = ("forward", "train", "sample")
COLUMNS = ("what", "ms", "img/s", "peak MiB", "GFLOP", "TFLOP/s", "% of matrix rate")
SHARE = " %"  # how the names of columns end that only the files have; the printed table says them in its notes
WHAT = {"forward": "one pass", "train": "training step", "sample": "guided sampling step"}


def main(cfg: DictConfig) -> None:
    """Measures, prints a table, and writes it as json and csv."""
    from posegen.runner.cell import provenance
    from posegen.verbs.profiling.measure import device_name

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    if cfg.what not in SUBJECTS:
        raise UserError(f"what={cfg.what}: expected one of {', '.join(SUBJECTS)}")
    rows, notes = (
        judged(config) if cfg.what == "metrics" else (compared if cfg.compare else measured)(config, phases_of(cfg))
    )
    print("\n".join([*aligned([{k: v for k, v in row.items() if not k.endswith(SHARE)} for row in rows]), "", *notes]))
    settings = {
        key: value
        for key, value in config.items()
        if key not in ("hydra", "paths", "logger", "estimator", "protocol", "data")
    }
    folder = Path(cfg.paths.output) / cfg.study
    out = (
        str(folder / "metrics")
        if cfg.what == "metrics"
        else f"{cfg.out}{''.join(f'-{way}' for way in ways(config))}{'-compared' * cfg.compare}"
    )
    write_json(
        Path(f"{out}.json"),
        {"rows": rows, "notes": notes, "settings": settings, "device": device_name(cfg), **provenance()},
    )
    write_text(Path(f"{out}.csv"), csv_text(rows))
    print(f"\n{out}.json (also .csv)")
    if cfg.what == "method" and not cfg.compare:
        write_text(folder / "profile.csv", csv_text(collected(folder)))
        print(f"{folder / 'profile.csv'}: all methods and ways of computing that were measured there")


def ways(config: Mapping[str, Any]) -> list[str]:
    """What is unusual about the way of computing, for file names."""
    return [name.replace("compile", "compiled") for name in ("channels_last", "compile") if config["trainer"][name]]


def collected(folder: Path) -> list[Row]:
    """The rows of all measurements of single methods below a folder, with what they hold for."""
    rows: list[Row] = []
    for file in sorted(folder.rglob("*.json")):
        found = read_json(file)
        settings = found.get("settings") or {}
        if settings.get("what") != "method" or settings.get("compare"):
            continue
        t = settings["trainer"]
        facts = {
            "method": settings["method"],
            "backbone": settings["backbone_name"],
            "computed": " ".join(ways(settings)) or "eager",
            "precision": t["precision"],
            "checkpointing": t["checkpointing"],
            "pixels": settings["size"],
            "batch": settings["batch"],
            "device": found["device"],
        }
        rows += [
            {**facts, **{column: row[column] for column in (*COLUMNS, *row) if column in row}} for row in found["rows"]
        ]
    return rows


def phases_of(cfg: DictConfig) -> list[Phase]:
    """The phases to measure.

    Raises:
        UserError: there are none, or a setting cannot be used.
    """
    method: Any = get_class(cfg.adapter._target_)
    wanted = list(cfg.phases)
    if unknown := sorted(set(map(str, wanted)) - set(PHASES)):
        raise UserError(f"phases={wanted}: {unknown[0]} is no phase; expected some of {', '.join(PHASES)}")
    least = {"batch": 1, "repeats": 1, "warmup": 0, "size": 1}
    if wrong := [key for key, value in least.items() if cfg[key] < value]:
        raise UserError(f"{wrong[0]}={cfg[wrong[0]]}: expected at least {least[wrong[0]]}")
    if not method.ranked:
        raise UserError(f"adapter {cfg.method} is a reference row and computes nothing; choose a method with adapter=")
    possible = [
        phase for phase in wanted if (phase != "train" or method.trainable) and (phase != "forward" or not cfg.compare)
    ]
    if not possible:
        raise UserError(
            f"phases={wanted}: nothing of that {'can be compared' if cfg.compare else f'is done by adapter {cfg.method}'}; add sample"
        )
    return possible  # type: ignore[return-value]


def measured(config: Mapping[str, Any], phases: Sequence[Phase]) -> tuple[list[Row], list[str]]:
    """One row per phase: time, memory, FLOPs, the share of the device's matrix rate that they are done at, and the shares of time by kind of computation."""
    from posegen.verbs.profiling.breakdown import said
    from posegen.verbs.profiling.measure import alone, measure_phase

    rows: list[Row] = []
    notes: list[str] = []
    found: dict[str, Any] = {}
    for phase in phases:
        found = alone(measure_phase, config, phase)
        seconds, images = min(found["seconds"]), config["batch"]
        passes = config["sampler"]["steps"] if phase == "sample" else 1
        flops, rate = found["flops"] or 0, found["matrix_rate"]
        speeds = (flops / 1e9 or None, flops / seconds / 1e12 or None, 100 * flops / seconds / rate or None)
        figures = (WHAT[phase], 1000 * seconds, images / (seconds * passes), found["memory_mb"], *speeds)
        rows.append(
            {
                **dict(zip(COLUMNS, figures, strict=True)),
                **{kind + SHARE: 100 * share for kind, share in found["shares"].items()},
            }
        )
        notes.append(f"time of a {WHAT[phase]}: {said(found['shares'])}")
    notes.append(
        f"matrix rate, measured: {found['matrix_rate'] / 1e12:.3g} TFLOP/s in {config['trainer']['precision']}"
    )
    loop = f"img/s of sampling are of {config['sampler']['steps']} steps, without encoding and decoding"
    return rows, [*notes, *counted(found), *([loop] if "sample" in phases else []), *conditions(config)]


def compared(config: Mapping[str, Any], phases: Sequence[Phase]) -> tuple[list[Row], list[str]]:
    """One row per phase, and one for the memory of training: this project, the plain form, and their ratio."""
    from posegen.verbs.profiling.measure import alone, compare_sides, measure_memory

    found = alone(compare_sides, config, list(phases))
    rows = [
        faster(WHAT[phase] + ", ms", *(1000 * min(times) for times in facts["seconds"].values()))
        for phase, facts in found["phases"].items()
    ]
    if "train" in phases:
        ours, plain = (alone(measure_memory, config, side) for side in (False, True))
        rows.append(
            {
                "what": "peak training memory, MiB",
                "posegen": ours,
                "plain": plain,
                "ratio": ours / plain,
                "ratio of": "posegen to plain",
            }
        )
    notes = [line for side, did in found["notes"].items() for line in (f"{side}:", *(f"  {what}" for what in did))]
    if (difference := found["phases"].get("sample", {}).get("difference")) is not None:
        notes.append(f"largest difference of the two sides' latents: {difference:.1e}")
    return rows, [*notes, *counted(found), *conditions(config)]


def judged(config: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """One row per comparison of a metric's fast form with a plain one."""
    from posegen.verbs.profiling.judging import measure_metrics
    from posegen.verbs.profiling.measure import alone

    facts = [
        f"{config['trainer']['threads']} CPU thread(s)",
        f"the median of {config['repeats']}",
        "ratio: plain to posegen",
        "difference: largest of the results",
    ]
    return alone(measure_metrics, config), ["; ".join(facts)]


def faster(what: str, ours: float, plain: float) -> Row:
    return {"what": what, "posegen": ours, "plain": plain, "ratio": plain / ours, "ratio of": "plain to posegen"}


def counted(found: Mapping[str, Any]) -> list[str]:
    """The numbers of parameters in a line."""
    unet, adapter, trained = (f"{found[f'{name}_parameters'] / 1e6:.2f} M" for name in ("unet", "adapter", "trained"))
    return [f"parameters: U-Net {unet}, adapter {adapter}, trained {trained}"]


def conditions(config: Mapping[str, Any]) -> list[str]:
    """Under what the numbers hold."""
    t = config["trainer"]
    flags = [name for name in ("channels_last", "compile") if t[name]] + [f"checkpointing {t['checkpointing']}"]
    facts = [
        f"{config['size']} px",
        f"batch {config['batch']}",
        t["precision"],
        f"{t['threads']} CPU thread(s)",
        *flags,
    ]
    return [
        f"adapter {config['method']} on backbone {config['backbone_name']}: {', '.join(facts)}; the best of {config['repeats']}"
    ]


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows as text columns."""
    grid = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]


def shown(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return (
        f"{value:.1e}"
        if 0 < abs(value) < 5e-4
        else f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 3}f}"
    )


def csv_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
