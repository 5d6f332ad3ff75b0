"""Sampling a split: one picture per image, in fixed batches, continued where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate.hooks import remove_hook_from_module

from posegen.adapters.base import Adapter
from posegen.data.base import PoseBatch, PoseData
from posegen.io.atomic import flush, write_json, write_text
from posegen.metrics.records import has_records
from posegen.runner.batches import Needs, collate, fixed_batches
from posegen.runner.components import Components
from posegen.runner.encodings import encode_prompts, tell_cut_prompts
from posegen.runner.images import HASHES, absent, absent_pictures, keep_sources, note_hashes, picture, pictured
from posegen.runner.method_folder import load_into
from posegen.runner.precision import device_of, waiting_parts
from posegen.runner.progress import Progress, note_costs
from posegen.runner.sampler import require_finite_images
from posegen.runner.stage import Stage


class Generation(Stage):
    """Writes the samples of every caption to ``folder/samples``; ``weights``: method folder, None without weights."""

    def __init__(self, components: Components, folder: Path, weights: Path | None) -> None:
        self.components, self.folder, self.weights, self.samples = components, folder, weights, folder / "samples"
        self.data: PoseData = components.data("test")

    def missing(self, batches: Sequence[range]) -> list[range]:
        return [rows for rows in batches if not all(map(self._kept, rows))]

    def _kept(self, i: int) -> bool:
        sourced = i not in self.sourced or picture(self.folder / "sources", i).is_file()
        return sourced and self.components.kind.kept(self.samples, i)

    @cached_property
    def sourced(self) -> set[int]:
        """The images that people look at, if their sources are kept beside them."""
        return pictured(self.data) if "source" in self.components.bare_adapter.reads else set()

    def batches(self) -> list[range]:
        self.data.prepare()
        return fixed_batches(len(self.data), self.components.sampler.batch)

    def progress(self, stage: str, todo: Sequence[range]) -> Progress:
        shard, left = self.components.shard, sum(map(len, todo))
        total = sum(map(len, shard.select(self.batches())))
        return Progress(self.folder, shard.label(stage), total, total - left, mode=self.components.cfg.progress)

    def todo(self) -> list[range]:
        return self.missing(self.components.shard.select(self.batches()))

    def done(self) -> bool:
        return not self.missing(self.batches())

    def run(self) -> None:
        components, sampler, todo = self.components, self.components.sampler, self.todo()
        adapter, encoders = ready(components, self.weights), components.backbone.encoders
        hooks = waiting_parts(encoders, device_of(components.cfg.trainer.accelerator))
        self.tell_cut([sampler.negative_prompt])
        if (self.samples / HASHES).is_file():
            note_hashes(
                self.samples, without={f"{i:06d}{end}" for rows in todo for i in rows for end in (".png", ".npy")}
            )
        prompts: list[str] = []
        left, spent, count = sum(map(len, todo)), 0.0, components.protocol.draws
        with self.progress("sample", todo) as progress:
            for rows in todo:
                batch = batch_of(components, adapter, rows)
                for hook in hooks:  # text towers that take more memory than the network are in nobody's way
                    hook.offload()
                prompts += batch.prompts
                start = time.perf_counter()
                draws = [adapter.generate(replace(batch, visit=draw), sampler) for draw in range(count)]
                spent += time.perf_counter() - start
                whole = torch.stack(draws, 1)
                require_finite_images(batch.ids, whole, f"as {type(adapter).__name__} generates them")
                for i, drawn in zip(rows, whole, strict=True):
                    components.kind.write(self.samples, i, drawn, batch.size)
                keep_sources(self.folder, self.data, self.sourced.intersection(rows))
                progress.update(len(rows))
        for part in encoders if hooks else ():
            remove_hook_from_module(part)
        self.tell_cut(prompts)  # now: a data set may have to read its pictures for them
        note_row(adapter, self.folder)
        if adapter.ranked:  # a reference row only reads its pictures
            note_costs(self.folder, sample_images_per_s=round(left * count / spent, 3))

    def tell_cut(self, prompts: Sequence[str]) -> None:
        """Prints one line on prompts that the sampler has cut."""
        if self.components.sampler.long_prompts == "cut":
            key = "long_prompts" if "long_prompts" in self.components.cfg else "+sampler.long_prompts"
            backbone = self.components.backbone
            tell_cut_prompts(backbone, prompts, f"{key}=chunk reads prompts whole" if backbone.chunked else "")

    def lost(self) -> list[Path]:
        if not self.samples.is_dir() and has_records(self.folder):
            return []
        every = range(len(self.data))
        sources = absent_pictures(self.folder / "sources", pictured(self.data))
        return [*absent_pictures(self.samples, every, needed=True), *sources, *absent(self.samples / "prompts.txt")]

    def finish(self) -> None:
        if not (self.folder / "row.json").is_file():  # the run that sampled was interrupted in its last moment
            note_row(self.components.adapter, self.folder)
        lines = (f"{' '.join(prompt.split())}\n" for prompt in self.data.prompts)
        write_text(self.samples / "prompts.txt", "".join(lines))
        note_hashes(self.samples)
        flush(*self.samples.iterdir())


def ready(components: Components, weights: Path | None) -> Adapter:
    """The adapter with its trained weights, in evaluation mode on the configured device."""
    if weights is not None:
        load_into(components.adapter, components.backbone, weights)
    device = device_of(components.cfg.trainer.accelerator)
    components.backbone.to(device)  # no sub-module of the adapter
    return components.adapter.eval().to(device)


def note_row(adapter: Adapter, folder: Path) -> None:
    """What a table says about a row besides its numbers, in ``row.json``."""
    path = folder / "row.json"
    if adapter.remark or not path.is_file():
        write_json(path, {"remark": adapter.remark, "faithful": adapter.faithful if adapter.trains else None})


def batch_of(
    components: Components,
    adapter: Adapter,
    rows: range,
    split: str = "test",
    data: PoseData | None = None,
    fields: frozenset[str] = frozenset(),
) -> PoseBatch:
    """The samples ``rows`` of a split, or of other data, with what the adapter reads, and further ``fields``."""
    needs = Needs(frozenset(adapter.reads) | fields, adapter.hint)
    batch = collate(components.data(split) if data is None else data, rows, needs, components.cfg.seed)
    with torch.no_grad():
        prompts, sampler = list(batch.prompts), components.sampler
        text, negative = encode_prompts(components.backbone, prompts, [sampler.negative_prompt], sampler.long_prompts)
    population = components.population if "population" in adapter.reads else None
    filled = replace(batch, text=text, negative_text=negative, population=population)
    return filled.to(next(components.backbone.parameters()).device)
