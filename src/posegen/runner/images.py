"""Pictures that people look at: target, sample and what the judge sees in it, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from posegen.data.base import PoseData, to_uint8
from posegen.errors import UserError
from posegen.io.atomic import replacing, write_text
from posegen.io.hashes import file_hash
from posegen.metrics.base import Poses
from posegen.poses.drawing import overlay

AGAIN = "delete it and run the command of this cell again, which makes it again"
SHOWN = 16  # pictures of a cell on the results page
SCORE = 0.1  # least score of a keypoint that is drawn
HASHES = "pictures.sha256"  # of what was sampled, as ``sha256sum`` writes and checks it
PER_SCENARIO = 5  # pictures of each scenario that are kept to look at


def triple(image: np.ndarray, target: np.ndarray, found: Poses, zoom: int = 3) -> np.ndarray:
    """Target pose, sample, and sample with the re-detected pose, side by side, enlarged."""
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    wanted = overlay(np.zeros_like(large), enlarged(target, zoom))
    seen = overlay(large, enlarged(visible(found.keypoints), zoom))
    return np.concatenate([wanted, large, seen], axis=1)


def pictured(data: PoseData) -> set[int]:
    """The images that people look at: the first ones, and the first of each scenario."""
    chosen, counts = set(range(min(SHOWN, len(data)))), Counter[Any]()
    for i in range(len(data)):
        scenario = data.seen(i, image=False).attributes.get("scenario")
        counts[scenario] += 1
        if scenario is not None and counts[scenario] <= PER_SCENARIO:
            chosen.add(i)
    return chosen


def keep_sources(cell: Path, data: PoseData, indices: Iterable[int]) -> None:
    """Writes ``cell/sources/<index>.png``: the pictures that give these samples their appearance, side by side."""
    for i in indices:
        sources = [to_uint8(sample.tensor[None])[0] for sample in data.sources_of(i)]
        write_png(picture(cell / "sources", i), np.concatenate(sources, axis=1))


def visible(detected: np.ndarray) -> np.ndarray:
    """Detections ``[N, 17, 3]`` with their scores as visibility."""
    marked = detected.copy()
    marked[..., 2] = np.where(detected[..., 2] >= SCORE, 2, 0)
    return marked


def enlarged(keypoints: np.ndarray, zoom: int) -> np.ndarray:
    """Keypoints of a canvas whose every pixel became ``zoom`` by ``zoom`` pixels."""
    larger = keypoints.copy()
    larger[..., :2] = (larger[..., :2] + 0.5) * zoom - 0.5
    return larger


def under(names: Sequence[str], widths: Sequence[int], lines: Sequence[np.ndarray]) -> np.ndarray | None:
    """The lines below a strip with the names of their columns, which are ``widths`` panels wide; None without lines."""
    if not lines:
        return None
    if len(sizes := {line.shape[1] for line in lines}) > 1:
        fix = "delete the wrong ones in judged, or the whole folder, and run the command of this cell again"
        raise UserError(f"the pictures of judged samples have different sizes, {sorted(sizes)} pixels in a line; {fix}")
    side, height = lines[0].shape[1] // sum(widths), 26
    strip = np.full((height, lines[0].shape[1], 3), 255, np.uint8)
    for name, left in zip(names, np.cumsum([0, *widths]), strict=False):
        text, place, font = (
            name.removeprefix("reference/"),
            (int(left) * side + 6, height - 8),
            cv2.FONT_HERSHEY_SIMPLEX,
        )
        cv2.putText(strip, text, place, font, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([strip, *lines])


def picture(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def absent(*files: Path) -> list[Path]:
    return [file for file in files if not file.is_file()]


def absent_pictures(folder: Path, indices: Iterable[int], needed: bool = False) -> list[Path]:
    """The pictures, and the numbers beside them if it has some, that a folder should have and has not; of a folder
    that is not there none, unless it is ``needed``."""
    found = {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()
    suffixes = {Path(name).suffix for name in found} & {".npy"} | {".png"}
    names = [picture(folder, i).with_suffix(suffix) for i in indices for suffix in suffixes]
    return [path for path in names if path.name not in found] if found or needed else []


def write_png(path: Path, image: np.ndarray) -> None:
    """``[H, W, 3] uint8`` RGB to a png file."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data.tobytes())


def read_png(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The RGB image ``[H, W, 3] uint8`` of a picture file; a UserError names one that is damaged, or whose (height,
    width) is not the ``size`` that it must have."""
    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise UserError(f"{path} is not a readable picture; {AGAIN}")
    if size is not None and image.shape[:2] != tuple(size):
        found = f"{image.shape[1]} x {image.shape[0]} pixels, expected {size[1]} x {size[0]}"
        raise UserError(f"{path} has {found}; {AGAIN}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def known_hashes(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the samples in ``folder``, as `note_hashes` left them; empty without it."""
    path = folder / HASHES
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    return {name: found for found, _, name in (line.partition("  ") for line in lines)}


def note_hashes(folder: Path, without: Iterable[str] = ()) -> None:
    """Writes the hashes of samples that have none yet; ``without``: samples whose hashes are forgotten first."""
    known = {name: found for name, found in known_hashes(folder).items() if name not in {*without}}
    every = {file.name: file for file in folder.iterdir() if file.suffix in (".png", ".npy")} if not without else {}
    known |= {name: file_hash(file) for name, file in every.items() if name not in known}
    write_text(folder / HASHES, "".join(f"{known[name]}  {name}\n" for name in sorted(known)))


def changed_samples(folder: Path) -> list[Path]:
    """The samples that are others than those whose hashes were noted."""
    known = known_hashes(folder)
    return [
        folder / name for name in sorted(known) if (folder / name).is_file() and file_hash(folder / name) != known[name]
    ]
