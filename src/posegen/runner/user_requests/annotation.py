"""Finds the people of pictures with an estimator, and writes them as one file in COCO's keypoint format, or in
COCO-WholeBody's, where the estimator finds feet, faces or hands.

The found people are kept beside the target, part by part: an interrupted run continues, and changed pictures cost only
their part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from posegen.data.base import to_tensor
from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.hashes import value_hash
from posegen.io.locks import locked
from posegen.io.pictures import PICTURE_SUFFIXES, is_utf8, open_picture, pictures_below, printable
from posegen.metrics.base import Estimator
from posegen.poses.drawing import overlay
from posegen.poses.pose import Pose
from posegen.poses.pose_files import WHOLE_BODY_PARTS
from posegen.poses.topology import COCO_17, COCO_JOINTS, COCO_LIMBS, COCO_NAMES, WHOLE_BODY_133
from posegen.runner.batches import fixed_batches
from posegen.runner.cell import differences, identity
from posegen.runner.images import write_png
from posegen.runner.precision import device_of
from posegen.runner.progress import Mode, Progress

PARTS_FORMAT, PART_FILES = 1, "*.part.json"  # of the kept parts
DECIMALS = 3  # of pixels and scores
MOST_SEEN = 1_100_000  # pixels that the estimator sees at a time (1024 x 1024 fit); a network needs 300 bytes for each
MOST_CUT = 25_000_000  # pixels of a picture that an estimator cuts people out of
SKELETON = {"keypoints": COCO_NAMES, "skeleton": [[a + 1, b + 1] for a, b in COCO_LIMBS]}
PERSON_CATEGORY = {"id": 1, "name": "person", "supercategory": "person", **SKELETON}
#: A kept picture: file, width, height and people (annotations without ids), or file and why it is unreadable.
KeptPicture = dict[str, Any]


def annotate(
    estimator: DictConfig,
    source: str,
    target: str,
    overlays: str | None = None,
    least_score: float = 0.1,
    batch: int = 8,
    accelerator: str = "auto",
    progress: Mode = "bar",
) -> None:
    """Finds the people of pictures and writes them to a file.

    Args:
        source: a picture, or a folder of pictures with its subfolders.
        target: the json file to write; the folder ``<target>.parts`` beside it keeps the found people.
        overlays: folder for the pictures with the skeletons over them.
        least_score: joints with a lower score are not labelled.
        batch: pictures of a part; pictures of one size are estimated together.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: expected at least 1")
    out, drawn = Path(target).expanduser(), Path(overlays).expanduser() if overlays else None
    given = Path(source).expanduser()
    root, files = _find_pictures(given, drawn)
    config: Any = OmegaConf.to_container(estimator, resolve=True)
    numbers = {"least_score": least_score, "batch": batch, "format": PARTS_FORMAT}
    settings = {"source": str(given.resolve()), **identity({"estimator": config}), **numbers}
    folder = out.with_name(f"{out.name}.parts")
    with locked(folder / ".lock"):
        _claim(out, folder, settings)
        parts = [PicturePart.of(folder, root, [files[i] for i in rows]) for rows in fixed_batches(len(files), batch)]
        todo = [part for part in parts if not part.finished(drawn)]
        finder = PersonFinder(estimator, accelerator, least_score)
        done = len(files) - sum(len(part.files) for part in todo)
        with Progress(folder, "annotate", len(files), done, mode=progress if todo else "none") as bar:
            for part in todo:
                part.work(finder, drawn)
                bar.update(len(part.files))
        for stale in set(folder.glob(PART_FILES)) - {part.place for part in parts}:
            stale.unlink()
        _write_target(out, root, [picture for part in parts for picture in part.pictures], settings)


def _find_pictures(source: Path, overlays: Path | None) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the pictures below it, sorted; names that are no text are printed."""
    if source.is_file():
        return source.parent, [source]
    every = pictures_below(source) if source.is_dir() else []
    files = [file for file in every if is_utf8(file)]
    for file in every:
        if not is_utf8(file):
            print(f"{printable(file)}: its name is no text in UTF-8, rename it; it is left out", file=sys.stderr)
    if not files:
        expected = f"a file, or a folder with some of {', '.join(sorted(PICTURE_SUFFIXES))}"
        raise UserError(f"source={source} holds no pictures; expected {expected}")
    if overlays and overlays.resolve().is_relative_to(source.resolve()):
        why = "so its pictures would be annotated next time; choose a folder beside it"
        raise UserError(f"overlays={overlays} lies inside source={source}, {why}")
    return source, files


def _claim(target: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a target that ``posegen annotate`` did not write, or wrote with other settings."""
    about, plain = folder / "settings.json", json.loads(json.dumps(settings))
    if target.exists() and not about.is_file():
        fix = "name another file, or delete it"
        raise UserError(f"target={target} exists, and posegen annotate did not write it; {fix}")
    if not target.exists() and not any(folder.glob(PART_FILES)):
        write_json(about, plain)
    elif rows := differences(read_json(about, f"delete {target} and {folder} to annotate again"), plain):
        listed = "\n".join(f"  {key}: {there!r} there, {here!r} now" for key, there, here in rows)
        fix = f"Keep both with another target=, or delete {target} and {folder} to replace it."
        raise UserError(f"target={target} belongs to other settings:\n{listed}\n{fix}")


@dataclass(frozen=True)
class PicturePart:
    """Pictures that are annotated together; names are relative to ``root``, and ``place`` keeps the found people."""

    root: Path
    files: Sequence[Path]
    place: Path

    @classmethod
    def of(cls, folder: Path, root: Path, files: Sequence[Path]) -> PicturePart:
        """The part whose file name changes with the pictures' names, sizes and times of change."""
        stamps = [(f.relative_to(root).as_posix(), *_stamp(f)) for f in files]
        return cls(root, files, folder / f"{value_hash(stamps)}.part.json")

    @property
    def pictures(self) -> list[KeptPicture]:
        """What an earlier run has found; nothing where there was none, or its file is damaged."""
        with suppress(ValueError):
            kept = read_json(self.place)
            names = [file.relative_to(self.root).as_posix() for file in self.files]
            if isinstance(kept, list) and [p.get("file") for p in kept if isinstance(p, dict)] == names:
                return kept
        return []

    def finished(self, overlays: Path | None) -> bool:
        """Whether all people are found and all wanted overlays drawn."""
        return bool(kept := self.pictures) and (
            overlays is None or all("reason" in p or _overlay_file(overlays, p).is_file() for p in kept)
        )

    def work(self, finder: PersonFinder, overlays: Path | None) -> None:
        """Finds the people, or reads those of an earlier run, and draws the overlays."""
        named = {file.relative_to(self.root).as_posix(): file for file in self.files}
        pictures = self.pictures or finder.annotate(named)
        for picture in pictures:
            if overlays is not None and "reason" not in picture:
                image = open_picture(named[picture["file"]])
                write_png(_overlay_file(overlays, picture), overlay(image, _joints_of(picture["people"])))
        write_text(self.place, json.dumps(pictures) + "\n")


def _stamp(file: Path) -> tuple[int, ...]:
    with suppress(OSError):  # a broken link
        return (found := file.stat()).st_size, found.st_mtime_ns
    return ()


def _overlay_file(folder: Path, picture: KeptPicture) -> Path:
    return folder / f"{picture['file']}.png"


@dataclass(frozen=True)
class PersonFinder:
    """An estimator, which is built at the first use; joints below ``least_score`` are not labelled."""

    config: DictConfig
    accelerator: str
    least_score: float

    @cached_property
    def estimator(self) -> Estimator:
        built = instantiate(self.config, _convert_="all")
        if warning := built.warning():
            print(warning, file=sys.stderr, flush=True)
        return built.to(device_of(self.accelerator)) if isinstance(built, nn.Module) else built

    def annotate(self, files: Mapping[str, Path]) -> list[KeptPicture]:
        """The people of pictures by name, in their order, with the reason where one cannot be read.

        One picture is open at a time. The estimator sees those of one size together, up to `MOST_SEEN` pixels; a larger
        picture is shrunk to these, or to `MOST_CUT` where the estimator takes any size, and its people are scaled back.
        """
        found: dict[str, KeptPicture] = {}
        alike: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        most = MOST_CUT if self.estimator.any_size else MOST_SEEN
        for name, file in files.items():
            try:
                image = open_picture(file)
            except ValueError as error:
                found[name] = {"file": name, "reason": str(error)}
                continue
            height, width = image.shape[:2]
            found[name] = {"file": name, "width": width, "height": height, "people": []}
            if (shrunk := min(1.0, (most / (height * width)) ** 0.5)) < 1:
                size = max(1, int(width * shrunk)), max(1, int(height * shrunk))
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            group = alike.setdefault(image.shape, {})
            group[name] = np.array(image)  # a copy, because torch wants a writable array
            if (len(group) + 1) * image.shape[0] * image.shape[1] > MOST_SEEN:
                self._find(alike.pop(image.shape), found)
        for group in alike.values():
            self._find(group, found)
        return list(found.values())

    def _find(self, images: Mapping[str, np.ndarray], found: Mapping[str, KeptPicture]) -> None:
        """Fills in the people of pictures of one size."""
        batch = torch.stack([to_tensor(image) for image in images.values()]).to(device_of(self.accelerator))
        try:
            with torch.inference_mode():
                estimated = self.estimator.estimate(batch)
        except TypeError as error:  # of estimators that serve as teachers alone
            raise UserError(f"estimator: {error}") from error
        for (name, image), poses in zip(images.items(), estimated, strict=True):
            scale = np.divide((found[name]["width"], found[name]["height"]), image.shape[1::-1])
            pose = poses.whole or Pose(COCO_17, poses.keypoints)
            pose = pose.scaled(scale) if (scale != 1).any() else pose
            found[name]["people"] = annotations_of(pose, poses.scores.tolist(), self.least_score)


def annotations_of(pose: Pose, scores: Sequence[float], least_score: float) -> list[dict[str, Any]]:
    """Annotations of one image without ids, of people whose skeleton begins with COCO's joints; who has no labelled one
    of these is left out. Feet, face and hands stand beside the body, as in COCO-WholeBody's files."""
    people = []
    places = {name: joint for joint, name in enumerate(pose.topology.names)}
    parts = {key: [places[name] for name in names] for key, names in WHOLE_BODY_PARTS.items() if names[0] in places}
    for joints, score in zip(pose.keypoints.astype(float), scores, strict=True):
        labelled = np.isfinite(joints).all(1) & (joints[:, 2] >= least_score) & (joints[:, 2] > 0)
        if not labelled[:COCO_JOINTS].any():
            continue
        points = np.where(labelled[:, None], joints[:, :2], 0).round(DECIMALS)
        points = np.column_stack([points, 2.0 * labelled])
        body, (low, extent) = points[:COCO_JOINTS], _box(points[:COCO_JOINTS])
        person = {
            "keypoints": body.ravel().tolist(),
            "keypoint_scores": np.where(labelled, joints[:, 2], 0)[:COCO_JOINTS].round(DECIMALS).tolist(),
            "num_keypoints": int((body[:, 2] > 0).sum()),
            "score": round(score, 6),
            "bbox": [*low.tolist(), *extent.round(DECIMALS).tolist()],
            "area": round(float(extent.prod()), DECIMALS),
        }
        for key, part in parts.items():
            low, extent = _box(points[part])
            name, _, _ = key.partition("_")
            person |= {key: points[part].ravel().tolist(), f"{name}_valid": bool(points[part, 2].any())}
            if name != "foot":
                person[f"{name}_box"] = [*low.tolist(), *extent.round(DECIMALS).tolist()]
        people.append(person)
    return people


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left upper corner and extent of the labelled joints of ``[joints, 3]``; zeros without any."""
    seen = points[points[:, 2] > 0, :2]
    low = seen.min(0) if len(seen) else np.zeros(2)
    return low, (seen.max(0) - low if len(seen) else np.zeros(2))


def _joints_of(people: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``[P, 133, 3]`` of annotations with all parts of COCO-WholeBody, ``[P, 17, 3]`` of others."""
    whole = bool(people) and all(key in people[0] for key in WHOLE_BODY_PARTS)
    keys = ("keypoints", *(WHOLE_BODY_PARTS if whole else ()))
    joints = len(WHOLE_BODY_133) if whole else COCO_JOINTS
    return np.array([[n for key in keys for n in person[key]] for person in people], float).reshape(-1, joints, 3)


def _write_target(target: Path, root: Path, pictures: Sequence[KeptPicture], settings: Mapping[str, Any]) -> None:
    """Writes the target unless its content is the same, and prints its counts and the unreadable pictures."""
    unreadable = [picture for picture in pictures if "reason" in picture]
    for picture in unreadable:
        print(f"{root / picture['file']} {picture['reason']}; it is left out", file=sys.stderr)
    if len(unreadable) == len(pictures):
        raise UserError(f"{root}: none of {len(pictures)} pictures can be read, so {target} is not written")
    text = _coco_text(pictures, settings)
    same = target.is_file() and target.read_text(encoding="utf-8") == text
    if not same:
        write_text(target, text)
    count = sum(len(picture.get("people", ())) for picture in pictures)
    left = f", {len(unreadable)} pictures unreadable" if unreadable else ""
    changed = "; nothing has changed" if same else ""
    print(f"{target}: {count} people in {len(pictures) - len(unreadable)} pictures{left}{changed}")


def _coco_text(pictures: Sequence[KeptPicture], settings: Mapping[str, Any]) -> str:
    """The text of a file in COCO's keypoint format; ids start at 1, because tools read an id of 0 as none."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, p in enumerate((picture for picture in pictures if "reason" not in picture), 1):
        images.append({"id": i, "file_name": p["file"], "width": p["width"], "height": p["height"]})
        for person in p["people"]:
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": 1, "iscrowd": 0, **person})
    unreadable = [{"file_name": p["file"], "reason": p["reason"]} for p in pictures if "reason" in p]
    description = "people found by posegen annotate; areas are those of the boxes around labelled joints"
    kept = {key: value for key, value in settings.items() if key != "source"}
    info = {"description": description, **kept, "unreadable": unreadable}
    content = {"info": info, "images": images, "annotations": annotations, "categories": [PERSON_CATEGORY]}
    return json.dumps(content, allow_nan=False) + "\n"
