"""Ships a trained part of the mannequin world: measures it, writes its card and copies it to ``posegen/assets``.

python experiments/mannequin_v1/release_assets.py judge outputs/train/mannequin_judge/mannequin/seed0 mannequin-v1
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from hydra.utils import instantiate
from omegaconf import OmegaConf

from posegen.config.compose import composed
from posegen.config.resolvers import asset
from posegen.data.base import PoseData
from posegen.errors import UserError
from posegen.io.atomic import read_json, replacing, write_json
from posegen.io.hashes import content_hash
from posegen.runner.cell import provenance
from posegen.runner.components import Components

IMAGES = 1000
Figures = dict[str, float]


def judge_figures(folder: Path, components: Components) -> Figures:
    """Calibrates the judge's threshold on the validation split, in place, and measures it on the test split."""
    judge: Any = instantiate({**components.cfg.estimator, "folder": str(folder)})
    validation, test = components.data("validation"), components.data("test")
    calibration = judge.calibrate(
        (images, [len(s.keypoints) for s in samples]) for samples, images in batches(validation)
    )
    judge.save(folder)
    values = judged(components, judge, test, lambda images: images)
    return {**{f"validation_{k}": v for k, v in calibration.items()}, **values, **attribute_accuracy(judge, test)}


def attribute_accuracy(judge: Any, data: PoseData) -> Figures:
    """Share of images, in percent, whose style, scene and count the attribute head names rightly."""
    right: dict[str, list[bool]] = {}
    for samples, images in batches(data):
        for sample, found in zip(samples, judge.attributes(images), strict=True):
            for name in ("style", "scene", "count"):
                right.setdefault(name, []).append(found[name] == sample.attributes[name])
    return {f"{name}_accuracy": 100 * float(np.mean(values)) for name, values in right.items()}


def autoencoder_figures(folder: Path, components: Components) -> Figures:
    """PSNR of the test images' reconstructions (mean over images, in dB) and what the judge sees in them."""
    autoencoder = AutoencoderDC.from_pretrained(folder, torch_dtype=torch.float32).eval()
    psnr: list[float] = []

    def restore(images: torch.Tensor) -> torch.Tensor:
        restored = autoencoder.decode(autoencoder.encode(images, return_dict=False)[0], return_dict=False)[0].clamp(
            -1, 1
        )
        psnr.extend((10 * torch.log10(4 / (restored - images).square().mean((1, 2, 3)))).tolist())
        return restored

    values = judged(components, components.estimator, components.data("test"), restore)
    return {"PSNR": float(np.mean(psnr)), **values}


def backbone_figures(folder: Path, components: Components) -> Figures:
    """The text-only row of the mannequin world's benchmark, beside that of fresh renders of the same captions."""
    world = str(components.cfg.dataset)
    return table_figures(components, f"benchmark/{world}", f"posegen benchmark benchmark={world}")


def transformer_figures(folder: Path, components: Components) -> Figures:
    """The same of the transformer, from a benchmark of the two rows alone."""
    study = "benchmark/mannequin_dit_gates"
    rows = "adapter=none,reference/same_caption"
    return table_figures(components, study, f"posegen benchmark {rows} backbone=mannequin_dit study={study}")


def table_figures(components: Components, study: str, command: str) -> Figures:
    table = Path(components.cfg.paths.output) / study / "table.csv"
    if not table.is_file():
        raise UserError(f"{table} is missing; run {command} with the new weights first")
    with table.open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    names = ("PCK@0.1", "AP50", "style_agreement", "scene_agreement", "count_agreement", "judge_frechet")
    shown = {"text_only": rows["none"], "same_caption": rows["reference/same_caption"]}
    figures = {f"{row}_{name}": float(values[name]) for row, values in shown.items() for name in names}
    return {**figures, "images": float(rows["none"]["n_images"])}


FIGURES: dict[str, Callable[[Path, Components], Figures]] = {
    "judge": judge_figures,
    "judge_transformer": judge_figures,
    "autoencoder": autoencoder_figures,
    "backbone": backbone_figures,
    "backbone_dit": transformer_figures,
}
#: Parts whose recipe has another name, ``experiment=mannequin_<part>`` for the rest; and whose judge does.
WORLDS = {"mannequin-v1": "mannequin", "mannequin-v2": "mannequin_v2"}  # options of data and estimator
RECIPES, ESTIMATORS = {"backbone_dit": "mannequin_dit"}, {"judge_transformer": "mannequin_transformer"}


def batches(data: PoseData, size: int = 50) -> Any:
    """(samples, images [B, 3, H, W]) over a split."""
    data.prepare()
    for start in range(0, len(data), size):
        samples = [data[i] for i in range(start, min(start + size, len(data)))]
        yield samples, torch.stack([s.tensor for s in samples])


def judged(
    components: Components, judge: Any, data: PoseData, change: Callable[[torch.Tensor], torch.Tensor]
) -> Figures:
    """The protocol's values of a split whose images were changed."""
    found = []
    with torch.inference_mode():
        for samples, images in batches(data):
            found += components.protocol.judge(judge, change(images), samples)
    records = components.protocol.records(found)
    values = {k: v for metric in components.protocol.metrics for k, v in metric.compute(records).items()}
    return {name: round(value, 4) for name, value in values.items() if not np.isnan(value)}


def ship(part: str, cell: Path, version: str, state: str = "final") -> Path:
    """Measures the part that a cell exported, writes its card and puts it in the assets.

    Args:
        part: one of `FIGURES`.
        cell: folder of its training.
        version: folder of the assets, ``mannequin-v1``; its part is replaced, so a better part of a finished version
            gets a new version.
        state: ``final`` where the part reached its gate, else ``interim``.
    """
    world = WORLDS[version]
    target, estimator = Path(asset(f"{version}/{part}")), f"estimator={ESTIMATORS.get(part, world)}"
    counts = (f"data.test.count={IMAGES}", f"data.validation.count={IMAGES}")
    with (
        composed("evaluate", (estimator, f"data={world}", *counts)) as cfg,
        replacing(target) as temporary,
    ):
        shutil.copytree(cell / "method", temporary)
        torch.set_num_threads(cfg.budget.threads)
        figures = FIGURES[part](temporary, Components(cfg))
        write_json(
            temporary / "card.json",
            card(part, version, state, cell, temporary, figures) | continued(cell, version, target),
        )
    return target


def continued(cell: Path, version: str, target: Path) -> dict[str, Any]:
    """Of a training that started from the shipped backbone: the samples that those weights had seen, and their hash."""
    if OmegaConf.load(cell / "config.yaml").backbone.get("id") != version or not (target / "card.json").is_file():
        return {}
    earlier = read_json(target / "card.json")
    return {"continues": {name: earlier[name] for name in ("samples", "sha256")}}


def card(part: str, version: str, state: str, cell: Path, weights: Path, figures: Figures) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(cell / "config.yaml"))
    assert isinstance(config, dict)
    costs = read_json(cell / "costs.json")
    return {
        "part": part,
        "version": version,
        "state": state,
        "recipe": f"posegen train experiment={RECIPES.get(part, f'{WORLDS[version]}_{part}')}",
        "data": config["data"]["train"] | {"cache": None},
        "optim": config["optim"],
        "steps": config["budget"]["steps"],
        "samples": config["budget"]["steps"] * config["optim"]["batch"],
        "train_images_per_s": costs.get("train_images_per_s"),
        "parameters": costs.get("trained_parameters"),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "sha256": content_hash(weights),
        **{k: v for k, v in provenance().items() if k != "git"},
    }


if __name__ == "__main__":
    _part, _cell, *_rest = sys.argv[1:]
    print(ship(_part, Path(_cell), *_rest))
