"""Judging: what the estimator finds in the generated pictures, one record per image."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from posegen.errors import UserError
from posegen.io.atomic import explained, read_json_or_empty
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.metrics.base import Judged, count_images
from posegen.metrics.records import AGAIN as RECORDS_FIX
from posegen.metrics.records import ARRAY_FILE, CSV_FILE, NOBODY, has_records
from posegen.runner.batches import fixed_batches
from posegen.runner.cell import identity
from posegen.runner.components import Components, reference_split
from posegen.runner.images import absent, absent_pictures, picture, pictured, read_png, write_png
from posegen.runner.precision import device_of
from posegen.runner.progress import Progress
from posegen.runner.stage import WHOLE, Shard, Stage

RECORD_FILES, BATCHES = (CSV_FILE, ARRAY_FILE), "batches"


class Judging(Stage):
    """Writes ``records.csv`` and ``features.npz`` of ``samples``, and of real images in ``folder/reference``."""

    def __init__(self, components: Components, folder: Path, samples: Path | None = None) -> None:
        self.components, self.folder, self.samples = components, folder, samples or folder / "samples"

    @cached_property
    def judgement(self) -> Judgement:
        return Judgement(self.folder, len(self.components.data("test")), self.components)

    def todo(self) -> Sequence[Any]:
        """The batches of pictures, then those of real images."""
        data = self.components.data(reference_split(self.components.cfg))
        real = Judgement(reference_folder(self.components), len(data), self.components, rebuilds=True)
        missing = [*self.judgement.missing(self.components.shard), *real.missing(self.components.shard)]
        return missing or self._undrawn()

    def _undrawn(self) -> list[range]:
        """The batches of this share whose pictures are judged, but were deleted."""
        if not self.judgement.merged:
            return []
        gone = {int(file.stem) for file in self._absent_drawings()}
        return [rows for rows in self.components.shard.select(self.judgement.batches) if gone & {*rows}]

    def _absent_drawings(self) -> list[Path]:
        return absent_pictures(self.folder / "judged", pictured(self.components.data("test")))

    def run(self) -> None:
        components, samples = self.components, self.samples
        judge_reference(components, components.shard)
        data, shown, device = components.data("test"), pictured(components.data("test")), judging_device(components)

        def examine(rows: range) -> list[Judged]:
            targets = [data.seen(i, image=components.protocol.compares) for i in rows]
            images = components.kind.read(samples, rows, targets[0].size).to(device)
            found = components.protocol.judge(components.estimator, images, targets)
            for i, judged in zip(rows, found, strict=True):
                if i in shown:
                    drawn = components.kind.shown(read_png(picture(samples, i)), judged)
                    write_png(picture(self.folder / "judged", i), drawn)
            return found

        self.judgement.fill(examine, components.shard, "judge")
        for rows in self._undrawn():
            examine(rows)

    def done(self) -> bool:
        return not self.judgement.missing(WHOLE)

    def lost(self) -> list[Path]:
        records = [folder / name for folder in (self.folder, self.folder / "reference") for name in RECORD_FILES]
        return [*absent(*records), *self._absent_drawings()]

    def finish(self) -> None:
        real, target = judge_reference(self.components), self.folder / "reference"
        with explained(target / CSV_FILE):
            for name in RECORD_FILES:  # into a folder in a file's place it would be copied
                if (target / name).is_dir():
                    shutil.rmtree(target / name)
            shutil.copytree(real, target, dirs_exist_ok=True)
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

    judgement = Judgement(folder, len(data), components, rebuilds=True)
    if judgement.merged and not (folder / BATCHES).exists():  # the cache of others can be read-only
        return folder
    with locked(folder.with_suffix(f".{shard.index}-{shard.count}.lock")):
        judgement.fill(examine, shard, "judge real images")
    if shard == WHOLE:
        with locked(folder.with_suffix(".lock")):
            judgement.merge()
    return folder


class Judgement:
    """The records of a set of images, written batch by batch.

    An interruption loses one batch, and several processes can share the work. Whole, the batches of ``count`` images
    are merged into ``records.csv`` and ``features.npz`` of the folder. Damaged batches, which nobody has seen yet, are
    named and judged again; the merged records are a cell's result, and stay, unless the folder ``rebuilds``.
    """

    def __init__(self, folder: Path, count: int, components: Components, rebuilds: bool = False) -> None:
        self.folder, self.components, self.rebuilds = folder, components, rebuilds
        self.owner = folder.name if rebuilds else read_json_or_empty(folder / "status.json").get("hash", NOBODY)
        self.batches = fixed_batches(count, components.sampler.batch)
        self._read: set[Path] = set()  # folders whose records have been read

    @property
    def merged(self) -> bool:
        if not self.rebuilds:
            return has_records(self.folder)
        return self._sound(self.folder, self.batches[-1].stop)

    def missing(self, shard: Shard) -> list[range]:
        """The batches of a share that have no whole records yet."""
        batches = () if self.merged else shard.select(self.batches)
        return [rows for rows in batches if not self._sound(self._place(rows), len(rows))]

    def _sound(self, folder: Path, count: int) -> bool:
        """Whether a folder has the records of ``count`` images; removes damaged ones."""
        if folder not in self._read:
            if not has_records(folder):
                return False
            try:
                found = count_images(self.components.protocol.read(folder, self.owner))
                problem = "" if found == count else f"{found} images in place of {count}"
            except (ValueError, OSError) as error:
                problem = str(error).removesuffix(RECORDS_FIX).rstrip(":; ")
            if problem:
                print(f"{folder} is damaged and judged again: {problem}", flush=True)
                with explained(folder):
                    for name in RECORD_FILES:
                        (folder / name).unlink()
                return False
            self._read.add(folder)
        return True

    def fill(self, examine: Callable[[range], list[Judged]], shard: Shard, stage: str) -> None:
        """Records the missing batches of a share."""
        missing = self.missing(shard)
        if not missing:
            return
        total, left = sum(map(len, shard.select(self.batches))), sum(map(len, missing))
        with Progress(self.folder, shard.label(stage), total, total - left, mode=self.components.cfg.progress) as bar:
            for rows in missing:
                records = self.components.protocol.records(examine(rows))
                self.components.protocol.write(self._place(rows), records, self.owner)
                bar.update(len(rows))

    def merge(self) -> None:
        """Puts the records of all batches together; they have the same bytes whoever wrote them."""
        if not self.merged:
            pieces = [self.components.protocol.read(self._place(rows)) for rows in self.batches]
            if any(piece.keys() != pieces[0].keys() for piece in pieces):
                fix = "delete that folder and run the command of this cell again"
                raise UserError(f"{self.folder / BATCHES} holds records with different columns; {fix}")
            whole = {name: [value for piece in pieces for value in piece[name]] for name in pieces[0]}
            self.components.protocol.write(self.folder, whole, self.owner)
        shutil.rmtree(self.folder / BATCHES, ignore_errors=True)

    def _place(self, rows: range) -> Path:
        return self.folder / BATCHES / f"{rows.start:06d}"
