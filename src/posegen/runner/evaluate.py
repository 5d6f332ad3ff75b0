"""Judging: what the estimator finds in the generated pictures, one record per image."""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig

from posegen.runner.batches import fixed_batches
from posegen.runner.cells import digest, identity, locked
from posegen.runner.parts import Parts
from posegen.runner.pictures import SHOWN, picture, read_png, write_png
from posegen.runner.progress import Progress
from posegen.runner.sample import sampled


def evaluate(cfg: DictConfig) -> None:
    """The verb ``posegen evaluate``: samples the test split with a trained method, judges it and prints the metrics."""
    from posegen.runner.table import row_of, terminal_row

    row, _ = row_of([sampled(cfg, judge).folder], Parts(cfg).protocol)
    print(terminal_row(row))


def judge(parts: Parts, folder: Path) -> None:
    """Writes ``records.csv`` and ``features.npz`` of the pictures in ``folder/samples``; does nothing where they exist."""
    if (folder / "records.csv").is_file():
        return
    shutil.copytree(reference(parts), folder / "reference", dirs_exist_ok=True)
    data, judged = parts.data("test"), []
    with Progress(folder, "judge", len(data), 0, "img", parts.cfg.trainer.progress) as progress:
        for rows in fixed_batches(len(data), parts.sampler.batch):
            found = parts.protocol.judge(parts.estimator, parts.kind.read(folder / "samples", rows), [data[i] for i in rows])
            for i, judgement in zip(rows, found, strict=True):
                if i < SHOWN:
                    sample = read_png(picture(folder / "samples", i))
                    write_png(picture(folder / "judged", i), parts.kind.shown(sample, judgement))
            judged += found
            progress.update(len(rows))
    parts.protocol.write(folder, parts.protocol.records(judged))


def reference(parts: Parts) -> Path:
    """The folder with the records of the validation split's real images, which distances between sets compare with; judged once and cached.

    They are not the test images, so that the row of real images shows the distance that two samples of reality have.
    """
    data, judged = parts.data("validation"), []
    data.prepare()
    protocol = {k: v for k, v in identity(parts.cfg)["protocol"].items() if k not in ("resamples", "level")}
    folder = Path(parts.cfg.paths.cache) / "reference" / digest([data.identity, identity(parts.cfg)["estimator"], protocol])
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not (folder / "records.csv").is_file():
            for rows in fixed_batches(len(data), parts.sampler.batch):
                samples = [data[i] for i in rows]
                judged += parts.protocol.judge(parts.estimator, parts.kind.real(samples), samples, real=True)
            parts.protocol.write(folder, parts.protocol.records(judged))
    return folder
