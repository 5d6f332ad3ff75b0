"""Frames of videos: the choice of frames, and their image files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from posegen.io.atomic import read_json_or_empty, replacing

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
    wanted = set(chosen)
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
                (temporary / f"{number:08d}.png").write_bytes(png.tobytes())
        manifest = json.dumps(_manifest(video, selection) | {"frames": chosen}, indent=1)
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
    return same and all((folder / f"{number:08d}.png").is_file() for number in found["frames"])
