"""People dressed as another picture shows; everything outside a mask stays as it was, pixel by pixel.

The people are those of a user's pictures, or of a data set that knows where clothes are, so that it can be measured
whether the result wears what the source shows.
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
from omegaconf import DictConfig

from posegen.data.base import Transfers, to_tensor, to_uint8
from posegen.data.user_images import stretch_to, user_mask, user_picture
from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.metrics.garments import summarised, transferred
from posegen.poses.drawing import overlay
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Components
from posegen.runner.experiment import fields_needed, replaced
from posegen.runner.generate import Generation, batch_of, ready
from posegen.runner.images import SHOWN, absent, absent_pictures, enlarged, picture, read_png, under, visible, write_png
from posegen.runner.user_requests.inpainting import Kept, pasted
from posegen.runner.user_requests.prompts import guides_from, source_files

FILES = ("picture", "mask", "source")
SIDE = 192  # least height of a picture in the comparison


def with_picture(cfg: DictConfig) -> DictConfig:
    """The configuration with ``picture``, if any, as the test split; else the data must know where clothes are."""
    if "source" not in fields_needed(cfg):
        fix = "choose a method that does, for instance adapter=dnaf"
        raise UserError(f"adapter={cfg.method} reads no picture to take clothes from; {fix}")
    files = {name: cfg[name] for name in FILES}
    if all(value is None for value in files.values()):
        if cfg.poses is not None or cfg.prompt is not None:
            fix = "set picture=FILE, or give the prompts of the data set with data.prompt=TEXT"
            raise UserError(f"poses and prompt belong to a picture, and there is none; {fix}")
        return cfg
    if missing := [name for name, value in files.items() if value is None]:
        fix = "picture=FILE (who), mask=FILE (where, white) and source=FILE (what to wear)"
        raise UserError(f"{missing[0]} is not set; a person of your own needs {fix}")
    try:
        image = user_picture(cfg.picture, "picture")
        user_mask(cfg.mask, image)
    except ValueError as error:
        raise UserError(str(error)) from error
    worn, components = source_files(cfg), Components(cfg)
    size = components.backbone.usual_size
    if cfg.size is not None:
        sides: Any = [cfg.size] * 2 if isinstance(cfg.size, int) else list(cfg.size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(f"size={cfg.size}: expected [height,width] in pixels, or the side of a square")
        size = (int(sides[0]), int(sides[1]))
        components.backbone.latent_shape(size)  # refuses sides that it cannot make
    node = {
        "_target_": "posegen.data.user_samples.UserTransfer",
        **{name: str(Path(cfg[name]).expanduser().resolve()) for name in ("picture", "mask")},
        "sources": worn,
        **people_of(cfg, components, image, size),
        "size": list(size),
        "prompt": "" if cfg.prompt is None else str(cfg.prompt),
        "images": int(cfg.images),
    }
    return replaced(cfg, data={"test": node}, dataset="own")


def people_of(cfg: DictConfig, components: Components, image: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """The people ``[P, 17, 3]`` of a picture, on the canvas: ``cfg.poses``, on the picture's pixels, or estimated; or
    the file of a drawn skeleton."""
    if cfg.poses is not None:
        guide, *others = guides_from(cfg, str(cfg.poses), (image.shape[0], image.shape[1]))
        if others:
            raise UserError(f"poses={cfg.poses} holds {len(others) + 1} images; give that of the picture alone")
        keypoints = np.asarray(guide.people, np.float32).reshape(-1, 17, 3)
        keypoints[..., :2] = (keypoints[..., :2] + 0.5) * np.divide(size[::-1], image.shape[1::-1]) - 0.5
        people = {"people": np.where(keypoints[..., 2:] > 0, keypoints, 0).tolist()}
        return people | ({"drawing": guide.drawing} if guide.drawing else {})
    found = visible(components.estimator.estimate(to_tensor(stretch_to(image, size))[None])[0].keypoints)
    found = found[(found[..., 2] > 0).any(-1)]
    if not len(found):
        fix = "set poses=FILE (COCO or OpenPose json), or another estimator="
        raise UserError(f"picture={cfg.picture}: the estimator finds nobody in it; {fix}")
    return {"people": found.tolist()}


class Transfer(Generation):
    """Dresses people: pictures, a comparison and records."""

    def __init__(self, components: Components, folder: Path, weights: Path | None) -> None:
        super().__init__(components, folder, weights)
        self.data.prepare()
        cfg = components.cfg
        self.people: Transfers = self.data.transfers(cfg.count, cfg.garment, cfg.told)

    sourced: Any = frozenset()  # the comparison shows the sources

    def lost(self) -> list[Path]:
        results = (self.folder / name for name in ("records.csv", "summary.csv", "comparison.png"))
        return [*absent_pictures(self.samples, range(len(self.people)), needed=True), *absent(*results)]

    def batches(self) -> list[range]:
        return fixed_batches(len(self.people), self.components.sampler.batch)

    def run(self) -> None:
        """Writes the results to ``folder/samples``."""
        components, people, todo = self.components, self.people, self.todo()
        adapter = ready(components, self.weights)
        prompts: list[str] = []
        with self.progress("transfer", todo) as progress:
            for rows in todo:
                batch = batch_of(components, adapter, rows, data=people, fields=frozenset({"images"}))
                prompts += batch.prompts
                masks = [people.mask_of(i) for i in rows]
                # A pixel of a small mask counts all that it covers.
                reduced = [stretch_to(mask.astype(np.uint8) * 255, batch.size) > 0 for mask in masks]
                small = torch.from_numpy(np.stack(reduced))
                kept = Kept.of(components.backbone, batch, small, components.cfg.dilate)
                images = to_uint8(adapter.generate(batch, partial(components.sampler, after=kept)))  # type: ignore[misc]
                for i, mask, image in zip(rows, masks, images, strict=True):
                    write_png(picture(self.samples, i), pasted(people.picture_of(i), mask, image, components.cfg.soft))
                progress.update(len(rows))
        self.tell_cut(prompts)

    def finish(self) -> None:
        """Writes ``records.csv``, ``summary.csv`` and ``comparison.png`` from the pictures on disk."""
        people, protocol = self.people, self.components.protocol
        results = [read_png(picture(self.samples, i)) for i in range(len(people))]
        rows, named = [], []
        for i, result in enumerate(results):
            rows.append(transferred(people.picture_of(i), people.mask_of(i), result, people.garments_of(i)))
            source = "+".join(each.id for each in people.sources_of(i))
            named.append({"id": people[i].id, "source": source, **rows[i]})
        write_text(self.folder / "records.csv", table(named))
        write_text(self.folder / "summary.csv", table(summarised(rows, protocol.resamples, protocol.level)))
        write_png(self.folder / "comparison.png", comparison(people, results[:SHOWN]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue()


def comparison(people: Transfers, results: Sequence[np.ndarray]) -> np.ndarray:
    """Side by side, at the sampled size: person, mask (white: sampled), pose, what is to be worn, and the result."""
    size, lines = people.size, []
    zoom = -(-SIDE // size[0])
    for i, result in enumerate(results):
        worn = [sample.image for sample in people.sources_of(i) if sample.image is not None]
        mask = people.mask_of(i)[..., None].repeat(3, 2).astype(np.uint8) * 255
        pictures = (people.picture_of(i), mask, *worn, result)
        first, *rest = [stretch_to(each, size).repeat(zoom, 0).repeat(zoom, 1) for each in pictures]
        pose = overlay(np.zeros_like(first), enlarged(people[i].keypoints, zoom))
        lines.append(np.concatenate([first, rest[0], pose, *rest[1:]], axis=1))
    names = ["picture", "mask", "pose", *["source"] * len(people.sources_of(0)), "result"]
    made = under(names, [1] * len(names), lines)
    assert made is not None
    return made
