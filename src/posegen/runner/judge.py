"""Judging: what the estimator finds in the generated pictures, one record per image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from posegen.metrics.base import Judged
from posegen.report.wandb import log_results
from posegen.runner.batches import fixed_batches
from posegen.runner.cell import digest, identity, locked
from posegen.runner.components import Parts, reference_split
from posegen.runner.devices import device_of
from posegen.runner.generate import UNFINISHED, sampled
from posegen.runner.images import picture, pictured, read_png, write_png
from posegen.runner.progress import Progress
from posegen.runner.shards import WHOLE, Shard


def evaluate(cfg: DictConfig) -> None:
    """The verb ``posegen evaluate``: samples the test split with a trained method, judges it and prints the metrics."""
    from posegen.report.formats import row_terminal
    from posegen.report.rows import row_of

    cell = sampled(cfg, judge, judged, conclude)
    if not cell.finished():
        print(f"{cell.folder}{UNFINISHED}")
        return
    protocol = Parts(cfg).protocol
    row, _ = row_of([cell.folder], protocol)
    print(row_terminal(row, protocol.headline()))


def judge(parts: Parts, folder: Path) -> None:
    """Judges this process's share of the pictures in ``folder/samples``, and of the real ones they are compared with."""
    data, samples = parts.data("test"), folder / "samples"
    reference(parts, parts.shard)
    shown, device = pictured(data), judging_device(parts)

    def examined(rows: range) -> list[Judged]:
        images = parts.kind.read(samples, rows).to(device)
        found = parts.protocol.judge(
            parts.estimator, images, [data.seen(i, image=parts.protocol.compares) for i in rows]
        )
        for i, judgement in zip(rows, found, strict=True):
            if i in shown:
                write_png(picture(folder / "judged", i), parts.kind.shown(read_png(picture(samples, i)), judgement))
        return found

    Judgement(folder, len(data), parts).fill(examined, parts.shard, "judge")


def judging_device(parts: Parts) -> torch.device:
    """Where images are judged; the estimator is brought there, the observers follow the images."""
    device = device_of(parts.cfg.trainer.accelerator)
    if isinstance(parts.estimator, torch.nn.Module):
        parts.estimator.to(device)
    return device


def judged(parts: Parts, folder: Path) -> bool:
    """Whether every picture of a cell has been judged, by whomever."""
    return Judgement(folder, len(parts.data("test")), parts).whole


def conclude(parts: Parts, folder: Path) -> None:
    """Writes ``records.csv`` and ``features.npz`` of a cell whose pictures have all been judged, puts the records of real images beside them, and shows both
    to the dashboard."""
    shutil.copytree(reference(parts), folder / "reference", dirs_exist_ok=True)
    Judgement(folder, len(parts.data("test")), parts).merge()
    log_results(parts, folder)


def reference(parts: Parts, shard: Shard = WHOLE) -> Path:
    """The folder with the records of the real images that distances between sets compare with; judged once and cached.

    They are those of the split that ``data.reference`` names. By default it is not the test split, so that the row of real images shows the distance that two
    samples of reality have; the published protocols compare with the test images themselves.

    Args:
        shard: which batches to judge here; the records are complete when all have been.
    """
    data = parts.data(reference_split(parts.cfg))
    data.prepare()
    protocol = {k: v for k, v in identity(parts.cfg)["protocol"].items() if k not in ("resamples", "level")}
    folder = (
        Path(parts.cfg.paths.cache)
        / "reference"
        / digest([data.identity, identity(parts.cfg)["estimator"], protocol, parts.sampler.batch])
    )

    def examined(rows: range) -> list[Judged]:
        samples = [data[i] for i in rows]
        return parts.protocol.judge(parts.estimator, parts.kind.real(samples).to(device), samples, real=True)

    folder.mkdir(parents=True, exist_ok=True)
    device = judging_device(parts)
    judgement = Judgement(folder, len(data), parts)
    with locked(folder.with_suffix(f".{shard.index}-{shard.count}.lock")):
        judgement.fill(examined, shard, "judge real images")
    if shard == WHOLE:
        with locked(folder.with_suffix(".lock")):
            judgement.merge()
    return folder


class Judgement:
    """The records of a set of images, made batch by batch.

    Each batch's records are written when they are there, so that an interruption loses one batch and several processes can share the work; whole, they are
    merged into ``records.csv`` and ``features.npz`` of the folder.

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

    def fill(self, examined: Callable[[range], list[Judged]], shard: Shard, stage: str) -> None:
        """Records a share of the batches, those that are not there yet."""
        own = [] if self.merged else shard.own(self.batches)
        missing = [rows for rows in own if not self._done(rows)]
        if not missing:
            return
        total, left = (sum(map(len, batches)) for batches in (own, missing))
        with Progress(
            self.folder, shard.named(stage), total, total - left, "img", self.parts.cfg.trainer.progress
        ) as progress:
            for rows in missing:
                self.parts.protocol.write(self._place(rows), self.parts.protocol.records(examined(rows)))
                progress.update(len(rows))

    def merge(self) -> None:
        """Puts the records of all batches together; they have the same bytes whoever made them."""
        if not self.merged:
            pieces = [self.parts.protocol.read(self._place(rows)) for rows in self.batches]
            self.parts.protocol.write(
                self.folder, {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
            )
        shutil.rmtree(self.folder / "batches", ignore_errors=True)

    def _place(self, rows: range) -> Path:
        return self.folder / "batches" / f"{rows.start:06d}"

    def _done(self, rows: range) -> bool:
        return (self._place(rows) / "records.csv").is_file()  # of its two files the one that is written last
