"""Sampling a split: one PNG per image, in fixed batches, continued where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from posegen.adapters.base import Adapter
from posegen.data.base import PoseBatch, PoseData
from posegen.io.text import write_text
from posegen.runner.batches import Needs, collate, fixed_batches
from posegen.runner.cell import Cell
from posegen.runner.components import Parts, reference_split
from posegen.runner.devices import device_of
from posegen.runner.images import keep_sources, pictured
from posegen.runner.progress import Progress
from posegen.runner.shards import share

Stage = Callable[[Parts, Path], None]
UNFINISHED = ": this share is done, others are not; whoever does the last one finishes the cell"


def sample(cfg: DictConfig) -> None:
    """The verb ``posegen sample``: generates the images of ``data.test``, or of a prompt, with a trained method."""
    from posegen.runner.prompts import look

    cell = sampled(cfg, finish=look if cfg.prompt is not None else None)
    print(f"{cell.folder / 'samples'}{'' if cell.finished() else UNFINISHED}")


def sampled(
    cfg: DictConfig,
    examine: Stage | None = None,
    whole: Callable[[Parts, Path], bool] | None = None,
    finish: Stage | None = None,
    asked: Callable[[DictConfig], None] | None = None,
    make: Stage | None = None,
) -> Cell:
    """The cell of a configuration, after sampling with its checkpoint.

    Args:
        examine: what this process does with the pictures of its batches.
        whole: whether all that is to be done with batches is done; by default, whether all pictures are there.
        finish: what one process does with the whole.
        asked: puts what is asked for in the place of the test split; by default, the prompts.
        make: makes the pictures; by default, `generate`.
    """
    from posegen.runner.method_folder import find_checkpoint, load_into
    from posegen.runner.prompts import ask
    from posegen.train.loop import prepare_threads

    (asked or ask)(cfg)
    method: Any = get_class(cfg.adapter._target_)
    if method.trainable:  # before the cell is named: its identity is that of the weights, not of "the newest"
        cfg.checkpoint = str(find_checkpoint(cfg))
    parts = Parts(cfg)
    if examine is not None:
        parts.protocol.check()
    cell = Cell.of(cfg, ["test"] if examine is None else ["test", reference_split(cfg)])

    def work() -> None:
        prepare_threads(cfg)
        if method.trainable:
            load_into(parts.adapter, parts.backbone, Path(cfg.checkpoint))
        (make or generate_all)(parts, cell.folder)
        if examine is not None:
            examine(parts, cell.folder)

    def conclude() -> None:
        if finish is not None:
            finish(parts, cell.folder)

    share(cell, parts.shard, work, lambda: (whole or sampled_all)(parts, cell.folder), conclude)
    return cell


def generate_all(parts: Parts, folder: Path) -> None:
    generate(parts, parts.adapter, folder)


def generate(parts: Parts, adapter: Adapter, folder: Path) -> None:
    """Writes the samples of every caption of the test split to ``folder/samples``; whole batches that exist are not made again."""
    from posegen.train.loop import note_costs

    data, sampler, out = parts.data("test"), parts.sampler, folder / "samples"
    data.prepare()
    batches = parts.shard.own(fixed_batches(len(data), sampler.batch))
    missing = [rows for rows in batches if not all(parts.kind.kept(out, i) for i in rows)]
    if not missing:
        return
    total = sum(map(len, batches))
    done = total - sum(map(len, missing))
    spent = 0.0
    device = device_of(parts.cfg.trainer.accelerator)
    parts.backbone.to(device)  # no sub-module of the adapter
    adapter.eval().to(device)
    looked_at = pictured(data) if "source" in adapter.reads else set()
    with Progress(folder, parts.shard.named("sample"), total, done, "img", parts.cfg.trainer.progress) as progress:
        for rows in missing:
            batch = batch_of(parts, adapter, rows)
            start = time.perf_counter()
            draws = torch.stack(
                [adapter.generate(replace(batch, visit=draw), sampler) for draw in range(parts.protocol.draws)], 1
            )
            spent += time.perf_counter() - start
            for i, drawn in zip(rows, draws, strict=True):
                parts.kind.write(out, i, drawn, batch.size)
            keep_sources(folder, data, looked_at.intersection(rows))
            progress.update(len(rows))
    write_text(out / "prompts.txt", "".join(f"{' '.join(prompt.split())}\n" for prompt in data.prompts))
    if adapter.ranked:  # a reference row only reads its pictures
        note_costs(folder, sample_images_per_s=round((total - done) * parts.protocol.draws / spent, 3))


def sampled_all(parts: Parts, folder: Path) -> bool:
    """Whether every caption has its samples, whoever made them."""
    return all(parts.kind.kept(folder / "samples", i) for i in range(len(parts.data("test"))))


def batch_of(
    parts: Parts,
    adapter: Adapter,
    rows: range,
    split: str = "test",
    data: PoseData | None = None,
    fields: frozenset[str] = frozenset(),
) -> PoseBatch:
    """The batch of the samples ``rows`` of a split or of other data, with what the adapter reads, more ``fields``, and the sampler's negative prompt."""
    needs = Needs(frozenset(adapter.reads) | fields, adapter.hint)
    batch = collate(parts.data(split) if data is None else data, rows, needs, parts.cfg.seed)
    with torch.no_grad():
        text = parts.backbone.encode_text(list(batch.prompts))
        negative = parts.backbone.encode_text([parts.sampler.negative_prompt])
    population = parts.population if "population" in adapter.reads else None
    return replace(batch, text=text, negative_text=negative, population=population).to(
        next(parts.backbone.parameters()).device
    )
