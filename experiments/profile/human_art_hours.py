"""Processor-hours of the whole Human-Art table by stage, from rates that are measured here in one run.

    python experiments/profile/human_art_hours.py [KEY=VALUE ...]

Each stage runs on a few invented images in the forms that ``posegen benchmark benchmark=human_art`` uses, on one
thread; networks have their published sizes and random weights, since costs do not depend on weights. The table has a
second column of shares for a GPU, which computes the networks ``speedup`` times faster than the thread, while the
other stages stay on the processor: that factor is an assumption. Keys: see `Settings`, and ``posegen profile``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.profile.decoding import invented_maps
from posegen.config.compose import composed
from posegen.data.base import Sample, to_uint8
from posegen.data.formats.human_art import HumanArt
from posegen.data.mannequin.world import World
from posegen.data.on_disk.indexed import RealData
from posegen.io.atomic import write_text
from posegen.io.tables import csv_text
from posegen.metrics.base import Judged
from posegen.metrics.clip import Clip
from posegen.metrics.estimators.associative import decode
from posegen.metrics.estimators.higherhrnet import HigherHRNet
from posegen.metrics.feature_networks import fid_inception
from posegen.metrics.image_features import CleanFeatures, Swapped, clean_resized, truncated
from posegen.metrics.papers.quality import PaperFeatures, cropped, through_jpeg, wrapped_bytes
from posegen.metrics.protocol import Protocol
from posegen.runner.batches import Needs, collate
from posegen.runner.encodings import encode_prompts
from posegen.runner.outputs import KINDS
from posegen.train.profiling import MeasuredMethod

UNET, NETWORK, HOST = "U-Net", "network", "processor"  # where a stage computes; a GPU takes the first two
LONG = 5.0  # seconds, beside which the preparations of a first run do not matter
MOST_HOURS = 0.1  # share of all stages but the U-Net that is asked for
BASE = ("adapter=controlnet", "backbone=sd15", "backbone.path=null", "backbone.initialise=random", "protocol=all")


@dataclass(frozen=True)
class Settings:
    images: int = 4750  # of the validation list
    methods: int = 6  # that generate; the reference rows read pictures
    scenarios: int = 19
    speedup: float = 100.0  # of the networks on a GPU over one thread: an assumption
    pixels: int = 1024  # side of the invented photographs
    measured: int = 2  # images of every stage
    repeats: int = 3  # of which the median counts; of guided steps, as many
    out: str = "outputs/profile/human_art_hours.csv"


@dataclass(frozen=True)
class StageCost:
    name: str
    where: str
    seconds: float  # of one thread, for an image of a method, or once for the real image, or for a row of the table
    count: int  # how often that is done for the whole table

    def hours(self, speedup: float = 1.0) -> float:
        return self.seconds * self.count / 3600 / (1.0 if self.where == HOST else speedup)


def measured(run: Callable[[], Any], images: int, repeats: int) -> float:
    """Processor seconds per image, the median of ``repeats``; a first run that is short does not count."""
    first = [spent for spent in [seconds_of(run)] if spent > LONG]
    return median([*first, *(seconds_of(run) for _ in range(repeats - len(first)))]) / images


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def invented_photographs(root: Path, count: int, side: int, scenarios: int) -> None:
    """A tree in Human-Art's layout: mannequins with the grain of a photograph, as files of JPEG."""
    world, rng, images, people = World(0, 256), np.random.default_rng(0), [], []
    for i in range(count):
        sample, name = world.render("test", i), f"images/real_human/scenario{i % scenarios}/{i:012d}.jpg"
        large = np.asarray(Image.fromarray(sample.image).resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 6, large.shape).round().astype(np.int16)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(root / name, quality=92)
        images.append({"id": i, "height": side, "width": side, "file_name": name, "description": sample.prompt})
        for joints, area in zip(sample.keypoints, sample.areas, strict=True):
            scaled = (joints * (side / 256, side / 256, 1)).ravel().tolist()
            people.append({"image_id": i, "keypoints": scaled, "area": float(area) * (side / 256) ** 2, "iscrowd": 0})
    (root / "annotations").mkdir()
    content = json.dumps({"images": images, "annotations": people})
    (root / "annotations" / "validation_humanart.json").write_text(content)


def with_random_weights(protocol: Protocol, tokenizer: Any) -> None:
    """Gives the protocol's networks their published shapes, which otherwise come with files of weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    for observer in protocol.observers:
        if isinstance(observer, PaperFeatures):
            observer.network.configured = True
            vars(observer.network)["network"] = fid_inception().eval()
        elif isinstance(observer, CleanFeatures):
            names, parts = zip(*fid_inception().named_children(), strict=True)
            trunk = nn.Sequential(*parts[: names.index("Mixed_7c") + 1], nn.AdaptiveAvgPool2d(1))
            observer.networks["clean"].configured = True
            vars(observer.networks["clean"])["network"] = trunk.eval()
        elif isinstance(observer, Clip):
            vision, vocabulary = {"patch_size": 16}, {"vocab_size": len(tokenizer)}  # ViT-B/16
            model = CLIPModel(CLIPConfig(vision_config=vision, text_config=vocabulary)).eval().requires_grad_(False)
            observer.folder = "random"
            processor = SimpleNamespace(image_processor=CLIPImageProcessor(), tokenizer=tokenizer)
            vars(observer).update(model=model, processor=processor)


def costs(settings: Settings, overrides: Sequence[str], folder: Path) -> Iterator[StageCost]:
    """Measures one stage after the other."""
    images, repeats, batch = settings.images * settings.methods, settings.repeats, settings.measured
    rows = range(batch)

    def each(name: str, where: str, run: Callable[[], Any], count: int = images, of: int = batch) -> StageCost:
        return StageCost(name, where, measured(run, of, repeats), count)

    with composed("profile", (*BASE, "sampler=published", f"batch={batch}", *overrides)) as cfg:
        method = MeasuredMethod(cfg, repeats + 2)
        guided_steps, negative, seed = cfg.sampler.steps, cfg.sampler.negative_prompt, cfg.seed
        protocol: Protocol = method.components.protocol
    adapter, backbone, kind, size = method.adapter.eval(), method.backbone, KINDS["image"], method.batch.size

    invented_photographs(folder / "data", batch, settings.pixels, settings.scenarios)
    data = RealData(HumanArt(folder / "data"), "test", size[0], cache=folder / "cache", workers=1)
    yield StageCost("data indexed, once", HOST, seconds_of(data.prepare) / batch, settings.images)
    needs = Needs(frozenset(adapter.reads), adapter.hint)
    yield each("poses read and drawn", HOST, lambda: collate(data, rows, needs, seed))

    with method.running("sample"):
        prompts = list(data.prompts)
        yield each("text encoder", NETWORK, lambda: encode_prompts(backbone, prompts, [negative]))
        yield each("conditions of the method", NETWORK, lambda: adapter.encode(method.batch))
        steps = method.run("sample")
        latents = next(steps)
        spent = median(seconds_of(lambda: next(steps)) for _ in range(repeats)) / batch
        yield StageCost(f"U-Net, {guided_steps} guided steps", UNET, spent * guided_steps, images)
        yield each("autoencoder's decoder", NETWORK, lambda: backbone.from_latents(latents[:1]), of=1)
    real = torch.stack([data[i].tensor for i in rows])
    yield each("PNG written", HOST, lambda: [kind.write(folder, i, real[i : i + 1], size) for i in rows])
    yield each("PNG read", HOST, lambda: kind.read(folder, rows, size))
    yield from judging_costs(settings, protocol, [data[i] for i in rows], real, method, each)
    yield each("real images read, once", HOST, lambda: [data[i].whole() for i in rows], settings.images)  # type: ignore[misc]
    yield from record_costs(settings, protocol, [data[i] for i in rows], folder, each)


def judging_costs(
    settings: Settings, protocol: Protocol, samples: Sequence[Sample], real: torch.Tensor, method: Any, each: Any
) -> Iterator[StageCost]:
    """The networks that judge, and what the processor does for them; the real images are judged once."""
    judge, captions, pictures = HigherHRNet.from_width(48).eval(), [s.prompt for s in samples], to_uint8(real)
    with_random_weights(protocol, method.backbone.tokenizer)
    maps, looks = invented_maps(3), 1 + sum(isinstance(observer, Swapped) for observer in protocol.observers)
    every = settings.images * (settings.methods + 1)
    with torch.no_grad():
        one = judge.normalised(real[:1])
        look = measured(lambda: judge.flip_tested(one), 1, settings.repeats)
    yield StageCost(f"judge, {looks} looks with mirror images", NETWORK, looks * look, every)
    yield StageCost("people found in its maps", HOST, looks * measured(lambda: decode(*maps), 1, 3), every)
    for observer in protocol.observers:
        if isinstance(observer, PaperFeatures):
            paper = observer.network
            crops = np.stack([cropped(through_jpeg(picture)) for picture in truncated(real)])
            prepare = lambda: [wrapped_bytes(cropped(through_jpeg(p)), True) for p in truncated(real)]  # noqa: E731
            yield each("papers' features: JPEG and crops", HOST, prepare, every)
            seen = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
            run = lambda: (paper.pooled(seen), paper.pooled(seen, (64,)))  # noqa: B023, E731
            yield each("papers' features: Inception", NETWORK, run, every)
        elif isinstance(observer, CleanFeatures):
            used = [network for network in observer.networks.values() if network.configured]
            sides = {network.side: clean_resized(pictures, network.side) for network in used}
            resize = lambda: [clean_resized(pictures, side) for side in sides]  # noqa: B023, E731
            yield each("clean features: resizing", HOST, resize, every)
            run = lambda: [network.features(sides[network.side]) for network in used]  # noqa: B023, E731
            yield each("clean features: Inception, ResNet-18", NETWORK, run, every)
        elif isinstance(observer, Clip):
            clip, generated = observer, settings.images * settings.methods
            prepare = lambda: clip.processor.image_processor(list(pictures), return_tensors="pt")  # noqa: B023, E731
            host = measured(prepare, len(samples), settings.repeats)
            run = lambda: [clip.image_embeddings(real), *(clip.text_embeddings(captions) for _ in clip.variants)]  # noqa: B023, E731
            whole = measured(run, len(samples), settings.repeats)
            yield StageCost("CLIP score: preprocessing", HOST, host, generated)
            yield StageCost("CLIP score: ViT-B/16", NETWORK, max(0.0, whole - host), generated)


def record_costs(
    settings: Settings, protocol: Protocol, samples: Sequence[Sample], folder: Path, each: Any
) -> Iterator[StageCost]:
    """Records of batches, and the row of a table with its bootstrap, of invented values."""
    spaces = {"paper_64": 64, "paper_2048": 2048, "paper_fixed_64": 64, "clean_features": 2048, "rfd_features": 512}
    rng, found, batch = np.random.default_rng(0), decode(*invented_maps(3))[0], 4

    def judged(i: int) -> Judged:
        from posegen.metrics.base import Poses

        sample, poses = samples[i % len(samples)], Poses(*found)
        seen: dict[str, Any] = {name: rng.normal(0, 1, width).astype(np.float32) for name, width in spaces.items()}
        seen |= {"swapped": poses, "clean_clip": 30.0, "paper_clip": 30.0}
        about = {"scenario": f"scenario{i % settings.scenarios}"}
        return Judged(f"human_art/{i}", sample.keypoints, sample.areas, poses, about, None, seen)

    few = [judged(i) for i in range(batch)]
    every = settings.images * (settings.methods + 1)
    write = lambda: protocol.write(folder / "batch", protocol.records(few))  # noqa: E731
    yield each("records of a batch written", HOST, write, every, of=batch)
    yield each("records of a batch read", HOST, lambda: protocol.read(folder / "batch"), every, of=batch)
    records = protocol.records(judged(i) for i in range(settings.images))
    row = seconds_of(lambda: protocol.table_row([records], records))
    yield StageCost("row of the table, 1,000 resamples", HOST, row, settings.methods)


def table(stages: Sequence[StageCost], speedup: float) -> list[dict[str, Any]]:
    """One row per stage, and the sums of all stages but the U-Net by where they compute."""
    whole, fast = sum(s.hours() for s in stages), sum(s.hours(speedup) for s in stages)

    def line(name: str, where: str, seconds: float | str, some: Sequence[StageCost]) -> dict[str, Any]:
        hours, gpu = sum(s.hours() for s in some), sum(s.hours(speedup) for s in some)
        shares = {"share of all, %": 100 * hours / whole, "GPU: hours": gpu, "GPU: share of all, %": 100 * gpu / fast}
        return {"stage": name, "where": where, "s per unit": seconds, "thread-hours": hours, **shares}

    rows = [line(s.name, s.where, s.seconds, [s]) for s in stages]
    for name, kinds in (("other networks", (NETWORK,)), ("not networks", (HOST,)), ("all but U-Net", (NETWORK, HOST))):
        rows.append(line(f"sum: {name}", "", "", [s for s in stages if s.where in kinds]))
    return [*rows, line("sum", "", "", stages)]


def printed(rows: Sequence[dict[str, Any]]) -> str:
    shown = [list(rows[0])] + [[v if isinstance(v, str) else f"{v:.4g}" for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in shown)


@contextmanager
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(words: Sequence[str]) -> list[dict[str, Any]]:
    names = {field.name for field in fields(Settings)}
    mine = OmegaConf.from_dotlist([word for word in words if word.partition("=")[0] in names])
    settings = Settings(**mine)  # type: ignore[arg-type]
    overrides = [word for word in words if word.partition("=")[0] not in names]
    with TemporaryDirectory() as folder, single_thread():
        stages = []
        for stage in costs(settings, overrides, Path(folder)):
            print(f"{stage.name}: {stage.seconds:.4g} s", file=sys.stderr, flush=True)
            stages.append(stage)
    rows = table(stages, settings.speedup)
    print(printed(rows))
    write_text(Path(settings.out), csv_text(rows[0], (list(row.values()) for row in rows)))
    rest = next(row for row in rows if row["stage"] == "sum: all but U-Net")
    verdict = "below" if rest["share of all, %"] < 100 * MOST_HOURS else "above"
    print(f"\n{settings.methods} methods, {settings.images} images; all but the U-Net is {verdict} {MOST_HOURS:.0%}")
    print(f"GPU: networks {settings.speedup:g} times as fast as this thread, an assumption. {settings.out}")
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
