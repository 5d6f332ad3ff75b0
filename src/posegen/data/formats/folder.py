"""The user's pictures: a folder of them, one file of poses, and prompts."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.condition import Defect
from posegen.data.on_disk.images import IMAGE_SUFFIXES
from posegen.data.on_disk.source import FileSpan, ReportDefect, Source, StoredImage, existing_root
from posegen.io.atomic import read_json
from posegen.io.hashes import hash_fraction, joint_hash
from posegen.poses.reading import coco_joints, read_pose_json
from posegen.ranges import ZeroToOne

FOLDER_SUFFIXES = {*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "validation", "test")


class PicturePeople(NamedTuple):
    """The people of a picture: ``[P, 17, 3]`` joints, ``[P]`` areas or None, (height, width) of the picture or None."""

    keypoints: np.ndarray
    areas: np.ndarray | None = None
    size: tuple[int, int] | None = None


NO_PEOPLE = PicturePeople(np.zeros((0, 17, 3), np.float32))


class Folder(Source):
    """A folder of pictures; paths are relative to it. Raises ValueError: one is missing, or shares do not add up to 1.

    ``poses`` is a json file in COCO's format (``posegen annotate`` writes one), or a folder with an OpenPose json file
    per picture (``<stem>_keypoints.json`` or ``<stem>.json``; "." is beside the pictures). ``prompts`` is a json file
    ``{picture: prompt}``, a csv file of ``file,prompt``, or a folder with a ``<stem>.txt`` per picture.
    """

    def __init__(
        self,
        root: str | Path,  # pictures may lie in folders inside it
        poses: str | None = "poses.json",  # None: no poses
        prompts: str | None = "prompts.json",  # None: all prompts are empty
        folders: Mapping[str, str] | None = None,  # split -> its folder; None: by the SHA-1 of the picture's path
        shares: Sequence[ZeroToOne] = (0.8, 0.1, 0.1),  # of train, validation and test, where there are no ``folders``
        name: str = "folder",  # of the data set, for ids and files
    ) -> None:
        self.root, self.name = existing_root(root), name
        self.folders, self.shares = folders and dict(folders), tuple(shares)
        if len(self.shares) != len(SPLITS) or abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            expected = f"the shares of {', '.join(SPLITS)}, which add up to 1"
            raise ValueError(f"data.shares={list(shares)}: expected {expected}")
        self.poses = self._existing("poses", poses, "a json file in COCO's format, or a folder of OpenPose's")
        expected = "a json file {picture: prompt}, a csv file of file,prompt, or a folder of text files"
        self.prompts = self._existing("prompts", prompts, expected)

    def _existing(self, key: str, path: str | None, expected: str) -> Path | None:
        file = None if path is None else self.root / path
        if file and not file.exists():
            raise ValueError(f"data.{key}={path}: there is no {file}; expected {expected}, or null for none")
        return file

    def identity(self, split: str) -> dict[str, Any]:
        parts: list[str | Path] = ["\n".join(self.pictures(split))]
        for given in (self.poses, self.prompts):
            files = sorted(given.rglob("*")) if given and given.is_dir() else [given] if given else []
            parts += [file for file in files if file.is_file() and file.suffix.lower() not in FOLDER_SUFFIXES]
        return {"name": self.name, "folders": self.folders, "shares": self.shares, "files": joint_hash(parts)}

    def pictures(self, split: str) -> list[str]:
        """The pictures of a split, relative to the root. Raises FileNotFoundError: no folder of the split."""
        known = self.folders or SPLITS
        if split not in known:
            raise FileNotFoundError(f"data.folders has no folder for {split}; it has {', '.join(known)}")
        start = self.root / (self.folders[split] if self.folders else ".")
        if not start.is_dir():
            raise FileNotFoundError(f"data.folders.{split}: there is no folder {start}")
        files = self._below(start)
        return files if self.folders else [file for file in files if self.split_of(file) == split]

    def _below(self, start: Path) -> list[str]:
        files = (file for file in start.rglob("*") if file.suffix.lower() in FOLDER_SUFFIXES)
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def split_of(self, file: str) -> str:
        place = np.searchsorted(np.cumsum(self.shares), hash_fraction(file), side="right")
        return SPLITS[min(int(place), len(SPLITS) - 1)]

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        there = set(self._below(self.root))
        names = {Path(file).name for file in there}
        for file in {**self._coco_people, **self._captions}:  # pictures that only the poses and prompts list
            mine = file.startswith(f"{self.folders[split]}/") if self.folders else self.split_of(file) == split
            if mine and Path(file).suffix and file not in there and file not in names:
                report(Defect(file, "missing"))
        for file in self.pictures(split):
            prompt = self.prompt(file)
            if prompt is None:
                report(Defect(file, f"no prompt in {self.prompts and self.prompts.name}"))
                continue
            try:
                people = self.people(file)
            except ValueError as error:
                report(Defect(file, f"pose cannot be read: {error}"))
                continue
            keypoints = people.keypoints.astype(np.float32)
            yield StoredImage(f"{self.name}/{file}", prompt, FileSpan(file), people.size, keypoints, people.areas)

    def people(self, file: str) -> PicturePeople:
        """The people of a picture; nobody where it is not listed. Raises ValueError: its file of poses is damaged."""
        if self.poses is None or self.poses.is_file():
            return _lookup(self._coco_people, file) or NO_PEOPLE
        picture = Path(file)
        places = [self.poses / picture.parent, self.poses]
        names = f"{picture.stem}_keypoints.json", f"{picture.stem}.json"
        found = next((path for place in places for name in names if (path := place / name).is_file()), None)
        if found is None or (isinstance(content := read_json(found, "mend it"), dict) and content.get("people") == []):
            return NO_PEOPLE
        pose = read_pose_json(found)[0]
        assert pose.keypoints is not None
        return PicturePeople(pose.keypoints, None, pose.size)

    @cached_property
    def _coco_people(self) -> dict[str, PicturePeople]:
        """People by picture, from annotations with images, or from results whose ``image_id`` is the picture's name."""
        if self.poses is None or self.poses.is_dir():
            return {}
        content = read_json(self.poses, "mend it, or write it again")
        rows = content.get("annotations") if isinstance(content, dict) else content
        images = content.get("images", ()) if isinstance(content, dict) else ()
        try:
            names = {image["id"]: str(image["file_name"]) for image in images}
            sized = (image for image in images if {"height", "width"} <= image.keys())
            sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in sized}
            people: dict[Any, list[Mapping[str, Any]]] = {image: [] for image in names}
            for row in rows or ():
                people.setdefault(row["image_id"], []).append(row)
            size, file = sizes.get, str(self.poses)
            return {str(names.get(i, i)): _annotated_people(mine, size(i), file) for i, mine in people.items()}
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"is not in COCO's format ({type(error).__name__}: {error})"
            raise ValueError(f"{self.poses} {problem}; expected images and annotations") from error

    def prompt(self, file: str) -> str | None:
        if self.prompts is None:
            return ""
        if self.prompts.is_file():
            return _lookup(self._captions, file)
        picture = Path(file)
        places = (self.prompts / picture.with_suffix(".txt"), self.prompts / f"{picture.stem}.txt")
        return next((path.read_text(encoding="utf-8").strip() for path in places if path.is_file()), None)

    @cached_property
    def _captions(self) -> dict[str, str]:
        if self.prompts is None or self.prompts.is_dir():
            return {}
        if self.prompts.suffix.lower() == ".csv":
            rows = prompts_of_csv(self.prompts, "file,prompt")
            return {file: prompt for file, prompt in rows if (file, prompt) != ("file", "prompt")}
        content = read_json(self.prompts, "mend it")
        if not isinstance(content, dict) or not all(isinstance(prompt, str) for prompt in content.values()):
            raise ValueError(f"{self.prompts}: expected {{picture: prompt}}, both text")
        return content


def prompts_of_csv(file: Path, columns: str) -> list[tuple[str, str]]:
    """The lines of a csv file of two columns. Raises ValueError: a line has another number of values; names it."""
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if wrong := next((row for row in rows if len(row) != 2), None):
        fix = "with quotes around a prompt with commas"
        raise ValueError(f"{file}: a line has {len(wrong)} values ({wrong}); expected {columns}, {fix}")
    return [(first, second) for first, second in rows]


def _annotated_people(rows: Sequence[Mapping[str, Any]], size: tuple[int, int] | None, name: str) -> PicturePeople:
    """The annotations of one picture, without crowds and others who have no labelled joint."""
    rows = [row for row in rows if not row.get("iscrowd")]
    people = [(coco_joints(row["keypoints"], name), float(row.get("area") or np.nan)) for row in rows]
    people = [(person, area) for person, area in people if (person[:, 2] > 0).any()]
    keypoints = np.stack([person for person, _ in people]) if people else np.zeros((0, 17, 3))
    return PicturePeople(keypoints.astype(np.float32), np.array([area for _, area in people], np.float32), size)


def _lookup(known: Mapping[str, Any], file: str) -> Any:
    """The value of a picture under its path, its name or its stem."""
    path = Path(file)
    return next((known[key] for key in (file, path.name, path.stem) if key in known), None)
