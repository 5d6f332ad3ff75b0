"""The three video sets of Stable-Pose's evaluation as still pictures: UBC Fashion, DAVIS 2017 and DanceTrack.

Which frames were taken, who captioned them and which detector found the poses was never published, so every table made with them rests on frames of one's own
choice; `SELECTION` says so in the attributes of every sample and in the identity of the data.
"""

from __future__ import annotations

import configparser
import csv
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.formats.folder import Folder, People
from posegen.data.formats.video_frames import PICTURES, VIDEOS, Selection, extracted
from posegen.data.on_disk.source import Defect, Entry, Place, Report, Source

SELECTION = "own frame selection"
PARTS = {
    "train": "train",
    "validation": "val",
    "test": "val",
}  # split -> what the sets call it; the true tests are labelled nowhere
NOBODY = People(np.zeros((0, 17, 3), np.float32))


@dataclass(frozen=True)
class Clip:
    """One video.

    Attributes:
        name: of the clip, unique in its split.
        frames: (number in the video, picture relative to the root) of the chosen frames.
        attributes: facts about all of them.
        size: (height, width), None where only the pictures tell.
    """

    name: str
    frames: Sequence[tuple[int, str]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


class Videos(Source):
    """Frames of videos, with poses and prompts that their user brings.

    Args:
        root: the folder of the data set.
        stride: every so many frames, counted from the first; None where ``per_clip`` is given.
        per_clip: so many frames of each clip, evenly spaced; None where ``stride`` is given.
        poses: a file in COCO's format with the people of the frames, as ``posegen annotate`` writes it, relative to the root; None: nobody has a pose.
        prompt: the prompt of all frames; ``{clip}`` stands for the clip's name.
        prompts: a csv file of ``clip,prompt`` or ``frame,prompt``, relative to the root, for those that ``prompt`` does not fit; None: there is none.

    Raises:
        ValueError: the root is no folder, or the choice of frames cannot be.
    """

    def __init__(
        self,
        root: str | Path,
        stride: int | None = None,
        per_clip: int | None = None,
        poses: str | None = "poses.json",
        prompt: str = "a person",
        prompts: str | None = None,
    ) -> None:
        self.root, self.selection, self.prompt = Path(root).expanduser(), Selection(stride, per_clip), prompt
        self.poses, self.prompts = poses, prompts
        if not self.root.is_dir():
            raise ValueError(f"data.root={root}: no such folder")

    @abstractmethod
    def clips(self, split: str, report: Report) -> Iterator[Clip]:
        """The clips of a split in a stable order.

        Raises:
            FileNotFoundError: the list or the folder of the split is missing.
        """

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        people = self._people
        for clip in self.clips(split, report):
            prompt = self._captions.get(clip.name, self.prompt.replace("{clip}", clip.name))
            for number, picture in clip.frames:
                keypoints, areas, size = people.people(picture) if people else NOBODY
                attributes = {"clip": clip.name, "frame": number, "frames": SELECTION, **self.about(clip, number)}
                caption = self._captions.get(picture, prompt)
                yield Entry(
                    f"{self.name}/{clip.name}/{number:08d}",
                    caption,
                    Place(picture),
                    clip.size or size,
                    keypoints,
                    areas,
                    attributes,
                )

    def about(self, clip: Clip, number: int) -> Mapping[str, Any]:
        """Attributes of one frame."""
        return clip.attributes

    def identity(self, split: str) -> dict[str, Any]:
        sha = hashlib.sha256(
            json.dumps([[clip.name, clip.frames] for clip in self.clips(split, lambda defect: None)]).encode()
        )
        for file in (self.poses, self.prompts):
            if file is not None and (self.root / file).is_file():
                sha.update((self.root / file).read_bytes())
        return {
            "name": self.name,
            "selection": self.selection.identity,
            "remark": SELECTION,
            "prompt": self.prompt,
            "frames": sha.hexdigest()[:16],
        }

    @cached_property
    def _people(self) -> Folder | None:
        """Reads the poses.

        Raises:
            FileNotFoundError: the file is not there.
        """
        if self.poses is None:
            return None
        if not (self.root / self.poses).is_file():
            raise FileNotFoundError(
                f"data.poses={self.poses}: there is no {self.root / self.poses}. The set has no poses: find them with `posegen annotate`, put its file "
                "there, or read frames without poses with data.poses=null"
            )
        return Folder(self.root, self.poses, prompts=None)

    @cached_property
    def _captions(self) -> Mapping[str, str]:
        """Prompts by clip or frame.

        Raises:
            FileNotFoundError: the file is not there.
            ValueError: a line of it has something else than two values.
        """
        if self.prompts is None:
            return {}
        file = self.root / self.prompts
        if not file.is_file():
            raise FileNotFoundError(
                f"data.prompts={self.prompts}: there is no {file}; expected a csv file of clip,prompt or frame,prompt, or null"
            )
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
        if wrong := next((row for row in rows if len(row) != 2), None):
            raise ValueError(
                f"{file}: a line has {len(wrong)} values ({wrong}); expected clip,prompt, with quotes around a prompt with commas"
            )
        return dict(rows)

    def _pictures(self, folder: Path, name: str, report: Report, **facts: Any) -> Iterator[Clip]:
        """The clip whose frames lie in a folder."""
        files = (
            sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICTURES) if folder.is_dir() else []
        )
        if not files:
            report(
                Defect(folder.relative_to(self.root).as_posix(), "no frames in it" if folder.is_dir() else "missing")
            )
            return
        start = folder.relative_to(self.root).as_posix()
        yield Clip(
            name, [(_number(files[i], i), f"{start}/{files[i]}") for i in self.selection.of(len(files))], **facts
        )


def _number(file: str, position: int) -> int:
    """The number that a frame's file name is, its position where it is none."""
    stem = Path(file).stem
    return int(stem) if stem.isdecimal() else position


class UBCFashion(Videos):
    """UBC Fashion (Zablotskaia et al., BMVC 2019): clips of one woman before a plain background.

    <root>/train/*.mp4, <root>/test/*.mp4      the videos of the two lists; or a folder of frames in the place of any of them

    The chosen frames of videos are written to ``<root>/frames/<choice>/<folder>/<clip>/`` once, whole clips at a time.

    Args:
        folders: split -> folder of its clips, relative to the root.
        others: see `Videos`.
    """

    name = "ubc_fashion"

    def __init__(self, root: str | Path, folders: Mapping[str, str] | None = None, **others: Any) -> None:
        super().__init__(root, **others)
        self.folders = (
            dict(folders) if folders is not None else {"train": "train", "validation": "test", "test": "test"}
        )

    def clips(self, split: str, report: Report) -> Iterator[Clip]:
        name = self.folders.get(split)
        if name is None or not (self.root / name).is_dir():
            raise FileNotFoundError(
                f"data.folders.{split}: there is no folder {self.root / (name or split)}; expected one with the mp4 files of the split"
            )
        inside = sorted((self.root / name).iterdir())
        videos = [path for path in inside if path.suffix.lower() in VIDEOS]
        target = self.root / "frames" / self.selection.name / name
        for path, folder in extracted(
            videos, target, self.selection, lambda video, problem: report(Defect(f"{name}/{video.name}", problem))
        ):
            files = sorted(file for file in folder.iterdir() if file.suffix == ".png")
            yield Clip(path.stem, [(int(file.stem), file.relative_to(self.root).as_posix()) for file in files])
        for folder in (path for path in inside if path.is_dir()):
            yield from self._pictures(folder, folder.name, report)


class DAVIS(Videos):
    """DAVIS 2017 (Pont-Tuset et al., arXiv:1704.00675): short videos of things that move, people in some of them.

    <root>/JPEGImages/480p/<sequence>/00000.jpg
    <root>/ImageSets/2017/{train,val}.txt

    Args:
        resolution: ``480p`` or ``Full-Resolution``.
        sequences: those that are used, because people are in them; None for all.
        others: see `Videos`.
    """

    name = "davis"

    def __init__(
        self, root: str | Path, resolution: str = "480p", sequences: Sequence[str] | None = None, **others: Any
    ) -> None:
        super().__init__(root, **others)
        self.resolution, self.sequences = resolution, None if sequences is None else list(sequences)

    def clips(self, split: str, report: Report) -> Iterator[Clip]:
        names = _lines(
            self.root / "ImageSets" / "2017" / f"{_listed(split)}.txt",
            "DAVIS 2017 brings it (DAVIS-2017-trainval-480p.zip)",
        )
        folder = self.root / "JPEGImages" / self.resolution
        if not folder.is_dir():
            raise FileNotFoundError(
                f"data.resolution={self.resolution}: there is no folder {folder}; expected one with a folder of frames per sequence"
            )
        for name in names:
            if self.sequences is None or name in self.sequences:
                yield from self._pictures(folder / name, name, report, attributes={"scenario": name})

    def identity(self, split: str) -> dict[str, Any]:
        return {**super().identity(split), "resolution": self.resolution, "sequences": self.sequences}

    def expected(self, split: str) -> Mapping[str, Any]:
        whole = self.sequences is None and self.selection == Selection(stride=1) and _listed(split) == "val"
        return {"entries": 1999} if whole else {}


class DanceTrack(Videos):
    """DanceTrack (Sun et al., CVPR 2022): groups of dancers, with a box and a track for each.

    <root>/{train,val,test}/dancetrack0001/{img1/00000001.jpg, gt/gt.txt, seqinfo.ini}
    <root>/{train,val,test}_seqmap.txt                          40, 25 and 35 clips; those of test have no boxes

    The boxes of a frame stand in its attribute ``boxes``: track -> x, y, width and height in pixels of the stored picture. There are no poses.

    Args:
        part: of the three, for split ``test``; its own ``test`` or the labelled ``val``.
        others: see `Videos`.
    """

    name = "dance_track"

    def __init__(self, root: str | Path, part: str = "val", **others: Any) -> None:
        super().__init__(root, **others)
        self.part = part
        self._boxes: tuple[str, dict[int, dict[str, list[float]]]] = ("", {})

    def _part(self, split: str) -> str:
        return self.part if split == "test" else _listed(split)

    def clips(self, split: str, report: Report) -> Iterator[Clip]:
        part = self._part(split)
        for name in _lines(
            self.root / f"{part}_seqmap.txt",
            "DanceTrack brings it (https://huggingface.co/datasets/noahcao/dancetrack)",
        ):
            if name == "name":  # the head of the list
                continue
            folder = self.root / part / name
            truth = folder / "gt" / "gt.txt"
            if truth.is_file():
                try:
                    boxes_of(truth)
                except ValueError as error:
                    report(Defect(f"{part}/{name}/gt/gt.txt", str(error), fatal=False))
            elif part != "test":
                report(Defect(f"{part}/{name}/gt/gt.txt", "missing", fatal=False))
            yield from self._pictures(folder / "img1", name, report, size=_size(folder / "seqinfo.ini"))

    def about(self, clip: Clip, number: int) -> Mapping[str, Any]:
        file = self.root / Path(clip.frames[0][1]).parent.parent / "gt" / "gt.txt"
        if self._boxes[0] != clip.name:
            try:
                self._boxes = clip.name, boxes_of(file) if file.is_file() else {}
            except ValueError:  # reported with the clip
                self._boxes = clip.name, {}
        return {"boxes": self._boxes[1].get(number, {})} if self._boxes[1] else {}

    def identity(self, split: str) -> dict[str, Any]:
        return {**super().identity(split), "part": self._part(split)}


def boxes_of(file: Path) -> dict[int, dict[str, list[float]]]:
    """Frame -> track -> box (x, y, width, height), of a file with lines ``frame,track,left,top,width,height,...``.

    Raises:
        ValueError: a line is something else; names it.
    """
    boxes: dict[int, dict[str, list[float]]] = {}
    for i, line in enumerate(file.read_text(encoding="utf-8").split()):
        try:
            frame, track, *box = line.split(",")[:6]
            x, y, width, height = map(float, box)
            boxes.setdefault(int(frame), {})[track] = [x, y, width, height]
        except ValueError as error:
            raise ValueError(f"line {i + 1} is {line!r}; expected frame,track,left,top,width,height") from error
    return boxes


def _listed(split: str) -> str:
    if split not in PARTS:
        raise FileNotFoundError(f"no split {split}; there are {', '.join(PARTS)}")
    return PARTS[split]


def _lines(file: Path, source: str) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, the list of the clips; {source}")
    return file.read_text(encoding="utf-8").split()


def _size(file: Path) -> tuple[int, int] | None:
    """(height, width) as a clip's ``seqinfo.ini`` has it."""
    info = configparser.ConfigParser()
    try:
        info.read_string(file.read_text(encoding="utf-8"))
        return info.getint("Sequence", "imHeight"), info.getint("Sequence", "imWidth")
    except (OSError, ValueError, configparser.Error):
        return None
