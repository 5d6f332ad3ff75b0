"""Prompts from the command line in the place of a test split, with poses from a file or from a pose prior."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from posegen.config.typed_text import as_literal
from posegen.data.user_images import user_pictures
from posegen.errors import UserError
from posegen.metrics.base import Judged
from posegen.poses.pose_square import from_square
from posegen.poses.reading import PoseInput, checked_people, read_poses
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Components
from posegen.runner.experiment import method_class, replaced, with_trained_arguments
from posegen.runner.generate import batch_of, ready
from posegen.runner.images import absent_pictures, picture, read_png, write_png
from posegen.runner.method_folder import find_checkpoint
from posegen.runner.stage import Stage

PROMPTS = "posegen.data.user_samples.Prompts"
GIVES = {"poses": "poses", "prior": "poses", "source": "a person"}


def with_prompts(cfg: DictConfig) -> DictConfig:
    """The configuration with ``prompt``, if any, as the test split.

    A prompt is repeated ``images`` times. Its people come from ``poses``, a file that `posegen.poses.reading` knows, or
    from ``prior``; a method that reads no pose needs neither. Anything missing or unfitting is a `UserError`.
    """
    prompt = cfg.get("prompt")
    if prompt is None:
        if extra := [key for key in GIVES if cfg.get(key) is not None]:
            fix = "add prompt='a photo of a person'"
            raise UserError(f"{extra[0]} gives {GIVES[extra[0]]} to prompts, and there is no prompt; {fix}")
        return cfg
    files = source_files(cfg)
    texts = [str(text) for text in prompt] if isinstance(prompt, ListConfig) else [str(prompt)]
    if not texts:
        raise UserError("prompt is an empty list; give at least one text, or leave it out for the test data")
    prompts = [text for text in texts for _ in range(int(cfg.images))]
    size = list(Components(cfg).data("test").size)  # the canvas of the data set whose place the prompts take
    node = {"_target_": PROMPTS, "prompts": prompts, "people": None, "size": size}
    node |= {"sources": files} if files else {}
    node["people"] = people_of_prompts(cfg, node)
    return replaced(cfg, data={"test": node}, dataset="prompts")


def people_of_prompts(cfg: DictConfig, node: dict[str, Any]) -> list[Any] | None:
    """The people of each prompt, from ``poses`` or ``prior``; None where the method reads no pose and none is given."""
    poses, prior = cfg.get("poses"), cfg.get("prior")
    if prior is not None and poses is not None:
        raise UserError("poses and prior are both set, and each gives the poses; leave one of them out")
    if prior is not None:
        return sampled_poses(cfg, node)
    if poses is not None:
        return people_from_file(Path(str(poses)).expanduser(), len(node["prompts"]), node["size"], cfg.get("canvas"))
    if "hint" in method_class(cfg).needs:
        fix = "set poses=FILE (COCO or OpenPose json), or prior=gunet"
        raise UserError(f"adapter={cfg.method} draws a pose and the prompt brings none; {fix}")
    return None


def source_files(cfg: DictConfig) -> list[str]:
    """The files in ``source``, absolute, if the method takes a person from pictures; none otherwise."""
    source = cfg.get("source")
    source = source if source is None or isinstance(source, ListConfig) else str(source)
    if "source" not in method_class(cfg).needs:
        if source is not None:
            fix = "leave it out, or choose adapter=dnaf"
            raise UserError(f"adapter={cfg.method} reads no picture of a person, and source={source} gives one; {fix}")
        return []
    if source is None:
        fix = "set source=FILE, or leave prompt out and sample data with pairs"
        raise UserError(f"adapter={cfg.method} takes a person from a picture; {fix}")
    files = [source] if isinstance(source, str) else [str(each) for each in source]
    try:
        user_pictures(source if isinstance(source, str) else files)
    except ValueError as error:
        raise UserError(str(error)) from error
    return [str(Path(file).expanduser().resolve()) for file in files]


def sampled_poses(cfg: DictConfig, node: dict[str, Any]) -> list[Any]:
    """One person per prompt from the pose prior, placed on the canvas: nested lists ``[N, 1, 17, 3]``."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    parts = {key: plain["prior"][key] for key in ("adapter", "backbone", "sampler", "checkpoint", "method")}
    prior = OmegaConf.create(as_literal({**plain, **parts, "data": {"test": node}}))
    torch.set_num_threads(cfg.budget.threads)
    prior = with_trained_arguments(prior, "prior.adapter")
    components = Components(prior)
    if components.backbone.sample != "pose":
        kind = components.backbone.sample
        fix = "a prior generates poses, for instance prior=gunet"
        raise UserError(f"prior.adapter={prior.method} generates a {kind}; {fix}")
    adapter, data = ready(components, find_checkpoint(prior)), components.data("test")
    with torch.inference_mode():
        batch = batch_of(components, adapter, range(len(data)))
        poses = adapter.generate(batch, components.sampler).float().cpu().numpy()
    placed = from_square(poses, data.size, plain["prior"]["scale"], tuple(plain["prior"]["centre"]))
    return [[[[round(float(v), 3) for v in joint] for joint in person]] for person in placed]


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints each warning as a line of its own, without the place in the program."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in found:
        print(warning.message, file=sys.stderr)


@printed_warnings()
def people_from_file(file: Path, count: int, size: Sequence[int], drawn_on: Any = None) -> list[Any]:
    """The people of each prompt from a file: one image's for all of them, or as many images as prompts.

    ``size`` is (height, width) of the images, and ``drawn_on`` of the canvas, where the file does not say it.
    """
    canvas = (size[0], size[1])
    try:
        given = named_canvas(read_poses(str(file), "poses"), drawn_on)
        found = [entry.on(canvas) for entry in given]
        if any(entry.picture is not None for entry in found):
            fix = "this verb reads keypoints (COCO or OpenPose json), posegen.PoseGuidedPipeline takes pictures, too"
            raise UserError(f"poses={file} is a picture; {fix}")
        people = [people_on(entry, canvas) for entry in found]
    except ValueError as error:
        raise UserError(str(error)) from error
    if len(people) not in (1, count):
        asked = f"there are {count} prompts (prompt times images)"
        raise UserError(f"poses={file} holds {len(people)} images and {asked}; give one, or as many")
    return [entry.tolist() for entry in people * (count // len(people))]


def named_canvas(entries: Sequence[PoseInput], canvas: Any) -> list[PoseInput]:
    """The poses with the canvas (height, width) that the user names, which a file must not contradict."""
    if canvas is None:
        return list(entries)
    size = (int(canvas[0]), int(canvas[1]))
    for entry in entries:
        if entry.size not in (None, size):
            raise ValueError(
                f"{entry.name} names its canvas, {list(entry.size or ())} (height, width); leave canvas out"
            )
    return [replace(entry, size=size) for entry in entries]


def people_on(entry: PoseInput, canvas: tuple[int, int]) -> np.ndarray:
    """The people of one image, which may have none."""
    nobody = np.zeros((0, 17, 3))
    return nobody if entry.keypoints is None else checked_people(entry.keypoints, canvas, entry.name)


class Illustration(Stage):
    """Writes ``folder/judged/<index>.png``: the given pose, the image, and the pose that the estimator finds in it."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    def lost(self) -> list[Path]:
        return absent_pictures(self.folder / "judged", range(len(self.components.data("test"))))

    def finish(self) -> None:
        components, samples = self.components, self.folder / "samples"
        data = components.data("test")
        for rows in fixed_batches(len(data), components.sampler.batch):
            images = components.kind.read(samples, rows, data.size)
            judged: list[Judged] = components.protocol.judge(components.estimator, images, [data[i] for i in rows])
            for i, judgement in zip(rows, judged, strict=True):
                drawn = components.kind.shown(read_png(picture(samples, i)), judgement)
                write_png(picture(self.folder / "judged", i), drawn)
