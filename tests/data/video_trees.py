"""Video sets in miniature: coloured frames, as files, as clips where OpenCV can encode, and the sets' lists."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

SIZE = (48, 64)


def frame(number: int) -> np.ndarray:
    """A grey that tells the number."""
    return np.full((*SIZE, 3), 40 + 20 * number, np.uint8)


def number_of(image: np.ndarray) -> int:
    return round((float(image.mean()) - 40) / 20)


def video(file: Path, frames: int = 5) -> Path:
    """An mp4; skips the test where OpenCV was built without an encoder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 30, SIZE[::-1])  # type: ignore[attr-defined]
    if not writer.isOpened():
        pytest.skip("this build of OpenCV has no encoder for mp4, so that there is no video to read")
    for number in range(frames):
        writer.write(frame(number))
    writer.release()
    return file


def pictures(folder: Path, frames: int, name: str = "{:05d}.jpg", first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        cv2.imwrite(str(folder / name.format(number + first)), frame(number))


def davis(root: Path) -> Path:
    for name, frames in (("breakdance", 5), ("bear", 4), ("judo", 3)):
        pictures(root / "JPEGImages/480p" / name, frames)
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("bear\n")
    (lists / "val.txt").write_text("breakdance\njudo\n")
    return root


def dance_track(root: Path) -> Path:
    for part, names in (
        ("train", ("dancetrack0001",)),
        ("val", ("dancetrack0004", "dancetrack0005")),
        ("test", ("dancetrack0003",)),
    ):
        (root / f"{part}_seqmap.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{part}_seqmap.txt").write_text("name\n" + "\n".join(names) + "\n")
        for name in names:
            pictures(root / part / name / "img1", 4, "{:08d}.jpg", first=1)
            (root / part / name / "seqinfo.ini").write_text(
                f"[Sequence]\nname={name}\nimWidth={SIZE[1]}\nimHeight={SIZE[0]}\n"
            )
            if part != "test":
                (root / part / name / "gt").mkdir()
                lines = [f"{f},{track},{10 * track},5,8,30,1,1,1" for track in (1, 2) for f in range(1, 4)]
                (root / part / name / "gt/gt.txt").write_text("\n".join(lines) + "\n")
    return root


def poses(root: Path, files: dict[str, int], name: str = "poses.json") -> None:
    """A file in COCO's format with so many people in each of the pictures."""
    images = [{"id": i, "file_name": file, "height": SIZE[0], "width": SIZE[1]} for i, file in enumerate(files)]
    people = [
        {
            "image_id": i,
            "id": 100 * i + k,
            "category_id": 1,
            "keypoints": [10 + k, 20, 0.9] * 17,
            "score": 0.9,
            "area": 400.0,
            "bbox": [10, 20, 5, 5],
        }
        for i, count in enumerate(files.values())
        for k in range(count)
    ]
    (root / name).write_text(json.dumps({"images": images, "annotations": people}))
