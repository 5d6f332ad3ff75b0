"""Sampling a split: one picture per image, in fixed batches, continued where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from posegen.adapters.base import Adapter
from posegen.data.base import PoseBatch, PoseData
from posegen.io.atomic import write_json, write_text
from posegen.runner.batches import Needs, collate, fixed_batches
from posegen.runner.components import Parts
from posegen.runner.images import keep_sources, pictured
from posegen.runner.method_folder import load_into
from posegen.runner.precision import device_of
from posegen.runner.progress import Progress, note_costs
from posegen.runner.stage import Stage


class Generation(Stage):
    """Writes the samples of every caption of the test split to ``folder/samples``.

    Args:
        weights: the method folder that is sampled; None for a method without weights.
    """

    def __init__(self, parts: Parts, folder: Path, weights: Path | None) -> None:
        self.parts, self.folder, self.weights = parts, folder, weights
        self.data: PoseData = parts.data("test")
        self.samples = folder / "samples"

    def missing(self, batches: Sequence[range]) -> list[range]:
        """The batches of which a sample is missing."""
        return [rows for rows in batches if not all(self.parts.kind.kept(self.samples, i) for i in rows)]

    def batches(self) -> list[range]:
        self.data.prepare()
        return fixed_batches(len(self.data), self.parts.sampler.batch)

    def todo(self) -> list[range]:
        return self.missing(self.parts.shard.select(self.batches()))

    def done(self) -> bool:
        return not self.missing(self.batches())

    def run(self) -> None:
        parts, sampler, todo = self.parts, self.parts.sampler, self.todo()
        adapter = ready(parts, self.weights)
        total = sum(map(len, parts.shard.select(self.batches())))
        left, spent = sum(map(len, todo)), 0.0
        shown = pictured(self.data) if "source" in adapter.reads else set()
        with Progress(
            self.folder, parts.shard.label("sample"), total, total - left, "img", parts.cfg.progress
        ) as progress:
            for rows in todo:
                batch = batch_of(parts, adapter, rows)
                start = time.perf_counter()
                draws = [adapter.generate(replace(batch, visit=draw), sampler) for draw in range(parts.protocol.draws)]
                spent += time.perf_counter() - start
                for i, drawn in zip(rows, torch.stack(draws, 1), strict=True):
                    parts.kind.write(self.samples, i, drawn, batch.size)
                keep_sources(self.folder, self.data, shown.intersection(rows))
                progress.update(len(rows))
        note_row(adapter, self.folder)
        if adapter.ranked:  # a reference row only reads its pictures
            note_costs(self.folder, sample_images_per_s=round(left * parts.protocol.draws / spent, 3))

    def finish(self) -> None:
        if not (self.folder / "row.json").is_file():  # the run that sampled was interrupted in its last moment
            note_row(self.parts.adapter, self.folder)
        lines = (f"{' '.join(prompt.split())}\n" for prompt in self.data.prompts)
        write_text(self.samples / "prompts.txt", "".join(lines))


def ready(parts: Parts, weights: Path | None) -> Adapter:
    """The adapter with its trained weights, in evaluation mode on the configured device."""
    if weights is not None:
        load_into(parts.adapter, parts.backbone, weights)
    device = device_of(parts.cfg.trainer.accelerator)
    parts.backbone.to(device)  # no sub-module of the adapter
    return parts.adapter.eval().to(device)


def note_row(adapter: Adapter, folder: Path) -> None:
    """What a table says about a row besides its numbers, in ``row.json``."""
    path = folder / "row.json"
    if adapter.remark or not path.is_file():
        faithful = adapter.faithful if adapter.trains else None
        write_json(path, {"remark": adapter.remark, "faithful": faithful})


def batch_of(
    parts: Parts,
    adapter: Adapter,
    rows: range,
    split: str = "test",
    data: PoseData | None = None,
    fields: frozenset[str] = frozenset(),
) -> PoseBatch:
    """The samples ``rows`` of a split, or of other data, with what the adapter reads and the negative prompt.

    Args:
        fields: further optional fields of the batch.
    """
    needs = Needs(frozenset(adapter.reads) | fields, adapter.hint)
    batch = collate(parts.data(split) if data is None else data, rows, needs, parts.cfg.seed)
    with torch.no_grad():
        text = parts.backbone.encode_text(list(batch.prompts))
        negative = parts.backbone.encode_text([parts.sampler.negative_prompt])
    population = parts.population if "population" in adapter.reads else None
    filled = replace(batch, text=text, negative_text=negative, population=population)
    return filled.to(next(parts.backbone.parameters()).device)
