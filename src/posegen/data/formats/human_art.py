"""Human-Art (Ju et al., CVPR 2023): 50,000 pictures of people in 19 kinds of art and photography, in its two layouts.

    <root>/images/<2D_virtual_human, 3D_virtual_human or real_human>/<scenario>/<12 digits>.jpg
    <root>/annotations/{training,validation}_humanart.json   COCO's format; or ..._humanart_<scenario>.json
    <root>/mapping_file_{training,validation}.json, <root>/pose/    HumanSD's form: picture, prompt, file of poses

The poses of the two differ: the annotations were drawn by hand, HumanSD's files hold a detector's scores
in place of visibility. The authors hand out Human-Art after a form (https://idea-research.github.io/HumanArt), for
non-commercial research; it must not be passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from posegen.data.condition import Defect
from posegen.data.on_disk.object_arrays import read_arrays
from posegen.data.on_disk.source import FileSpan, ReportDefect, Source, StoredImage, json_mapping, require_option
from posegen.io.hashes import hash_fraction, joint_hash
from posegen.ranges import BelowOne

SCENARIOS = {
    "2D_virtual_human": (
        "cartoon", "digital_art", "ink_painting", "kids_drawing", "mural", "oil_painting", "shadow_play", "sketch",
        "stained_glass", "ukiyoe", "watercolor",
    ),
    "3D_virtual_human": ("garage_kits", "relief", "sculpture"),
    "real_human": ("acrobatics", "cosplay", "dance", "drama", "movie"),
}  # fmt: skip
PER_SCENARIO = {scenario: 250 for group in SCENARIOS.values() for scenario in group}
VALIDATION_LIST = {"entries": 4750, "scenarios": PER_SCENARIO, "sha256": "59eea766cd8b4c00"}  # the released one
LIST_FORMATS = "a dict, {id: {img_path, prompt, pose_path}} or COCO's {images, annotations}"
ROOT_NAME = "HumanArt"  # paths in the annotations, and in some mappings, begin with it
PoseKind = Literal["annotation", "mapping"]
PosedPeople = tuple[np.ndarray, np.ndarray]  # keypoints and areas


class HumanArt(Source):
    """Human-Art: ``test`` is its validation list, on which methods are compared; ``train`` is the training list.

    Prompts begin with the scenario ("cartoon, two cartoon characters on top of a roof"), as published. Poses are the
    authors' ``annotation``, or HumanSD's files (``mapping``), as in the published tables. ``holdout`` is the fraction
    of the training list that is ``validation``, for monitoring, by the SHA-1 of the id; 0: the validation list itself.
    """

    name = "human_art"

    def __init__(self, root: str | Path, poses: PoseKind = "annotation", holdout: BelowOne = 0.02) -> None:
        self.root, self.poses, self.holdout = Path(root).expanduser(), poses, holdout
        require_option("poses", poses, get_args(PoseKind))
        if not (self.root / "images").is_dir():
            inner, usual = self.root / ROOT_NAME, f"give the unpacked folder of Human-Art, usually called {ROOT_NAME}"
            fix = f"did you mean {inner}?" if (inner / "images").is_dir() else usual
            raise ValueError(f"data.root={root}: there is no folder images in it; {fix}")

    def identity(self, split: str) -> dict[str, Any]:
        lists = joint_hash(self.lists(split))
        return {"name": self.name, "poses": self.poses, "holdout": self.holdout, "lists": lists}

    def expected(self, split: str) -> Mapping[str, Any]:
        return VALIDATION_LIST if self._is_validation_list(split) else {}

    def _is_validation_list(self, split: str) -> bool:
        return split == "test" or (split == "validation" and not self.holdout)

    def lists(self, split: str) -> list[Path]:
        """The files that list the pictures of a split. Raises FileNotFoundError: there is none."""
        names: tuple[str, ...] = ("validation", "val") if self._is_validation_list(split) else ("training", "train")
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
            fix = "Human-Art brings annotations, HumanSD's data the mappings: put the file there, or choose data.poses="
            raise FileNotFoundError(f"{self.root} has no list for {split}: expected {' or '.join(names)}; {fix}{other}")
        return found

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        read = self._mapping if self.poses == "mapping" else self._annotations
        for file in self.lists(split):
            for entry in read(file, report):
                held_out = self.holdout > 0 and hash_fraction(entry.id) < self.holdout
                if self._is_validation_list(split) or held_out == (split == "validation"):
                    yield entry

    def _mapping(self, file: Path, report: ReportDefect) -> Iterator[StoredImage]:
        for key, row in json_mapping(file, LIST_FORMATS).items():
            try:
                picture, poses, prompt = (str(row[name]) for name in ("img_path", "pose_path", "prompt"))
            except (KeyError, TypeError):
                report(Defect(f"{file.name}: {key}", "lacks img_path, pose_path or prompt"))
                continue
            path, missing = self.root / below_root(poses), f"missing; pose of {below_root(picture)}"
            try:
                people = stored_people(path)
            except ValueError as error:
                problem = str(error).removeprefix(f"{path} ") if path.is_file() else missing
                report(Defect(below_root(poses), problem))
                continue
            yield self._entry(key, prompt, picture, None, people)

    def _annotations(self, file: Path, report: ReportDefect) -> Iterator[StoredImage]:
        content = json_mapping(file, LIST_FORMATS)
        people: dict[Any, list[Mapping[str, Any]]] = {}
        for person in content.get("annotations", ()):
            people.setdefault(person.get("image_id"), []).append(person)
        for image in content.get("images", ()):
            try:
                here = [p for p in people.get(image["id"], ()) if not p.get("iscrowd") and any(p["keypoints"][2::3])]
                keypoints = np.array([p["keypoints"] for p in here], np.float32).reshape(len(here), 17, 3)
                areas = np.array([p["area"] for p in here], np.float32)
                size, prompt = (int(image["height"]), int(image["width"])), str(image["description"])
                yield self._entry(image["id"], prompt, str(image["file_name"]), size, (keypoints, areas))
            except (KeyError, TypeError, ValueError) as error:
                where = f"{file.name}: {image.get('file_name', image.get('id'))}"
                report(Defect(where, f"not as in COCO's format ({type(error).__name__}: {error})"))

    def _entry(self, key: Any, prompt: str, picture: str, size: Any, people: PosedPeople) -> StoredImage:
        place = FileSpan(below_root(picture))
        about = {"scenario": Path(place.file).parent.name}
        return StoredImage(f"{self.name}/{key}", prompt, place, size, *people, about)


def below_root(path: str) -> str:
    return path.lstrip("/").removeprefix(f"{ROOT_NAME}/")


def stored_people(path: Path) -> PosedPeople:
    """The people of one of HumanSD's pose files: ``[P, 17, 3] float32`` x, y and score on the stored picture, and
    ``[P] float32`` areas, NaN where unknown. Raises ValueError: the file is missing or damaged; names it.
    """
    arrays = read_arrays(path)
    try:
        people = list(arrays["arr_0"].reshape(-1))
        keypoints = np.array([person["keypoints"] for person in people], np.float32).reshape(len(people), 17, 3)
        return keypoints, np.array([person.get("area", np.nan) for person in people], np.float32).reshape(len(people))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        expected = f"expected arr_0 with a dict of keypoints [17, 3] for each ({type(error).__name__}: {error})"
        raise ValueError(f"{path} holds no people: {expected}") from error
