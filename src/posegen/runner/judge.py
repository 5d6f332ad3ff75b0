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
from posegen.runner.components import Components, reference_split
from posegen.runner.images import picture, pictured, read_png, write_png
from posegen.runner.precision import device_of
from posegen.runner.progress import Progress
from posegen.runner.stage import WHOLE, Shard, Stage


class Judging(Stage):
    """Writes ``records.csv`` and ``features.npz`` of ``folder/samples``, and of real images in ``folder/reference``."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    @property
    def judgement(self) -> Judgement:
        return Judgement(self.folder, len(self.components.data("test")), self.components)

    def todo(self) -> Sequence[Any]:
        """The batches of pictures, then those of real images."""
        data = self.components.data(reference_split(self.components.cfg))
        real = Judgement(reference_folder(self.components), len(data), self.components)
        return [*self.judgement.missing(self.components.shard), *real.missing(self.components.shard)]

    def run(self) -> None:
        components, samples = self.components, self.folder / "samples"
        judge_reference(components, components.shard)
        data, shown, device = components.data("test"), pictured(components.data("test")), judging_device(components)

        def examine(rows: range) -> list[Judged]:
            images = components.kind.read(samples, rows).to(device)
            targets = [data.seen(i, image=components.protocol.compares) for i in rows]
            found = components.protocol.judge(components.estimator, images, targets)
            for i, judged in zip(rows, found, strict=True):
                if i in shown:
                    drawn = components.kind.shown(read_png(picture(samples, i)), judged)
                    write_png(picture(self.folder / "judged", i), drawn)
            return found

        self.judgement.fill(examine, components.shard, "judge")

    def done(self) -> bool:
        return not self.judgement.missing(WHOLE)

    def finish(self) -> None:
        shutil.copytree(judge_reference(self.components), self.folder / "reference", dirs_exist_ok=True)
        self.judgement.merge()


def judging_device(components: Components) -> torch.device:
    """The device that judges; the estimator is moved there, the observers follow the images."""
    device = device_of(components.cfg.trainer.accelerator)
    if isinstance(components.estimator, torch.nn.Module):
        components.estimator.to(device)
    return device


def reference_folder(components: Components) -> Path:
    """Where the records of the real images are cached, by everything they depend on."""
    data, known = components.data(reference_split(components.cfg)), identity(components.cfg)
    data.prepare()
    protocol = {key: value for key, value in known["protocol"].items() if key not in ("resamples", "level")}
    key = value_hash([data.identity, known["estimator"], protocol, components.sampler.batch])
    return Path(components.cfg.paths.cache) / "reference" / key


def judge_reference(components: Components, shard: Shard = WHOLE) -> Path:
    """The folder with the records of the real images that distances between sets compare with.

    By default their split is not the test split, so that the row of real images shows the distance between two samples
    of reality; the published protocols compare with the test images (``data.reference``).
    """
    data, folder = components.data(reference_split(components.cfg)), reference_folder(components)
    device = judging_device(components)

    def examine(rows: range) -> list[Judged]:
        samples = [data[i] for i in rows]
        images = components.kind.real(samples).to(device)
        return components.protocol.judge(components.estimator, images, samples, real=True)

    folder.mkdir(parents=True, exist_ok=True)
    judgement = Judgement(folder, len(data), components)
    with locked(folder.with_suffix(f".{shard.index}-{shard.count}.lock")):
        judgement.fill(examine, shard, "judge real images")
    if shard == WHOLE:
        with locked(folder.with_suffix(".lock")):
            judgement.merge()
    return folder


class Judgement:
    """The records of a set of images, written batch by batch.

    An interruption loses one batch, and several processes can share the work. Whole, the batches of ``count`` images
    are merged into ``records.csv`` and ``features.npz`` of the folder.
    """

    def __init__(self, folder: Path, count: int, components: Components) -> None:
        self.folder, self.components = folder, components
        self.batches = fixed_batches(count, components.sampler.batch)

    @property
    def merged(self) -> bool:
        return (self.folder / "records.csv").is_file()

    def missing(self, shard: Shard) -> list[range]:
        """The batches of a share that have no records yet; of a batch's two files these are written last."""
        batches = () if self.merged else shard.select(self.batches)
        return [rows for rows in batches if not (self._place(rows) / "records.csv").is_file()]

    def fill(self, examine: Callable[[range], list[Judged]], shard: Shard, stage: str) -> None:
        """Records the missing batches of a share."""
        missing = self.missing(shard)
        if not missing:
            return
        total, left = sum(map(len, shard.select(self.batches))), sum(map(len, missing))
        with Progress(self.folder, shard.label(stage), total, total - left, mode=self.components.cfg.progress) as bar:
            for rows in missing:
                self.components.protocol.write(self._place(rows), self.components.protocol.records(examine(rows)))
                bar.update(len(rows))

    def merge(self) -> None:
        """Puts the records of all batches together; they have the same bytes whoever wrote them."""
        if not self.merged:
            pieces = [self.components.protocol.read(self._place(rows)) for rows in self.batches]
            whole = {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
            self.components.protocol.write(self.folder, whole)
        shutil.rmtree(self.folder / "batches", ignore_errors=True)

    def _place(self, rows: range) -> Path:
        return self.folder / "batches" / f"{rows.start:06d}"
