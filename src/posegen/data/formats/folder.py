"""Your own pictures: a folder of them, one file of poses, and prompts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.on_disk.source import Defect, Entry, Place, Report, Source, share
from posegen.poses.reading import coco_joints, read_pose_json

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "validation", "test")


class People(NamedTuple):
    """Who is in a picture: ``[P, 17, 3]`` joints, ``[P]`` areas or None, and (height, width) of the picture where the file tells it."""

    keypoints: np.ndarray
    areas: np.ndarray | None = None
    size: tuple[int, int] | None = None


class Folder(Source):
    """A folder of pictures.

    Args:
        root: the folder; pictures may lie in folders inside it.
        poses: a json file in COCO's format (``posegen annotate`` writes one), or a folder with OpenPose's json file of each picture (``<stem>_keypoints.json``
            or ``<stem>.json``); relative to the root, so that "." is beside the pictures. None: nobody has a pose.
        prompts: a json file ``{picture: prompt}``, a csv file of ``file,prompt``, or a folder with a text file ``<stem>.txt`` of each picture; relative to the
            root. None: all prompts are empty.
        folders: split -> folder of its pictures, relative to the root. None: by the SHA-1 of the picture's path.
        shares: of train, validation and test, where there are no ``folders``.
        name: of the data set, for ids and files.

    Raises:
        ValueError: the root, the poses or the prompts are not there, or the shares do not add up to 1.
    """

    def __init__(
        self,
        root: str | Path,
        poses: str | None = "poses.json",
        prompts: str | None = "prompts.json",
        folders: Mapping[str, str] | None = None,
        shares: Sequence[float] = (0.8, 0.1, 0.1),
        name: str = "folder",
    ) -> None:
        self.root, self.name, self.folders, self.shares = (
            Path(root).expanduser(),
            name,
            folders and dict(folders),
            tuple(shares),
        )
        if not self.root.is_dir():
            raise ValueError(f"data.root={root}: no such folder")
        if len(self.shares) != len(SPLITS) or abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ValueError(
                f"data.shares={list(shares)}: expected the shares of {', '.join(SPLITS)}, which add up to 1"
            )
        self.poses = self._given("poses", poses, "a json file in COCO's format, or a folder of OpenPose's")
        self.prompts = self._given(
            "prompts", prompts, "a json file {picture: prompt}, a csv file of file,prompt, or a folder of text files"
        )

    def _given(self, key: str, path: str | None, expected: str) -> Path | None:
        if path is not None and not (self.root / path).exists():
            raise ValueError(
                f"data.{key}={path}: there is no {self.root / path}; expected {expected}, or null for none"
            )
        return None if path is None else self.root / path

    def identity(self, split: str) -> dict[str, Any]:
        sha = hashlib.sha256("\n".join(self.pictures(split)).encode())
        for given in (self.poses, self.prompts):
            for file in sorted(given.rglob("*")) if given and given.is_dir() else [given] if given else []:
                if file.is_file() and file.suffix.lower() not in PICTURES:
                    sha.update(file.read_bytes())
        return {"name": self.name, "folders": self.folders, "shares": self.shares, "files": sha.hexdigest()[:16]}

    # Pictures.

    def pictures(self, split: str) -> list[str]:
        """The pictures of a split, relative to the root.

        Raises:
            FileNotFoundError: the folder of the split is missing.
        """
        if split not in (self.folders or SPLITS):
            raise FileNotFoundError(
                f"data.folders has no folder for {split}; it has {', '.join(self.folders or SPLITS)}"
            )
        start = self.root / (self.folders[split] if self.folders else ".")
        if not start.is_dir():
            raise FileNotFoundError(f"data.folders.{split}: there is no folder {start}")
        files = self._below(start)
        return files if self.folders else [file for file in files if self.split_of(file) == split]

    def _below(self, start: Path) -> list[str]:
        return sorted(
            file.relative_to(self.root).as_posix() for file in start.rglob("*") if file.suffix.lower() in PICTURES
        )

    def split_of(self, file: str) -> str:
        """The split of a picture where there are no folders for them: a function of its path."""
        edges = np.cumsum(self.shares)
        return SPLITS[min(int(np.searchsorted(edges, share(file), side="right")), len(SPLITS) - 1)]

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        self._tell_of_missing(split, report)
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
            yield Entry(
                f"{self.name}/{file}",
                prompt,
                Place(file),
                people.size,
                people.keypoints.astype(np.float32),
                people.areas,
            )

    def _tell_of_missing(self, split: str, report: Report) -> None:
        """Reports pictures of the split that only the poses and prompts know."""
        there = set(self._below(self.root))
        names = {Path(file).name for file in there}
        for file in {**self._coco, **self._captions}:
            mine = file.startswith(f"{self.folders[split]}/") if self.folders else self.split_of(file) == split
            if mine and Path(file).suffix and file not in there and file not in names:
                report(Defect(file, "missing"))

    # Poses.

    def people(self, file: str) -> People:
        """Who is in a picture; nobody where the poses do not know it.

        Raises:
            ValueError: its file of poses cannot be used.
        """
        nobody = People(np.zeros((0, 17, 3), np.float32))
        if self.poses is None or self.poses.is_file():
            return _looked_up(self._coco, file) or nobody
        picture = Path(file)
        places = [self.poses / picture.parent, self.poses]
        names = f"{picture.stem}_keypoints.json", f"{picture.stem}.json"
        found = next((path for place in places for name in names if (path := place / name).is_file()), None)
        if found is None or (isinstance(content := _json(found), dict) and content.get("people") == []):
            return nobody
        given = read_pose_json(found)[0]
        assert given.keypoints is not None
        return People(given.keypoints, None, given.size)

    @cached_property
    def _coco(self) -> dict[str, People]:
        """People by picture, of a file in COCO's format: annotations with a list of images, or results whose ``image_id`` is the picture's name."""
        if self.poses is None or self.poses.is_dir():
            return {}
        content = _json(self.poses)
        rows = content.get("annotations") if isinstance(content, dict) else content
        images = content.get("images", ()) if isinstance(content, dict) else ()
        try:
            names = {image["id"]: str(image["file_name"]) for image in images}
            sizes = {
                image["id"]: (int(image["height"]), int(image["width"]))
                for image in images
                if {"height", "width"} <= image.keys()
            }
            people: dict[Any, list[Mapping[str, Any]]] = {image: [] for image in names}
            for row in rows or ():
                people.setdefault(row["image_id"], []).append(row)
            return {
                str(names.get(image, image)): _people(own, sizes.get(image), str(self.poses))
                for image, own in people.items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.poses} is not in COCO's format ({type(error).__name__}: {error}); expected images and annotations"
            ) from error

    # Prompts.

    def prompt(self, file: str) -> str | None:
        """The prompt of a picture, None where it has none."""
        if self.prompts is None:
            return ""
        if self.prompts.is_file():
            return _looked_up(self._captions, file)
        picture = Path(file)
        places = (self.prompts / picture.with_suffix(".txt"), self.prompts / f"{picture.stem}.txt")
        return next((path.read_text(encoding="utf-8").strip() for path in places if path.is_file()), None)

    @cached_property
    def _captions(self) -> dict[str, str]:
        if self.prompts is None or self.prompts.is_dir():
            return {}
        if self.prompts.suffix.lower() == ".csv":
            with self.prompts.open(newline="", encoding="utf-8-sig") as stream:
                rows = [row for row in csv.reader(stream) if row]
            if wrong := next((row for row in rows if len(row) != 2), None):
                raise ValueError(
                    f"{self.prompts}: a line has {len(wrong)} values ({wrong}); expected file,prompt, with quotes around a prompt with commas"
                )
            return {file: prompt for file, prompt in rows if (file, prompt) != ("file", "prompt")}
        content = _json(self.prompts)
        if not isinstance(content, dict) or not all(isinstance(prompt, str) for prompt in content.values()):
            raise ValueError(f"{self.prompts}: expected {{picture: prompt}}, both text")
        return content


def _people(rows: Sequence[Mapping[str, Any]], size: tuple[int, int] | None, name: str) -> People:
    """The rows of one picture; those without a labelled joint are crowds and the like."""
    own = [
        (coco_joints(row["keypoints"], name), float(row.get("area") or np.nan))
        for row in rows
        if not row.get("iscrowd")
    ]
    own = [(person, area) for person, area in own if (person[:, 2] > 0).any()]
    keypoints = np.stack([person for person, _ in own]) if own else np.zeros((0, 17, 3))
    return People(keypoints.astype(np.float32), np.array([area for _, area in own], np.float32), size)


def _looked_up(known: Mapping[str, Any], file: str) -> Any:
    """What is known of a picture under its path, its name or its stem."""
    path = Path(file)
    return next((known[key] for key in (file, path.name, path.stem) if key in known), None)


def _json(file: Path) -> Any:
    """The content of a json file.

    Raises:
        ValueError: it is damaged; names it.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable json file ({error})") from error
