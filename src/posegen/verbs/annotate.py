"""Find the people of pictures, and write them as a file of poses.

What is found is kept beside the target, part by part, so that an interrupted run continues and changed pictures cost only their own part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.poses.drawing import overlay
from posegen.poses.topology import COCO_LIMBS, COCO_NAMES
from posegen.runner.batches import fixed_batches
from posegen.runner.cell import differences, digest, identity, locked
from posegen.runner.images import write_png
from posegen.runner.progress import Mode, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from posegen.metrics.base import Estimator, Poses

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMAT, PARTS = 1, "*.part.json"  # of what is kept
DIGITS = 3  # of pixels and scores
CATEGORY = {
    "id": 1,
    "name": "person",
    "supercategory": "person",
    "keypoints": COCO_NAMES,
    "skeleton": [[a + 1, b + 1] for a, b in COCO_LIMBS],
}
#: A picture as it is kept: file, width, height and people (annotations without ids), or file and why it cannot be read.
Entry = dict[str, Any]


def main(cfg: DictConfig) -> None:
    """Finds the people of pictures and writes them to a file."""
    annotate(**{key: cfg[key] for key in signature(annotate).parameters})


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
        estimator: configuration of who looks.
        source: a picture, or a folder of them with its subfolders.
        target: the json file to write; the folder ``<target>.parts`` beside it keeps what was found.
        overlays: folder for the pictures with the skeletons over them.
        least_score: joints with a lower score are not labelled.
        batch: pictures of a part; those of one size are looked at together.
        accelerator: where to compute, as in training.
        progress: how it is shown.

    Raises:
        UserError: there are no pictures, the target is not of these settings, or the estimator finds no people.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: expected at least 1")
    out, drawn = Path(target).expanduser(), Path(overlays).expanduser() if overlays else None
    given = Path(source).expanduser()
    root, files = pictures(given, drawn)
    who: Any = OmegaConf.to_container(estimator, resolve=True)
    settings = {
        "source": str(given.resolve()),
        **identity({"estimator": who}),
        "least_score": least_score,
        "batch": batch,
        "format": FORMAT,
    }
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        claim(out, folder, settings)
        parts = [Part.of(folder, root, [files[i] for i in rows]) for rows in fixed_batches(len(files), batch)]
        todo = [part for part in parts if not part.finished(drawn)]
        look = Look(estimator, accelerator, least_score)
        with Progress(
            folder, "annotate", len(files), len(files) - sum(map(len, todo)), mode=progress if todo else "none"
        ) as bar:
            for part in todo:
                part.work(look, drawn)
                bar.update(len(part))
        for stale in set(folder.glob(PARTS)) - {part.place for part in parts}:
            stale.unlink()
        report(out, root, [entry for part in parts for entry in part.entries], settings)


def pictures(source: Path, overlays: Path | None) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the pictures below it, sorted.

    Raises:
        UserError: there are none, or overlays would become pictures to annotate.
    """
    if source.is_file():
        return source.parent, [source]
    files = sorted(
        file
        for file in source.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise UserError(
            f"source={source} holds no pictures; expected a file, or a folder with some of {', '.join(SUFFIXES)}"
        )
    if overlays and overlays.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"overlays={overlays} lies inside source={source}, so its pictures would be annotated next time; choose a folder beside it"
        )
    return source, files


def claim(target: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a target that this verb did not write, or wrote with other settings.

    Raises:
        UserError: names the differing settings and the ways out.
    """
    about, plain = folder / "settings.json", json.loads(json.dumps(settings))
    if target.exists() and not about.is_file():
        raise UserError(
            f"target={target} exists, and posegen annotate did not write it; name another file, or delete it"
        )
    if not target.exists() and not any(folder.glob(PARTS)):
        write_json(about, plain)
    elif rows := differences(read_json(about), plain):
        listed = "\n".join(f"  {key}: {there!r} there, {here!r} now" for key, there, here in rows)
        raise UserError(
            f"target={target} belongs to other settings:\n{listed}\nKeep both with another target=, or delete {target} and {folder} to replace it."
        )


@dataclass(frozen=True)
class Part:
    """Pictures that are done together.

    Attributes:
        root: the folder that names are relative to.
        files: the pictures.
        place: the file of what was found; its name changes with the pictures, of which size and time of change count.
    """

    root: Path
    files: Sequence[Path]
    place: Path

    @classmethod
    def of(cls, folder: Path, root: Path, files: Sequence[Path]) -> Part:
        facts = [
            (file.relative_to(root).as_posix(), (status := file.stat()).st_size, status.st_mtime_ns) for file in files
        ]
        return cls(root, files, folder / f"{digest(facts)}.part.json")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def entries(self) -> list[Entry]:
        return read_json(self.place)

    def finished(self, overlays: Path | None) -> bool:
        """Whether everything is found, and drawn where that is wanted."""
        if not self.place.is_file():
            return False
        return overlays is None or all(
            "reason" in entry or overlay_file(overlays, entry).is_file() for entry in self.entries
        )

    def work(self, look: Look, overlays: Path | None) -> None:
        """Finds the people, or reads who was found before, and draws them."""
        images = {file.relative_to(self.root).as_posix(): read(file) for file in self.files}
        entries = self.entries if self.place.is_file() else look.entries(images)
        for entry in entries:
            image = images[entry["file"]]
            if overlays is not None and isinstance(image, np.ndarray):
                people = np.array([person["keypoints"] for person in entry["people"]], np.float64).reshape(
                    -1, len(COCO_NAMES), 3
                )
                write_png(overlay_file(overlays, entry), overlay(image, people))
        write_text(self.place, json.dumps(entries) + "\n")


def overlay_file(folder: Path, entry: Entry) -> Path:
    return folder / f"{entry['file']}.png"


def read(file: Path) -> np.ndarray | str:
    """A picture ``[H, W, 3] uint8``, or why it cannot be read."""
    from posegen.data.on_disk.images import decoded

    try:
        return np.array(decoded(file.read_bytes()))  # its own copy, which torch wants to be writable
    except (OSError, ValueError) as error:
        return str(error)


@dataclass(frozen=True)
class Look:
    """An estimator that is built when there is something to look at.

    Attributes:
        config: its configuration.
        accelerator: where it computes.
        least_score: joints with a lower score are not labelled.
    """

    config: DictConfig
    accelerator: str
    least_score: float

    @cached_property
    def estimator(self) -> Estimator:
        from hydra.utils import instantiate
        from torch import nn

        from posegen.runner.precision import device_of

        made = instantiate(self.config, _convert_="all")
        return made.to(device_of(self.accelerator)) if isinstance(made, nn.Module) else made

    def entries(self, images: Mapping[str, np.ndarray | str]) -> list[Entry]:
        """What is to be kept of pictures, in their order."""
        made: dict[str, Entry] = {
            name: {"file": name, "reason": image} for name, image in images.items() if isinstance(image, str)
        }
        sizes: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        for name, image in images.items():
            if isinstance(image, np.ndarray):
                sizes.setdefault(image.shape, {})[name] = image
        for (height, width, _), alike in sizes.items():
            for name, poses in zip(alike, self.found(list(alike.values())), strict=True):
                made[name] = {
                    "file": name,
                    "width": width,
                    "height": height,
                    "people": people(poses, self.least_score),
                }
        return [made[name] for name in images]

    def found(self, images: Sequence[np.ndarray]) -> list[Poses]:
        """The people in images of one size.

        Raises:
            UserError: the estimator finds no people.
        """
        import torch

        from posegen.data.base import to_tensor
        from posegen.runner.precision import device_of

        batch: Tensor = torch.stack([to_tensor(image) for image in images]).to(device_of(self.accelerator))
        try:
            with torch.inference_mode():
                return self.estimator.estimate(batch)
        except TypeError as error:  # what estimators raise that only teach
            raise UserError(f"estimator: {error}") from error


def people(poses: Poses, least_score: float) -> list[dict[str, Any]]:
    """Annotations of one image, best person first, without ids; people of whom no joint is labelled are left out."""
    made = []
    for joints, score in zip(poses.keypoints.astype(float), poses.scores.tolist(), strict=True):
        labelled = np.isfinite(joints).all(1) & (joints[:, 2] >= least_score) & (joints[:, 2] > 0)
        if not labelled.any():
            continue
        places = np.where(labelled[:, None], joints[:, :2], 0).round(DIGITS)
        low, high = places[labelled].min(0), places[labelled].max(0)
        made.append(
            {
                "keypoints": np.column_stack([places, 2.0 * labelled]).ravel().tolist(),
                "keypoint_scores": np.where(labelled, joints[:, 2], 0).round(DIGITS).tolist(),
                "num_keypoints": int(labelled.sum()),
                "score": round(score, 6),
                "bbox": [*low.tolist(), *(high - low).round(DIGITS).tolist()],
                "area": round(float((high - low).prod()), DIGITS),
            }
        )
    return made


def report(target: Path, root: Path, entries: Sequence[Entry], settings: Mapping[str, Any]) -> None:
    """Writes the target unless it says the same already, and tells what is in it and what could not be read."""
    text = coco(entries, settings)
    same = target.is_file() and target.read_text(encoding="utf-8") == text
    if not same:
        write_text(target, text)
    unreadable = [entry for entry in entries if "reason" in entry]
    for entry in unreadable:
        print(f"{root / entry['file']} {entry['reason']}; it is left out", file=sys.stderr)
    count = sum(len(entry.get("people", ())) for entry in entries)
    left = f", {len(unreadable)} pictures unreadable" if unreadable else ""
    print(
        f"{target}: {count} people in {len(entries) - len(unreadable)} pictures{left}{'; nothing has changed' if same else ''}"
    )


def coco(entries: Iterable[Entry], settings: Mapping[str, Any]) -> str:
    """The text of a file in COCO's keypoint format; ids start at 1, because tools take an id of 0 for none."""
    entries = list(entries)
    readable = [entry for entry in entries if "reason" not in entry]
    images = [
        {"id": i, "file_name": e["file"], "width": e["width"], "height": e["height"]} for i, e in enumerate(readable, 1)
    ]
    found = [
        {"image_id": i, "category_id": 1, "iscrowd": 0, **person}
        for i, entry in enumerate(readable, 1)
        for person in entry["people"]
    ]
    unreadable = [{"file_name": entry["file"], "reason": entry["reason"]} for entry in entries if "reason" in entry]
    what = "people found by posegen annotate; areas are those of the boxes around labelled joints"
    info = {
        "description": what,
        **{key: value for key, value in settings.items() if key != "source"},
        "unreadable": unreadable,
    }
    annotations = [{"id": i, **annotation} for i, annotation in enumerate(found, 1)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": [CATEGORY]}
    return json.dumps(content, allow_nan=False) + "\n"
