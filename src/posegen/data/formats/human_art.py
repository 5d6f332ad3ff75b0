"""Human-Art (Ju et al., CVPR 2023): 50,000 pictures of people in 19 kinds of art and photography, in the two layouts that are about.

    <root>/images/<2D_virtual_human, 3D_virtual_human or real_human>/<scenario>/<12 digits>.jpg
    <root>/annotations/{training,validation}_humanart.json          COCO's format; or a file per scenario, ..._humanart_<scenario>.json
    <root>/mapping_file_{training,validation}.json, <root>/pose/    HumanSD's form: picture, prompt and a file of poses per entry

The poses of the two are not the same: the annotations were drawn by hand, HumanSD's files hold scores in the place of visibility, as a detector's output has.
Human-Art is handed out by its authors after a form (https://idea-research.github.io/HumanArt), for research that is not commercial, and may not be passed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posegen.data.on_disk.object_arrays import read_arrays
from posegen.data.on_disk.source import Defect, Entry, Place, Report, Source, json_mapping, share

SCENARIOS = {
    "2D_virtual_human": (
        "cartoon", "digital_art", "ink_painting", "kids_drawing", "mural", "oil_painting", "shadow_play", "sketch", "stained_glass", "ukiyoe", "watercolor",
    ),
    "3D_virtual_human": ("garage_kits", "relief", "sculpture"),
    "real_human": ("acrobatics", "cosplay", "dance", "drama", "movie"),
}  # fmt: skip
#: The released validation list: 250 pictures of each scenario.
RELEASED = {
    "entries": 4750,
    "scenarios": {s: 250 for group in SCENARIOS.values() for s in group},
    "sha256": "59eea766cd8b4c00",
}
#: What the lists are called in file names.
TRAINING, VALIDATION = ("training", "train"), ("validation", "val")
LIST = "a dict, {id: {img_path, prompt, pose_path}} or COCO's {images, annotations}"
FOLDER = "HumanArt"  # paths in the annotations, and in some mappings, begin with it


class HumanArt(Source):
    """Human-Art has two lists: ``test`` is the validation list, on which methods are compared, and ``train`` the training list without a held-out part.

    Prompts begin with the scenario ("cartoon, two cartoon characters on top of a roof"), as they were published.

    Args:
        root: the folder with ``images``, usually called ``HumanArt``.
        poses: ``annotation`` for the authors' annotations, ``mapping`` for HumanSD's files, which the published tables were made with.
        holdout: the part of the training list that is ``validation``, for looking at while training: where the SHA-1 of the id is below this share.
            0 takes the validation list itself.

    Raises:
        ValueError: the root is no folder with Human-Art in it.
    """

    name = "human_art"

    def __init__(
        self, root: str | Path, poses: Literal["annotation", "mapping"] = "annotation", holdout: float = 0.02
    ) -> None:
        self.root, self.poses, self.holdout = Path(root).expanduser(), poses, holdout
        if poses not in ("annotation", "mapping"):
            raise ValueError(f"data.poses={poses}: expected annotation or mapping")
        if not (self.root / "images").is_dir():
            inner = self.root / FOLDER
            fix = (
                f"did you mean {inner}?"
                if (inner / "images").is_dir()
                else f"give the unpacked folder of Human-Art, usually called {FOLDER}"
            )
            raise ValueError(f"data.root={root}: there is no folder images in it; {fix}")

    def identity(self, split: str) -> dict[str, Any]:
        sha = hashlib.sha256()
        for file in self.lists(split):
            sha.update(file.read_bytes())
        return {"name": self.name, "poses": self.poses, "holdout": self.holdout, "lists": sha.hexdigest()[:16]}

    def expected(self, split: str) -> Mapping[str, Any]:
        return RELEASED if self._official(split) else {}

    def _official(self, split: str) -> bool:
        return split == "test" or (split == "validation" and not self.holdout)

    def lists(self, split: str) -> list[Path]:
        """The files that list the pictures of a split.

        Raises:
            FileNotFoundError: there is none; names those that were looked for.
        """
        names: tuple[str, ...] = VALIDATION if self._official(split) else TRAINING
        if self.poses == "mapping":
            names = tuple(f"{start}_{name}.json" for start in ("mapping_file", "mapping") for name in names)
            found = [self.root / name for name in names if (self.root / name).is_file()][:1]
        else:
            folder, start = self.root / "annotations", f"{names[0]}_humanart"
            names = (f"annotations/{start}.json", f"annotations/{start}_<scenario>.json")
            whole = folder / f"{start}.json"
            parts = [file for file in sorted(folder.glob(f"{start}_*.json")) if not file.stem.endswith("_coco")]
            found = [whole] if whole.is_file() else parts
        if not found:
            other = "annotation" if self.poses == "mapping" else "mapping"
            raise FileNotFoundError(
                f"{self.root} has no list for {split}: expected {' or '.join(names)}; Human-Art brings annotations, HumanSD's data the mappings: "
                f"put the file there, or choose data.poses={other}"
            )
        return found

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        read = self._mapping if self.poses == "mapping" else self._annotations
        for file in self.lists(split):
            for entry in read(file, report):
                held = self.holdout > 0 and share(entry.id) < self.holdout
                if self._official(split) or held == (split == "validation"):
                    yield entry

    def _mapping(self, file: Path, report: Report) -> Iterator[Entry]:
        for key, row in json_mapping(file, LIST).items():
            try:
                picture, poses, prompt = (str(row[name]) for name in ("img_path", "pose_path", "prompt"))
            except (KeyError, TypeError):
                report(Defect(f"{file.name}: {key}", "lacks img_path, pose_path or prompt"))
                continue
            path = self.root / below(poses)
            try:
                keypoints, areas = stored_people(path)
            except ValueError as error:
                problem = (
                    str(error).removeprefix(f"{path} ") if path.is_file() else f"missing; pose of {below(picture)}"
                )
                report(Defect(below(poses), problem))
                continue
            yield self._entry(key, prompt, picture, None, keypoints, areas)

    def _annotations(self, file: Path, report: Report) -> Iterator[Entry]:
        content = json_mapping(file, LIST)
        people: dict[Any, list[Mapping[str, Any]]] = {}
        for person in content.get("annotations", ()):
            people.setdefault(person.get("image_id"), []).append(person)
        for image in content.get("images", ()):
            try:
                here = [p for p in people.get(image["id"], ()) if not p.get("iscrowd") and any(p["keypoints"][2::3])]
                keypoints = np.array([p["keypoints"] for p in here], np.float32).reshape(len(here), 17, 3)
                areas = np.array([p["area"] for p in here], np.float32)
                size = int(image["height"]), int(image["width"])
                yield self._entry(
                    image["id"], str(image["description"]), str(image["file_name"]), size, keypoints, areas
                )
            except (KeyError, TypeError, ValueError) as error:
                report(
                    Defect(
                        f"{file.name}: {image.get('file_name', image.get('id'))}",
                        f"not as in COCO's format ({type(error).__name__}: {error})",
                    )
                )

    def _entry(
        self,
        key: Any,
        prompt: str,
        picture: str,
        size: tuple[int, int] | None,
        keypoints: np.ndarray,
        areas: np.ndarray,
    ) -> Entry:
        picture = below(picture)
        return Entry(
            f"{self.name}/{key}",
            prompt,
            Place(picture),
            size,
            keypoints,
            areas,
            {"scenario": Path(picture).parent.name},
        )


def below(path: str) -> str:
    """A path of a list, relative to the root."""
    return path.lstrip("/").removeprefix(f"{FOLDER}/")


def stored_people(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The people of one of HumanSD's pose files.

    Returns:
        ``[P, 17, 3] float32`` x, y and score on the stored picture, and ``[P] float32`` areas, not a number where there are none.

    Raises:
        ValueError: the file is missing, damaged, or holds something else; names it.
    """
    arrays = read_arrays(path)
    try:
        people = list(arrays["arr_0"].reshape(-1))
        keypoints = np.array([person["keypoints"] for person in people], np.float32).reshape(len(people), 17, 3)
        return keypoints, np.array([person.get("area", np.nan) for person in people], np.float32).reshape(len(people))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} holds no people: expected arr_0 with a dict of keypoints [17, 3] for each ({type(error).__name__}: {error})"
        ) from error
