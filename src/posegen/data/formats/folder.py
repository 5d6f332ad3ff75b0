"""The user's pictures: a folder of them, one file of poses, and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.condition import Defect
from posegen.data.on_disk.picture_names import NamedPictures, by_stem
from posegen.data.on_disk.source import FileSpan, ReportDefect, Source, StoredImage, existing_root
from posegen.io.foreign_files import csv_rows, read_foreign_text, read_json_or_lines
from posegen.io.hashes import hash_fraction, joint_hash
from posegen.io.pictures import PICTURE_SUFFIXES, is_utf8, pictures_below, printable
from posegen.poses.pose import Losses
from posegen.poses.pose_files import PosedImage, read_posed_images
from posegen.poses.topology import COCO_17, topology_named
from posegen.ranges import TopologyName, ZeroToOne

SPLITS = ("train", "validation", "test")
PICTURE_KEYS, PROMPT_KEYS = ("target", "file_name", "file", "image"), ("prompt", "text", "caption")


class PicturePeople(NamedTuple):
    """The people of a picture."""

    keypoints: np.ndarray  # ``[P, 17, 3] float32``
    areas: np.ndarray | None = None  # ``[P] float32``, NaN where unknown
    size: tuple[int, int] | None = None  # (height, width) of the picture, where the file of poses has it
    canvas: tuple[int, int] | None = None  # (height, width) of the canvas of the joints, where it may be another one
    listed: int = 0  # how often the file of poses lists the picture


NO_PEOPLE = PicturePeople(np.zeros((0, 17, 3), np.float32))


class PictureList(NamedTuple):
    """What a file, or files beside the pictures, say about pictures, by the names that they use."""

    things: Mapping[str, Any]
    pictures: NamedPictures
    faults: Sequence[str] = ()
    remarks: Sequence[str] = ()


class Folder(Source):
    """A folder of pictures; paths are relative to it. Raises ValueError: one is missing, or shares do not add up to 1.

    ``poses`` is a json file in COCO's format (``posegen annotate`` writes one), or a folder with an OpenPose json file
    per picture (``<stem>_keypoints.json`` or ``<stem>.json``; "." is beside the pictures). ``prompts`` is a json file
    ``{picture: prompt}``, a csv file of ``file,prompt``, or a folder with a ``<stem>.txt`` per picture. A name fits a
    picture as `NamedPictures` says; a picture with a damaged or doubtful entry is left out.
    """

    canvases_fit = True

    def __init__(
        self,
        root: str | Path,  # pictures may lie in folders inside it
        poses: str | None = "poses.json",  # None: no poses
        prompts: str | None = "prompts.json",  # None: all prompts are empty
        folders: Mapping[str, str] | None = None,  # split -> its folder; None: by the SHA-1 of the picture's path
        shares: Sequence[ZeroToOne] = (0.8, 0.1, 0.1),  # of train, validation and test, where there are no ``folders``
        name: str = "folder",  # of the data set, for ids and files
        topology: TopologyName | None = None,  # skeleton of the poses where they do not tell
    ) -> None:
        self.root, self.name, self._suspicions = existing_root(root), name, dict[str, list[str]]()
        self.folders, self.shares = folders and dict(folders), tuple(shares)
        self.topology, self._losses = None if topology is None else topology_named(topology), Losses(COCO_17)
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
            parts += [file for file in files if file.is_file() and file.suffix.lower() not in PICTURE_SUFFIXES]
        named = {} if self.topology is None else {"topology": self.topology.title}
        about = {"name": self.name, "folders": self.folders, "shares": self.shares}
        return {**about, "files": joint_hash(parts), **named}

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
        return [name for name in _names(self.root, start) if is_utf8(name)]

    def split_of(self, file: str) -> str:
        place = np.searchsorted(np.cumsum(self.shares), hash_fraction(file), side="right")
        return SPLITS[min(int(place), len(SPLITS) - 1)]

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        files = self.pictures(split)
        for name in _names(self.root, self.root):
            if not is_utf8(name):
                report(Defect(printable(name), "its name is no text in UTF-8; rename it"))
        for text in self._posed.faults:
            report(Defect(str(self.poses and self.poses.name), text))
        for text in self._posed.remarks:
            report(Defect(str(self.poses and self.poses.name), text, fatal=False))
        for file in dict.fromkeys([*self._posed.pictures.absent, *self._prompted.pictures.absent]):
            mine = file.startswith(f"{self.folders[split]}/") if self.folders else self.split_of(file) == split
            if mine and Path(file).suffix:
                report(Defect(file, "missing"))
        people_found = 0
        for file in files:
            try:
                if (prompt := self.prompt(file)) is None:
                    report(Defect(file, f"no prompt in {self.prompts and self.prompts.name}"))
                    continue
            except ValueError as error:
                report(Defect(file, f"prompt cannot be read: {error}"))
                continue
            try:
                people = self.people(file)
            except ValueError as error:
                report(Defect(file, f"pose cannot be read: {error}"))
                continue
            if people.listed > 1:
                report(Defect(file, f"listed {people.listed} times; the people of all are taken", fatal=False))
            people_found += len(people.keypoints)
            place, about = FileSpan(file), (people.keypoints, people.areas)
            yield StoredImage(f"{self.name}/{file}", prompt, place, people.size, *about, frame=people.canvas)
        for sentence in self._losses.sentences:
            report(Defect(str(self.poses and self.poses.name), sentence, fatal=False))
        self._suspicions[split] = []
        if self.poses and files and not people_found:
            named = next(iter(self._posed.things), "nothing")
            self._suspicions[split] += [f"no picture has a pose: data.poses names {named}, and on disk is {files[0]}"]

    def suspicions(self, split: str) -> list[str]:
        return list(self._suspicions.get(split, ()))

    def people(self, file: str) -> PicturePeople:
        """The people of a picture; nobody where it is not listed. Raises ValueError: its poses are damaged, or it
        cannot be told whether they are its.
        """
        images = list[PosedImage]()
        for name in self._posed.pictures.require_clear(file):
            found = self._posed.things[name]
            if isinstance(found, Path):
                [*found] = read_posed_images(found, self.topology).images
                if len(found) > 1:
                    raise ValueError(f"{name} holds the poses of {len(found)} images; expected those of one")
            images += found
        if problem := next((image.problem for image in images if image.problem), ""):
            raise ValueError(problem)
        if any(image.drawing for image in images):
            raise ValueError("a drawn skeleton; expected keypoints")
        sizes = {image.size for image in images if image.size}
        if len(sizes) > 1:
            raise ValueError(f"listed with the sizes {sorted(sizes)} (height, width)")
        for image in images:
            self._losses.add(image.pose)
        people = [pair for image in images for pair in zip(image.people, image.areas, strict=True)]
        if len(images) > 1:  # lists that were joined may hold the same person
            people = list({person.tobytes(): (person, area) for person, area in people}.values())
        keypoints = np.array([person for person, _ in people], np.float32).reshape(-1, 17, 3)
        areas = np.array([area for _, area in people], np.float32)
        size, canvas = next(iter(sizes), None), any(image.is_canvas for image in images)
        beside = self.poses is not None and self.poses.is_dir()
        return PicturePeople(
            keypoints, None if beside else areas, None if canvas else size, size if canvas else None, len(images)
        )

    @cached_property
    def _posed(self) -> PictureList:
        """Images of a file by the names of their pictures, or files beside the pictures."""
        if self.poses is None or self.poses.is_dir():
            return self._list(self._beside(self.poses, ".json"))
        found, things = read_posed_images(self.poses, self.topology), dict[str, list[PosedImage]]()
        for image in found.images:
            if not image.picture:
                expected = "expected COCO's images with a file_name, or a folder with a file per picture"
                raise ValueError(f"{self.poses}: {image.label or 'its pose'} names no picture; {expected}")
            things.setdefault(image.picture, []).append(image)
        return self._list(things)._replace(faults=found.faults, remarks=found.remarks)

    def _list(self, things: Mapping[str, Any]) -> PictureList:
        starts = {self.root, *(self.root / folder for folder in (self.folders or {}).values())}
        every = sorted({name for start in starts for name in self._below(start)})
        found = NamedPictures(things, every)
        return PictureList(things, found)

    def _beside(self, folder: Path | None, suffix: str) -> dict[str, Path]:
        files = sorted(folder.rglob(f"*{suffix}")) if folder else ()
        named = {file.relative_to(folder).as_posix(): file for file in files} if folder else {}
        seen = {name: file for name, file in named.items() if not any(p.startswith(".") for p in Path(name).parts)}
        return {name: seen[file] for name, file in by_stem(seen).items()}

    def prompt(self, file: str) -> str | None:
        """The prompt of a picture; None where it has none. Raises ValueError: it is damaged, or may be another's."""
        if self.prompts is None:
            return ""
        prompts = [self._prompted.things[name] for name in self._prompted.pictures.require_clear(file)]
        texts = {read_foreign_text(found).strip() if isinstance(found, Path) else found for found in prompts}
        if len(texts) > 1:
            raise ValueError(f"there are {len(texts)} for it")
        if any(isinstance(text, Fault) for text in texts):
            raise ValueError(f"{next(iter(texts))}")
        return next(iter(texts), None)

    @cached_property
    def _prompted(self) -> PictureList:
        if self.prompts is None or self.prompts.is_dir():
            return self._list(self._beside(self.prompts, ".txt"))
        if self.prompts.suffix.lower() == ".csv":
            prompts = prompts_of_csv(self.prompts, "file,prompt")
            return self._list(
                {file: prompt for file, prompt in prompts.items() if (file, prompt) != ("file", "prompt")}
            )
        content = read_json_or_lines(self.prompts, "mend it")
        if isinstance(content, list):  # lines as of ControlNet's training data, or an image folder's metadata
            rows = [row if isinstance(row, dict) else {} for row in content]
            content = {str(_first(row, PICTURE_KEYS)): _first(row, PROMPT_KEYS) for row in rows}
        if not isinstance(content, dict) or "None" in content or not any(isinstance(p, str) for p in content.values()):
            raise ValueError(f"{self.prompts}: expected {{picture: prompt}}, both text")
        wrong = {name: Fault(f"{str(p)[:80]!r} is no text") for name, p in content.items() if not isinstance(p, str)}
        return self._list({**content, **wrong})


class Fault(str):
    """Why a prompt cannot be used, in its place."""


def _names(root: Path, start: Path) -> list[str]:
    """The pictures below a folder, relative to the root."""
    return sorted(file.relative_to(root).as_posix() for file in pictures_below(start))


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if key in row), None)


def prompts_of_csv(file: Path, columns: str) -> dict[str, str]:
    """Prompts by name, of a csv file of two columns; a `Fault` for a line with another number of values, and for two
    lines of one name. Raises ValueError: no line is usable; names one.
    """
    prompts: dict[str, str] = {}
    for number, row in csv_rows(file):
        wrong = f"a line has {len(row)} values (line {number}: {row}); expected {columns}, "
        wrong += "with quotes around a prompt with commas"
        prompt: str = row[1] if len(row) == 2 else Fault(wrong)
        same = prompts.setdefault(row[0], prompt) == prompt
        prompts[row[0]] = prompt if same else Fault(f"line {number} has another prompt for it than an earlier one")
    if prompts and all(isinstance(prompt, Fault) for prompt in prompts.values()):
        raise ValueError(f"{file}: {next(iter(prompts.values()))}")
    return prompts
