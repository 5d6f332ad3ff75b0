"""Prompts from the command line or a file in the place of a test split, with poses from files or a pose prior."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from posegen.config.groups import conf_dir
from posegen.config.typed_text import as_literal
from posegen.data.user_images import user_pictures
from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.io.hashes import file_hash, value_hash
from posegen.metrics.base import Judged
from posegen.poses.drawing import DRAWING_STYLES, PoseDrawing
from posegen.poses.pose_square import from_square
from posegen.poses.reading import PoseInput, checked_people, read_poses
from posegen.poses.topology import COCO_17, Topology
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Components, build_node
from posegen.runner.experiment import fields_needed, replaced, with_trained_arguments
from posegen.runner.generate import batch_of, ready
from posegen.runner.images import absent, absent_pictures, picture, read_png, write_png
from posegen.runner.method_folder import find_checkpoint
from posegen.runner.stage import Stage
from posegen.runner.user_requests.guides import MANNEQUIN, default_estimator, people_in_picture
from posegen.runner.user_requests.prompt_files import PromptRow, read_prompt_file

PROMPTS = "posegen.data.user_samples.Prompts"
GIVES = {"poses": "poses", "prior": "poses", "source": "a person"}


def with_prompts(cfg: DictConfig) -> DictConfig:
    """The configuration with ``prompt`` or ``prompts``, if any, as the test split.

    A prompt is repeated ``images`` times. Its people come from ``poses``, anything that `posegen.poses.reading` knows,
    from its line of the file ``prompts``, or from ``prior``; a method that reads no pose needs none. Anything missing
    or unfitting is a `UserError`.
    """
    rows = prompt_rows(cfg)
    if rows is None:
        if extra := [key for key in GIVES if cfg.get(key) is not None]:
            fix = "add prompt='a photo of a person'"
            raise UserError(f"{extra[0]} gives {GIVES[extra[0]]} to prompts, and there is no prompt; {fix}")
        return cfg
    images, files = int(cfg.images), source_files(cfg, rows)
    size = list(Components(cfg).data("test").size)  # the canvas of the data set whose place the prompts take
    node: dict[str, Any] = {"_target_": PROMPTS, "prompts": [row.prompt for row in rows for _ in range(images)]}
    node |= {"people": None, "size": size}
    if files:
        node["sources"] = [each for each in files for _ in range(images)] if isinstance(files[0], list) else files
    if rows[0].name is not None:
        node["names"] = [f"{row.name}_{i}" if images > 1 else row.name for row in rows for i in range(images)]
    if cfg.get("prior") is not None:
        if cfg.get("poses") is not None or any(row.poses is not None for row in rows):
            raise UserError("poses and prior are both set, and each gives the poses; leave one of them out")
        node["people"] = sampled_poses(cfg, node)
    elif guides := guides_of_prompts(cfg, rows, images, (size[0], size[1])):
        node["people"] = [guide.people for guide in guides]
        if any(guide.drawing for guide in guides):
            node["drawings"] = [guide.drawing for guide in guides]
    dataset = "prompts"
    if any(
        row.poses is not None or row.source for row in rows
    ):  # of which the name of the file of prompts says nothing
        brought = [node["people"], *(file_hash(Path(file)) for file in dict.fromkeys(user_files(node)))]
        dataset = f"{dataset}~{value_hash(brought, 6)}"
    if cfg.get("prompts") is not None and node["people"]:
        node["people"] = [json.dumps(people) for people in node["people"]]  # Hydra is slow with thousands of numbers
    return replaced(cfg, data={"test": node}, dataset=dataset)


def user_files(node: Mapping[str, Any]) -> Iterator[str]:
    """The files of pictures that a node of `PROMPTS` names."""
    for files in (*node.get("sources", ()), *node.get("drawings", ())):
        yield from [files] if isinstance(files, str) else files or ()


def prompt_rows(cfg: DictConfig) -> list[PromptRow] | None:
    """The prompts of ``prompt`` or of the file ``prompts``; None without either."""
    prompt, file = cfg.get("prompt"), cfg.get("prompts")
    if file is not None:
        if prompt is not None:
            raise UserError("prompt and prompts are both set, and each gives the prompts; leave one of them out")
        with reported():
            return read_prompt_file(Path(str(file)).expanduser())
    if prompt is None:
        return None
    texts = [str(text) for text in prompt] if isinstance(prompt, ListConfig) else [str(prompt)]
    if not texts:
        raise UserError("prompt is an empty list; give at least one text, or leave it out for the test data")
    return [PromptRow(f"prompt {i}", text) for i, text in enumerate(texts, 1)]


def guides_of_prompts(
    cfg: DictConfig, rows: Sequence[PromptRow], images: int, size: tuple[int, int]
) -> list[Guide] | None:
    """Who is in every image, from ``poses`` or from the rows; None where no pose is given and the method reads none."""
    poses, posed, count = cfg.get("poses"), [row.poses is not None for row in rows], len(rows) * images
    wanted = drawn_skeleton(cfg)
    if poses is not None:
        if any(posed):
            fix = "leave one of them out"
            raise UserError(f"poses={poses} and {cfg.prompts} ({rows[posed.index(True)].place}) both give poses; {fix}")
        found = guides_from(cfg, str(poses), size, wanted=wanted)
        if len(found) not in (1, len(rows), count):
            asked = f"there are {count} prompts (prompt times images)"
            raise UserError(f"poses={poses} holds {len(found)} images and {asked}; give one, or as many")
        return found * count if len(found) == 1 else [guide for guide in found for _ in range(count // len(found))]
    if "hint" in fields_needed(cfg) and not all(posed):
        brings = f"{cfg.prompts}, {rows[posed.index(False)].place}, brings" if any(posed) else "the prompt brings"
        fix = "set poses=FILE (COCO or OpenPose json, or a picture), or prior=gunet"
        raise UserError(f"adapter={cfg.method} draws a pose and {brings} none; {fix}")
    if not any(posed):
        return None
    every: list[Guide] = []
    for row in rows:
        name = f"{cfg.prompts} ({row.place})"
        found = [Guide([])] if row.poses is None else guides_from(cfg, row.poses, size, name, wanted)
        if len(found) > 1:
            raise UserError(f"{cfg.prompts}, {row.place}: {row.poses} holds {len(found)} images; give one for a prompt")
        every += found * images
    return every


def source_files(cfg: DictConfig, rows: Sequence[PromptRow] = ()) -> list[Any]:
    """The files in ``source``, absolute, if the method takes a person from pictures, or lists of those of each row."""
    source, given = cfg.get("source"), [row.source for row in rows if row.source]
    source = source if source is None or isinstance(source, ListConfig) else str(source)
    shown = f"source={source}" if source is not None else f"{cfg.get('prompts')} with its key source"
    if "source" not in fields_needed(cfg):
        if source is not None or given:
            fix = "leave it out, or choose adapter=dnaf"
            raise UserError(f"adapter={cfg.method} reads no picture of a person, and {shown} gives one; {fix}")
        return []
    if source is None and not given:
        fix = "set source=FILE, or leave prompt out and sample data with pairs"
        raise UserError(f"adapter={cfg.method} takes a person from a picture; {fix}")
    if given:
        if source is not None:
            raise UserError(f"{shown} and {cfg.prompts} both give pictures of people; leave one of them out")
        if len({len(row.source) for row in rows}) > 1:
            other = next(row for row in rows if len(row.source) != len(rows[0].source))
            both = f"{rows[0].place} has {len(rows[0].source)}, {other.place} has {len(other.source)}"
            raise UserError(f"{cfg.prompts}: {both} pictures in source; give each prompt as many")
    with reported():
        for row in rows if given else ():
            user_pictures(list(row.source), f"{cfg.prompts}, {row.place}: source")
        if given:
            return [[str(Path(file).expanduser().resolve()) for file in row.source] for row in rows]
        files = [source] if isinstance(source, str) else [str(each) for each in source]
        user_pictures(source if isinstance(source, str) else files)
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
def reported() -> Iterator[None]:
    """Prints each warning as a line of its own, without the place in the program; makes ValueErrors `UserError`s."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except ValueError as error:
            raise UserError(str(error)) from error
    for warning in found:
        print(warning.message, file=sys.stderr)


@dataclass(frozen=True)
class Guide:
    """Who is in an image: people ``[P, 17, 3]`` or ``[P, 133, 3]`` as lists, or the file of a drawn skeleton."""

    people: list[Any]
    drawing: str | None = None


def drawn_skeleton(cfg: DictConfig) -> Topology:
    """The skeleton whose joints the method draws, with the arguments that it was trained with."""
    with suppress(UserError):  # where there is no such folder, which whoever loads it says
        cfg = with_trained_arguments(replaced(cfg, checkpoint=str(find_checkpoint(cfg))), quiet=True)
    style, parts = cfg.adapter.get("style"), cfg.adapter.get("parts")
    return PoseDrawing(style, parts=parts).topology if style in DRAWING_STYLES else COCO_17


def guides_from(
    cfg: DictConfig, poses: Any, size: tuple[int, int], name: str = "poses", wanted: Topology = COCO_17
) -> list[Guide]:
    """Who is in the images of a size (height, width): of a file of keypoints, a drawing, or a picture of people.

    ``cfg.canvas`` is the canvas of keypoints where their file does not say it, and ``cfg.topology`` their skeleton;
    ``cfg.estimator`` reads pictures; by default it is that of the mannequin world, which reads no others. ``wanted`` is
    the skeleton that is drawn.
    """
    with reported():
        found = named_canvas(read_poses(poses, name, wanted, cfg.get("topology")), cfg.get("canvas"))
        return [guide_on(cfg, entry, size, wanted) for entry in found]


def guide_on(cfg: DictConfig, entry: PoseInput, size: tuple[int, int], wanted: Topology) -> Guide:
    if entry.drawn_for(size, (0.0, 1.0)) is not None:
        return Guide([], str(Path(entry.name).resolve()))
    if entry.picture is None:
        return Guide(people_on(entry.on(size), size).tolist())
    torch.set_num_threads(cfg.budget.threads)
    usual = OmegaConf.load(conf_dir() / "estimator" / f"{MANNEQUIN}.yaml")
    given, shipped = (OmegaConf.to_container(node, resolve=True) for node in (cfg.estimator, usual))
    recipe = cfg.backbone.get("recipe", "published")
    estimator = default_estimator(entry.name, recipe) if given == shipped else build_node(cfg.estimator)
    people = people_in_picture(entry, size, estimator, wanted)
    return Guide(people_on(PoseInput(entry.name, people), size).tolist())


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
    """Writes ``folder/judged/<index>.png``: the given pose, the image, and the pose that the estimator finds in it; and
    ``folder/named/<name>.png``, the images again, where prompts have names."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    @property
    def named(self) -> list[Path]:
        names = getattr(self.components.data("test"), "names", None) or ()
        return [self.folder / "named" / f"{name}.png" for name in names]

    def lost(self) -> list[Path]:
        judged = absent_pictures(self.folder / "judged", range(len(self.components.data("test"))))
        return judged + (absent(*self.named) if (self.folder / "named").is_dir() else [])

    def finish(self) -> None:
        components, samples = self.components, self.folder / "samples"
        data = components.data("test")
        for rows in fixed_batches(len(data), components.sampler.batch):
            images = components.kind.read(samples, rows, data.size)
            judged: list[Judged] = components.protocol.judge(components.estimator, images, [data[i] for i in rows])
            for i, judgement in zip(rows, judged, strict=True):
                drawn = components.kind.shown(read_png(picture(samples, i)), judgement)
                write_png(picture(self.folder / "judged", i), drawn)
        for i, file in enumerate(self.named):
            with replacing(file, durable=False) as temporary:
                shutil.copyfile(picture(samples, i), temporary)
