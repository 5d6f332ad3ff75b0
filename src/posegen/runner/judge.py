"""Judging: what the estimator finds in the generated pictures, one record per image."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.metrics.base import Judged
from posegen.runner.batches import fixed_batches
from posegen.runner.cell import identity
from posegen.runner.components import Parts, reference_split
from posegen.runner.images import picture, pictured, read_png, write_png
from posegen.runner.precision import device_of
from posegen.runner.progress import Progress
from posegen.runner.stage import WHOLE, Shard, Stage


class Judging(Stage):
    """Judges the pictures in ``folder/samples``, and the real ones they are compared with.

    Finished, the folder has ``records.csv`` and ``features.npz``, and those of the real images in ``reference``.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts, self.folder = parts, folder

    @property
    def judgement(self) -> Judgement:
        return Judgement(self.folder, len(self.parts.data("test")), self.parts)

    def todo(self) -> Sequence[Any]:
        """The batches of pictures, then those of real images."""
        data = self.parts.data(reference_split(self.parts.cfg))
        real = Judgement(reference_folder(self.parts), len(data), self.parts)
        return [*self.judgement.missing(self.parts.shard), *real.missing(self.parts.shard)]

    def run(self) -> None:
        parts, samples = self.parts, self.folder / "samples"
        judge_reference(parts, parts.shard)
        data, shown, device = parts.data("test"), pictured(parts.data("test")), judging_device(parts)

        def examine(rows: range) -> list[Judged]:
            images = parts.kind.read(samples, rows).to(device)
            targets = [data.seen(i, image=parts.protocol.compares) for i in rows]
            found = parts.protocol.judge(parts.estimator, images, targets)
            for i, judged in zip(rows, found, strict=True):
                if i in shown:
                    drawn = parts.kind.shown(read_png(picture(samples, i)), judged)
                    write_png(picture(self.folder / "judged", i), drawn)
            return found

        self.judgement.fill(examine, parts.shard, "judge")

    def done(self) -> bool:
        return self.judgement.whole

    def finish(self) -> None:
        shutil.copytree(judge_reference(self.parts), self.folder / "reference", dirs_exist_ok=True)
        self.judgement.merge()


def judging_device(parts: Parts) -> torch.device:
    """The device that judges; the estimator is moved there, the observers follow the images."""
    device = device_of(parts.cfg.trainer.accelerator)
    if isinstance(parts.estimator, torch.nn.Module):
        parts.estimator.to(device)
    return device


def reference_folder(parts: Parts) -> Path:
    """Where the records of the real images are cached, by everything they depend on."""
    data, known = parts.data(reference_split(parts.cfg)), identity(parts.cfg)
    data.prepare()
    protocol = {key: value for key, value in known["protocol"].items() if key not in ("resamples", "level")}
    key = value_hash([data.identity, known["estimator"], protocol, parts.sampler.batch])
    return Path(parts.cfg.paths.cache) / "reference" / key


def judge_reference(parts: Parts, shard: Shard = WHOLE) -> Path:
    """The folder with the records of the real images that distances between sets compare with.

    They are those of the split that ``data.reference`` names. By default it is not the test split, so that the row of
    real images shows the distance between two samples of reality; the published protocols compare with the test images.

    Args:
        shard: which batches to judge here; the records are complete when all have been judged.
    """
    data, folder = parts.data(reference_split(parts.cfg)), reference_folder(parts)
    device = judging_device(parts)

    def examine(rows: range) -> list[Judged]:
        samples = [data[i] for i in rows]
        return parts.protocol.judge(parts.estimator, parts.kind.real(samples).to(device), samples, real=True)

    folder.mkdir(parents=True, exist_ok=True)
    judgement = Judgement(folder, len(data), parts)
    with locked(folder.with_suffix(f".{shard.index}-{shard.count}.lock")):
        judgement.fill(examine, shard, "judge real images")
    if shard == WHOLE:
        with locked(folder.with_suffix(".lock")):
            judgement.merge()
    return folder


class Judgement:
    """The records of a set of images, written batch by batch.

    An interruption loses one batch, and several processes can share the work. Whole, the batches are merged into
    ``records.csv`` and ``features.npz`` of the folder.

    Args:
        folder: where the records lie.
        count: number of images.
    """

    def __init__(self, folder: Path, count: int, parts: Parts) -> None:
        self.folder, self.parts = folder, parts
        self.batches = fixed_batches(count, parts.sampler.batch)

    @property
    def merged(self) -> bool:
        return (self.folder / "records.csv").is_file()

    @property
    def whole(self) -> bool:
        return self.merged or all(self._done(rows) for rows in self.batches)

    def missing(self, shard: Shard) -> list[range]:
        """The batches of a share that have no records yet."""
        return [] if self.merged else [rows for rows in shard.select(self.batches) if not self._done(rows)]

    def fill(self, examine: Callable[[range], list[Judged]], shard: Shard, stage: str) -> None:
        """Records the missing batches of a share."""
        missing = self.missing(shard)
        if not missing:
            return
        total, left = sum(map(len, shard.select(self.batches))), sum(map(len, missing))
        mode = self.parts.cfg.progress
        with Progress(self.folder, shard.label(stage), total, total - left, "img", mode) as progress:
            for rows in missing:
                self.parts.protocol.write(self._place(rows), self.parts.protocol.records(examine(rows)))
                progress.update(len(rows))

    def merge(self) -> None:
        """Puts the records of all batches together; they have the same bytes whoever wrote them."""
        if not self.merged:
            pieces = [self.parts.protocol.read(self._place(rows)) for rows in self.batches]
            whole = {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
            self.parts.protocol.write(self.folder, whole)
        shutil.rmtree(self.folder / "batches", ignore_errors=True)

    def _place(self, rows: range) -> Path:
        return self.folder / "batches" / f"{rows.start:06d}"

    def _done(self, rows: range) -> bool:
        return (self._place(rows) / "records.csv").is_file()  # of its two files the one that is written last
