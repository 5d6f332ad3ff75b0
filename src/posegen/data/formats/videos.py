"""The three video sets of Stable-Pose's evaluation as still images: UBC Fashion, DAVIS 2017 and DanceTrack.

The paper does not publish its frames, captions and pose detector: every table rests on the user's choice, as
`SELECTION` says in each sample's attributes and in the identity of the data.
"""

from __future__ import annotations

import configparser
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from posegen.data.condition import Defect
from posegen.data.formats.folder import NO_PEOPLE, Fault, Folder, prompts_of_csv
from posegen.data.on_disk.image_scan import file_stamp
from posegen.data.on_disk.source import FileSpan, ReportDefect, Source, StoredImage, existing_root
from posegen.io.atomic import read_json_or_empty, replacing
from posegen.io.hashes import joint_hash
from posegen.ranges import AtLeastOne

SELECTION = "own frame selection"
VIDEO_SPLITS = {"train": "train", "validation": "val", "test": "val"}  # the true tests have no labels
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
MANIFEST = "clip.json"


@dataclass(frozen=True)
class Selection:
    """The chosen frames of a clip: every ``stride``-th, or ``per_clip`` in all, from the middles of as many parts."""

    stride: int | None = None
    per_clip: int | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.stride, self.per_clip) if number is not None]
        if len(given) != 1 or given[0] < 1:
            both = f"data.stride={self.stride} and data.per_clip={self.per_clip}"
            raise ValueError(f"{both}: expected one positive number and one null")

    def of(self, count: int) -> list[int]:  # of ``count`` frames
        if self.stride is not None:
            return list(range(0, count, self.stride))
        parts = min(count, self.per_clip or count)
        return [int((i + 0.5) * count / parts) for i in range(parts)]

    @property
    def name(self) -> str:  # the folder of the chosen frames
        return f"stride_{self.stride}" if self.stride is not None else f"per_clip_{self.per_clip}"


def extract_videos(
    videos: Sequence[Path], target: Path, selection: Selection, report: Callable[[Path, str], None]
) -> Iterator[tuple[Path, Path]]:
    """Each video with the folder of its chosen frames, ``<target>/<clip>/<number>.png``.

    Frames of an earlier run on the same file are kept; a folder appears only when all its frames are there. Its
    ``clip.json`` records the video, its size and time of change, the selection, the frames and the version of OpenCV.
    ``report`` is called with each video that cannot be read, and the problem.
    """
    waiting = [video for video in videos if not _is_extracted(video, target / video.stem, selection)]
    failed = set()
    for video in tqdm(waiting, desc="frames", unit="clip", dynamic_ncols=True, disable=not waiting):
        try:
            extract_video(video, target / video.stem, selection)
        except ValueError as error:
            report(video, str(error))
            failed.add(video)
    yield from ((video, target / video.stem) for video in videos if video not in failed)


def extract_video(video: Path, folder: Path, selection: Selection) -> None:
    """Writes the chosen frames of one video. Raises ValueError: it cannot be decoded."""
    count = sum(1 for _ in _frames(video))  # the number in the file may be wrong
    if not count:
        raise ValueError("cannot be decoded (no frames)")
    chosen = selection.of(count)
    wanted, sizes = set(chosen), list[int]()
    with replacing(folder) as temporary:
        temporary.mkdir()
        for number, capture in enumerate(_frames(video)):
            if number in wanted:
                good, frame = capture.retrieve()
                if not good:
                    raise ValueError(f"frame {number} cannot be decoded")
                good, png = cv2.imencode(".png", frame)
                if not good:
                    raise ValueError(f"frame {number} cannot be encoded")
                sizes.append((temporary / f"{number:08d}.png").write_bytes(png.tobytes()))
        manifest = json.dumps(_manifest(video, selection) | {"frames": chosen, "sizes": sizes}, indent=1)
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")


def _frames(video: Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(video))
    try:
        while capture.grab():
            yield capture
    finally:
        capture.release()


def _manifest(video: Path, selection: Selection) -> dict[str, Any]:
    status = video.stat()
    about = {"clip": video.stem, "video": video.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
    return about | {"selection": asdict(selection), "opencv": cv2.__version__}


def _is_extracted(video: Path, folder: Path, selection: Selection) -> bool:
    found, now = read_json_or_empty(folder / MANIFEST), _manifest(video, selection)
    same = all(found.get(name) == now[name] for name in ("video", "bytes", "changed", "selection"))
    frames, sizes = found.get("frames"), found.get("sizes")
    if not same or not isinstance(frames, list) or not all(isinstance(number, int) for number in frames):
        return False
    stamps = [file_stamp(folder / f"{number:08d}.png") for number in frames]
    return all(stamps) and (sizes is None or sizes == [size for size, _ in stamps])  # earlier versions noted none


@dataclass(frozen=True)
class VideoClip:
    name: str  # of the clip, unique in its split
    frames: Sequence[tuple[int, str]]  # (number in the video, picture relative to the root) of the chosen frames
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of all frames
    size: tuple[int, int] | None = None  # (height, width); None where only the pictures show it


class Videos(Source):
    """Frames of videos, with poses and prompts of the user's; either ``stride`` or ``per_clip`` is given.
    Raises ValueError: no root, or a wrong choice of frames.
    """

    def __init__(
        self,
        root: str | Path,
        stride: AtLeastOne | None = None,  # every ``stride``-th frame, from the first
        per_clip: AtLeastOne | None = None,  # number of frames of each clip, evenly spaced
        poses: str | None = "poses.json",  # in COCO's format as ``posegen annotate`` writes it, below the root; or None
        prompt: str = "a person",  # of all frames; ``{clip}`` stands for the clip's name
        prompts: str | None = None,  # a csv file of ``clip,prompt`` or ``frame,prompt`` below the root, for others
    ) -> None:
        self.selection, self.root = Selection(stride, per_clip), existing_root(root)
        self.poses, self.prompt, self.prompts = poses, prompt, prompts

    @abstractmethod
    def clips(self, split: str, report: ReportDefect) -> Iterator[VideoClip]:
        """The clips of a split in a stable order. Raises FileNotFoundError: its list or folder is missing."""

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        people = self._people
        for clip in self.clips(split, report):
            prompt = self._captions.get(clip.name, self.prompt.replace("{clip}", clip.name))
            for number, picture in clip.frames:
                try:
                    keypoints, areas, size, frame, _ = people.people(picture) if people else NO_PEOPLE
                except ValueError as error:
                    report(Defect(picture, f"pose cannot be read: {error}"))
                    continue
                attributes = {"clip": clip.name, "frame": number, "frames": SELECTION, **self.about(clip, number)}
                caption = self._captions.get(picture, prompt)
                id, place = f"{self.name}/{clip.name}/{number:08d}", FileSpan(picture)
                yield StoredImage(id, caption, place, clip.size or size, keypoints, areas, attributes, frame)

    def about(self, clip: VideoClip, number: int) -> Mapping[str, Any]:  # attributes of one frame
        return clip.attributes

    def identity(self, split: str) -> dict[str, Any]:
        frames = json.dumps([[clip.name, clip.frames] for clip in self.clips(split, lambda defect: None)])
        files = [self.root / name for name in (self.poses, self.prompts) if name is not None]
        about = {"name": self.name, "selection": asdict(self.selection), "remark": SELECTION, "prompt": self.prompt}
        return {**about, "frames": joint_hash([frames, *(file for file in files if file.is_file())])}

    @cached_property
    def _people(self) -> Folder | None:
        if self.poses is None:
            return None
        if not (self.root / self.poses).is_file():
            fix = "find them with `posegen annotate` and put its file there, or read frames alone with data.poses=null"
            raise FileNotFoundError(f"data.poses={self.poses}: there is no {self.root / self.poses}; {fix}")
        return Folder(self.root, self.poses, prompts=None)

    @cached_property
    def _captions(self) -> Mapping[str, str]:
        if self.prompts is None:
            return {}
        file = self.root / self.prompts
        if not file.is_file():
            expected = "expected a csv file of clip,prompt or frame,prompt, or null"
            raise FileNotFoundError(f"data.prompts={self.prompts}: there is no {file}; {expected}")
        prompts = prompts_of_csv(file, "clip,prompt")
        if fault := next((prompt for prompt in prompts.values() if isinstance(prompt, Fault)), None):
            raise ValueError(f"{file}: {fault}")
        return prompts

    def _clip_of_folder(self, folder: Path, name: str, report: ReportDefect, **facts: Any) -> Iterator[VideoClip]:
        """The clip whose frames lie in a folder."""
        start, there = folder.relative_to(self.root).as_posix(), folder.is_dir()
        files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES) if there else []
        if not files:
            report(Defect(start, "no frames in it" if there else "missing"))
            return
        stems = [file.rpartition(".")[0] for file in files]
        numbers = [int(stem) if stem.isdecimal() else i for i, stem in enumerate(stems)]  # its place where it has none
        frames = [(numbers[i], f"{start}/{files[i]}") for i in self.selection.of(len(files))]
        yield VideoClip(name, frames, **facts)


class UBCFashion(Videos):
    """UBC Fashion (Zablotskaia et al., BMVC 2019): clips of one woman before a plain background.

    <root>/train/*.mp4, <root>/test/*.mp4      the videos of the two lists, or a folder of frames in place of a video

    The chosen frames are written once to ``<root>/frames/<choice>/<folder>/<clip>/``, whole clips at a time.
    ``folders``: split -> folder of its clips, relative to the root. Other arguments: see `Videos`.
    """

    name = "ubc_fashion"

    def __init__(self, root: str | Path, folders: Mapping[str, str] | None = None, **others: Any) -> None:
        super().__init__(root, **others)
        self.folders = dict({"train": "train", "validation": "test", "test": "test"} if folders is None else folders)

    def clips(self, split: str, report: ReportDefect) -> Iterator[VideoClip]:
        name = self.folders.get(split)
        if name is None or not (self.root / name).is_dir():
            fault = f"there is no folder {self.root / (name or split)}; expected one with the mp4 files of the split"
            raise FileNotFoundError(f"data.folders.{split}: {fault}")
        inside = sorted((self.root / name).iterdir())
        videos = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
        target = self.root / "frames" / self.selection.name / name
        extracted = extract_videos(
            videos, target, self.selection, lambda video, problem: report(Defect(f"{name}/{video.name}", problem))
        )
        for path, folder in extracted:
            files = sorted(file for file in folder.iterdir() if file.suffix == ".png")
            yield VideoClip(path.stem, [(int(file.stem), file.relative_to(self.root).as_posix()) for file in files])
        for folder in (path for path in inside if path.is_dir()):
            yield from self._clip_of_folder(folder, folder.name, report)


class DAVIS(Videos):
    """DAVIS 2017 (Pont-Tuset et al., arXiv:1704.00675): short videos of moving objects, people in some of them.

    <root>/JPEGImages/480p/<sequence>/00000.jpg
    <root>/ImageSets/2017/{train,val}.txt

    ``resolution`` is ``480p`` or ``Full-Resolution``; ``sequences``: names, usually of those with people; None: all.
    Other arguments: see `Videos`.
    """

    name = "davis"

    def __init__(
        self, root: str | Path, resolution: str = "480p", sequences: Sequence[str] | None = None, **others: Any
    ) -> None:
        super().__init__(root, **others)
        self.resolution, self.sequences = resolution, None if sequences is None else list(sequences)

    def clips(self, split: str, report: ReportDefect) -> Iterator[VideoClip]:
        file = self.root / "ImageSets" / "2017" / f"{_video_split(split)}.txt"
        names = _clip_names(file, "DAVIS 2017 brings it (DAVIS-2017-trainval-480p.zip)")
        folder = self.root / "JPEGImages" / self.resolution
        if not folder.is_dir():
            fault = f"there is no folder {folder}; expected one with a folder of frames per sequence"
            raise FileNotFoundError(f"data.resolution={self.resolution}: {fault}")
        for name in names:
            if self.sequences is None or name in self.sequences:
                yield from self._clip_of_folder(folder / name, name, report, attributes={"scenario": name})

    def identity(self, split: str) -> dict[str, Any]:
        return {**super().identity(split), "resolution": self.resolution, "sequences": self.sequences}

    def expected(self, split: str) -> Mapping[str, Any]:
        whole = self.sequences is None and self.selection == Selection(stride=1) and _video_split(split) == "val"
        return {"entries": 1999} if whole else {}


class DanceTrack(Videos):
    """DanceTrack (Sun et al., CVPR 2022): groups of dancers, with a box and a track for each.

    <root>/{train,val,test}/dancetrack0001/{img1/00000001.jpg, gt/gt.txt, seqinfo.ini}
    <root>/{train,val,test}_seqmap.txt                          40, 25 and 35 clips; those of test have no boxes

    The attribute ``boxes`` of a frame holds track -> x, y, width and height in pixels. There are no poses. ``part`` is
    the list of split ``test``: the labelled ``val``, or ``test``. Other arguments: see `Videos`.
    """

    name = "dance_track"

    def __init__(self, root: str | Path, part: str = "val", **others: Any) -> None:
        super().__init__(root, **others)
        self.part = part

    def _part(self, split: str) -> str:
        return self.part if split == "test" else _video_split(split)

    def clips(self, split: str, report: ReportDefect) -> Iterator[VideoClip]:
        part = self._part(split)
        hint = "DanceTrack brings it (https://huggingface.co/datasets/noahcao/dancetrack)"
        names = _clip_names(self.root / f"{part}_seqmap.txt", hint)
        for name in (name for name in names if name != "name"):  # the head of the list
            folder, boxes = self.root / part / name, {}
            try:
                boxes = boxes_of_frames(folder / "gt" / "gt.txt")
            except (FileNotFoundError, ValueError) as error:
                problem = "missing" if isinstance(error, OSError) else str(error)
                if part != "test" or problem != "missing":
                    report(Defect(f"{part}/{name}/gt/gt.txt", problem, fatal=False))
            facts = {"attributes": {"boxes": boxes}, "size": _clip_size(folder / "seqinfo.ini")}
            yield from self._clip_of_folder(folder / "img1", name, report, **facts)

    def about(self, clip: VideoClip, number: int) -> Mapping[str, Any]:
        boxes = clip.attributes["boxes"]
        return {"boxes": boxes.get(number, {})} if boxes else {}

    def identity(self, split: str) -> dict[str, Any]:
        return {**super().identity(split), "part": self._part(split)}


def boxes_of_frames(file: Path) -> dict[int, dict[str, list[float]]]:
    """Frame -> track -> box (x, y, width, height). Raises ValueError: a line has another form; names it."""
    boxes: dict[int, dict[str, list[float]]] = {}
    for i, line in enumerate(file.read_text(encoding="utf-8").split()):
        try:
            frame, track, *box = line.split(",")[:6]
            x, y, width, height = map(float, box)
            boxes.setdefault(int(frame), {})[track] = [x, y, width, height]
        except ValueError as error:
            raise ValueError(f"line {i + 1} is {line!r}; expected frame,track,left,top,width,height") from error
    return boxes


def _video_split(split: str) -> str:
    if split not in VIDEO_SPLITS:
        raise FileNotFoundError(f"no split {split}; there are {', '.join(VIDEO_SPLITS)}")
    return VIDEO_SPLITS[split]


def _clip_names(file: Path, hint: str) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, the list of the clips; {hint}")
    return file.read_text(encoding="utf-8").split()


def _clip_size(file: Path) -> tuple[int, int] | None:
    """(height, width) in a clip's ``seqinfo.ini``."""
    info = configparser.ConfigParser()
    try:
        info.read_string(file.read_text(encoding="utf-8"))
        return info.getint("Sequence", "imHeight"), info.getint("Sequence", "imWidth")
    except (OSError, ValueError, configparser.Error):
        return None
