"""Prompts from the command line in the place of a test split, with poses from a file or from a pose prior."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.poses.pose_square import from_square
from posegen.runner.batches import fixed_batches
from posegen.runner.components import Parts
from posegen.runner.images import picture, read_png, write_png

PROMPTS = "posegen.data.user_samples.Prompts"
GIVES = {"poses": "poses", "prior": "poses", "source": "a person"}


def ask(cfg: DictConfig) -> None:
    """Makes ``cfg.prompt``, where there is one, the test split that is sampled; without one nothing is changed.

    A prompt is repeated ``cfg.images`` times. Its people come from ``cfg.poses``, a file that `posegen.poses.reading` knows, or from ``cfg.prior``; a method
    that reads no pose needs neither.

    Raises:
        UserError: the method needs a pose or a picture of a person and nobody gives one, or a file cannot be used or does not fit the prompts.
    """
    given = cfg.get("prompt")
    if given is None:
        extra = [key for key in ("poses", "prior", "source") if cfg.get(key) is not None]
        if extra:
            raise UserError(
                f"{extra[0]} gives {GIVES[extra[0]]} to prompts, and there is no prompt; add prompt='a photo of a person'"
            )
        return
    files = sources(cfg)
    texts = [given] if isinstance(given, str) else [str(text) for text in given]
    prompts = [text for text in texts for _ in range(int(cfg.images))]
    size = list(Parts(cfg).data("test").size)  # the canvas of the data set whose place the prompts take
    node = {
        "_target_": PROMPTS,
        "prompts": prompts,
        "people": None,
        "size": size,
        **({"sources": files} if files else {}),
    }
    if cfg.get("prior") is not None and cfg.get("poses") is not None:
        raise UserError("poses and prior are both set, and each gives the poses; leave one of them out")
    if cfg.get("prior") is not None:
        node["people"] = imagined(cfg, node)
    elif cfg.get("poses") is not None:
        node["people"] = read(Path(cfg.poses).expanduser(), len(prompts), size)
    elif "hint" in needs(cfg):
        raise UserError(
            f"adapter={cfg.method} draws a pose and the prompt brings none; set poses=FILE (COCO or OpenPose json), or prior=gunet"
        )
    OmegaConf.set_struct(cfg, False)
    cfg.data = {"test": node}
    cfg.dataset = "prompts"


def sources(cfg: DictConfig) -> list[str]:
    """The files in ``cfg.source``, absolute, if the method takes a person from pictures; none otherwise.

    Raises:
        UserError: it takes one and there is none, or none and there is one, or a file is no picture.
    """
    from posegen.data.user_images import user_pictures

    given = cfg.get("source")
    if "source" not in needs(cfg):
        if given is not None:
            raise UserError(
                f"adapter={cfg.method} reads no picture of a person, and source={given} gives one; leave it out, or choose adapter=dnaf"
            )
        return []
    if given is None:
        raise UserError(
            f"adapter={cfg.method} takes a person from a picture; set source=FILE, or leave prompt out and sample data with pairs"
        )
    files = [given] if isinstance(given, str) else [str(each) for each in given]
    try:
        user_pictures(given if isinstance(given, str) else files)
    except ValueError as error:
        raise UserError(str(error)) from error
    return [str(Path(file).expanduser().resolve()) for file in files]


def needs(cfg: DictConfig) -> Collection[str]:
    """What the method reads of a batch."""
    from hydra.utils import get_class

    method: Any = get_class(cfg.adapter._target_)
    return method.needs


def imagined(cfg: DictConfig, node: dict[str, Any]) -> list[Any]:
    """One person per prompt from the pose prior, placed on the canvas: nested lists ``[N, 1, 17, 3]``.

    Raises:
        UserError: the prior has no trained weights, or does not generate poses.
    """
    from posegen.runner.generate import batch_of
    from posegen.runner.method_folder import find_checkpoint, load_into
    from posegen.train.loop import prepare_threads

    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    own = {key: plain["prior"][key] for key in ("adapter", "backbone", "sampler", "checkpoint", "method")}
    prior = OmegaConf.create({**plain, **own, "data": {"test": node}})
    prepare_threads(prior)
    parts = Parts(prior)
    if parts.backbone.sample != "pose":
        raise UserError(
            f"prior.adapter={prior.method} generates a {parts.backbone.sample}; a prior generates poses, for instance prior=gunet"
        )
    load_into(parts.adapter, parts.backbone, find_checkpoint(prior))
    data = parts.data("test")
    with torch.inference_mode():
        poses = parts.adapter.eval().generate(batch_of(parts, parts.adapter, range(len(data))), parts.sampler)
    placed = from_square(
        poses.float().cpu().numpy(), data.size, plain["prior"]["scale"], tuple(plain["prior"]["centre"])
    )
    return [[[[round(float(v), 3) for v in joint] for joint in person]] for person in placed]


def look(parts: Parts, folder: Path) -> None:
    """Writes ``folder/judged/<index>.png``: the pose that was asked for, the image, and the pose that the estimator finds in it."""
    data, out = parts.data("test"), folder / "samples"
    for rows in fixed_batches(len(data), parts.sampler.batch):
        judged = parts.protocol.judge(parts.estimator, parts.kind.read(out, rows), [data[i] for i in rows])
        for i, judgement in zip(rows, judged, strict=True):
            write_png(picture(folder / "judged", i), parts.kind.shown(read_png(picture(out, i)), judgement))


def read(file: Path, count: int, size: Sequence[int]) -> list[Any]:
    """The people of each prompt from a file: one image's for all of them, or as many images as prompts.

    Raises:
        UserError: the file cannot be read, holds a picture, or another number of images.
    """
    from posegen.poses.reading import checked_people, read_poses

    canvas = (size[0], size[1])
    try:
        found = [entry.on(canvas) for entry in read_poses(str(file), "poses")]
        if any(entry.keypoints is None for entry in found):
            raise UserError(
                f"poses={file} is a picture; this verb reads keypoints (COCO or OpenPose json), posegen.PoseGuidedPipeline takes pictures, too"
            )
        people = [checked_people(entry.keypoints, canvas, entry.name) for entry in found if entry.keypoints is not None]
    except ValueError as error:
        raise UserError(str(error)) from error
    if len(people) not in (1, count):
        raise UserError(
            f"poses={file} holds {len(people)} images and there are {count} prompts (prompt times images); give one, or as many"
        )
    return [entry.tolist() for entry in (people * count if len(people) == 1 else people)]
