"""Dress a person as another picture shows, all else exactly as it was.

The picture's own pose is the target, the other picture the source. What is dressed are people of one's own pictures, or those of a data set that knows where
clothes are, so that it can be measured whether the result wears what the source shows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from posegen.data.base import Transfers, to_tensor, to_uint8
from posegen.data.user_images import fitted, own_mask, own_picture
from posegen.errors import UserError
from posegen.io.text import write_text
from posegen.metrics.garments import summarised, transferred
from posegen.poses.drawing import overlay
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Parts
from posegen.runner.devices import device_of
from posegen.runner.generate import UNFINISHED, batch_of, sampled
from posegen.runner.images import SHOWN, enlarged, picture, read_png, under, visible, write_png
from posegen.runner.inpainting import Kept, pasted
from posegen.runner.progress import Progress
from posegen.runner.prompts import read, sources

OWN = "posegen.data.transfers.OwnTransfer"
FILES = ("picture", "mask", "source")
SIDE = 192  # least height of a picture in the comparison


def main(cfg: DictConfig) -> None:
    """Dresses the person in ``cfg.picture``, or people of the test split, and writes pictures, a comparison and records."""
    for name in ("dilate", "soft"):
        if not isinstance(cfg[name], int) or cfg[name] < 0:
            raise UserError(f"{name}={cfg[name]}: expected a whole number, 0 or more")
    cell = sampled(cfg, whole=dressed_all, finish=conclude, asked=own, make=dress)
    if not cell.finished():
        print(f"{cell.folder}{UNFINISHED}")
        return
    print(
        f"{cell.folder / 'samples'}\n{cell.folder / 'comparison.png'}\n{(cell.folder / 'summary.csv').read_text(encoding='utf-8')}",
        end="",
    )


# What is asked for.


def own(cfg: DictConfig) -> None:
    """Makes ``cfg.picture``, where there is one, the test split; without one the data set has to know where clothes are.

    Raises:
        UserError: a file is missing or cannot be used, or nobody is in the picture.
    """
    files = {name: cfg[name] for name in FILES}
    if all(value is None for value in files.values()):
        if cfg.poses is not None or cfg.prompt is not None:
            raise UserError(
                "poses and prompt belong to a picture, and there is none; set picture=FILE, or say prompts with data.prompt=TEXT"
            )
        return
    if missing := [name for name, value in files.items() if value is None]:
        raise UserError(
            f"{missing[0]} is not set; a person of your own needs picture=FILE (who), mask=FILE (where, white) and source=FILE (what to wear)"
        )
    try:
        image = own_picture(cfg.picture, "picture")
        own_mask(cfg.mask, image)
    except ValueError as error:
        raise UserError(str(error)) from error
    shown, parts = sources(cfg), Parts(cfg)
    size = canvas(cfg, parts)
    people = people_of(cfg, parts, image, size)
    paths = {name: str(Path(cfg[name]).expanduser().resolve()) for name in ("picture", "mask")}
    prompt = "" if cfg.prompt is None else str(cfg.prompt)
    node = {
        "_target_": OWN,
        **paths,
        "sources": shown,
        "people": people.tolist(),
        "size": list(size),
        "prompt": prompt,
        "images": int(cfg.images),
    }
    OmegaConf.set_struct(cfg, False)
    cfg.data = {"test": node}
    cfg.dataset = "own"


def canvas(cfg: DictConfig, parts: Parts) -> tuple[int, int]:
    """(height, width) that is computed with: as asked for, or what the backbone was trained on."""
    if cfg.size is not None:
        size = (int(cfg.size), int(cfg.size)) if isinstance(cfg.size, int) else (int(cfg.size[0]), int(cfg.size[1]))
        parts.backbone.latent_shape(size)  # refuses sides that it cannot make
        return size
    return parts.backbone.usual_size


def people_of(cfg: DictConfig, parts: Parts, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The people ``[P, 17, 3]`` of a picture, on the canvas: from ``cfg.poses``, which are on the picture's pixels, or as the estimator sees them.

    Raises:
        UserError: nobody is there.
    """
    if cfg.poses is not None:
        [people] = read(Path(cfg.poses).expanduser(), 1, image.shape[:2])
        keypoints = np.asarray(people, np.float32)
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * np.divide(size[::-1], image.shape[1::-1]) - 0.5
        return np.where(keypoints[..., 2:] > 0, keypoints, 0)
    found = visible(parts.estimator.estimate(to_tensor(fitted(image, size))[None])[0].keypoints)
    found = found[(found[..., 2] > 0).any(-1)]
    if not len(found):
        raise UserError(
            f"picture={cfg.picture}: the estimator finds nobody in it; set poses=FILE (COCO or OpenPose json), or another estimator="
        )
    return found


def people_to_dress(parts: Parts) -> Transfers:
    """Who is dressed."""
    data = parts.data("test")
    data.prepare()
    return data.transfers(parts.cfg.count, parts.cfg.garment, parts.cfg.told)


# What is made of it.


def dress(parts: Parts, folder: Path) -> None:
    """Writes the results to ``folder/samples``; whole batches that exist are not made again."""
    people, adapter, out = people_to_dress(parts), parts.adapter, folder / "samples"
    batches = parts.shard.own(fixed_batches(len(people), parts.sampler.batch))
    missing = [rows for rows in batches if not all(picture(out, i).is_file() for i in rows)]
    device = device_of(parts.cfg.trainer.accelerator)
    parts.backbone.to(device)  # no sub-module of the adapter
    adapter.eval().to(device)
    total, left = sum(map(len, batches)), sum(map(len, missing))
    with Progress(
        folder,
        parts.shard.named("transfer"),
        total,
        total - left,
        "img",
        parts.cfg.trainer.progress if left else "none",
    ) as progress:
        for rows in missing:
            batch = batch_of(parts, adapter, rows, data=people, fields=frozenset({"images"}))
            masks = [people.mask_of(i) for i in rows]
            kept = Kept.of(
                parts.backbone, batch, torch.stack([at(mask, batch.size) for mask in masks]), parts.cfg.dilate
            )
            made = to_uint8(adapter.generate(batch, partial(parts.sampler, after=kept)))  # type: ignore[misc]
            for i, mask, each in zip(rows, masks, made, strict=True):
                write_png(picture(out, i), pasted(people.picture_of(i), mask, each, parts.cfg.soft))
            progress.update(len(rows))


def at(mask: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """``[h, w] bool``: a mask at another size, whose pixels count all that they cover."""
    return torch.from_numpy(fitted(mask.astype(np.uint8) * 255, size) > 0)


def dressed_all(parts: Parts, folder: Path) -> bool:
    return all(picture(folder / "samples", i).is_file() for i in range(len(people_to_dress(parts))))


def conclude(parts: Parts, folder: Path) -> None:
    """Writes ``records.csv``, ``summary.csv`` and ``comparison.png`` from the pictures as they lie on disk."""
    people = people_to_dress(parts)
    results = [read_png(picture(folder / "samples", i)) for i in range(len(people))]
    rows = [
        transferred(people.picture_of(i), people.mask_of(i), result, people.garments_of(i))
        for i, result in enumerate(results)
    ]
    named = [
        {"id": people[i].id, "source": "+".join(each.id for each in people.sources_of(i)), **row}
        for i, row in enumerate(rows)
    ]
    write_text(folder / "records.csv", table(named))
    write_text(folder / "summary.csv", table(summarised(rows, parts.protocol.resamples, parts.protocol.level)))
    write_png(folder / "comparison.png", comparison(people, results[:SHOWN]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    return out.getvalue()


def comparison(people: Transfers, results: Sequence[np.ndarray]) -> np.ndarray:
    """Side by side: the person, what becomes anew (white), the pose, what is to be worn, and the result, all at the size that is computed with."""
    size, lines = people.size, []
    zoom = -(-SIDE // size[0])
    for i, result in enumerate(results):
        worn = [sample.image for sample in people.sources_of(i)]
        mask = people.mask_of(i)[..., None].repeat(3, 2).astype(np.uint8) * 255
        first, *rest = [
            fitted(each, size).repeat(zoom, 0).repeat(zoom, 1) for each in (people.picture_of(i), mask, *worn, result)
        ]  # type: ignore[arg-type]
        pose = overlay(np.zeros_like(first), enlarged(people[i].keypoints, zoom))
        lines.append(np.concatenate([first, rest[0], pose, *rest[1:]], axis=1))
    names = ["picture", "mask", "pose", *["source"] * len(people.sources_of(0)), "result"]
    made = under(names, [1] * len(names), lines)
    assert made is not None
    return made
