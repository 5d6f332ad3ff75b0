"""COCO's two annotation files in miniature: people who are alone or not, with invented joints and captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def person(
    image: int, joints: int = 17, box: tuple[float, float, float, float] = (20.0, 30.0, 60.0, 120.0), **more: Any
) -> dict[str, Any]:
    """A person of whom the first joints are labelled, each second of them hidden."""
    rng = np.random.default_rng(image)
    x, y, width, height = box
    points = np.zeros((17, 3))
    points[:joints, 0], points[:joints, 1] = (
        x + width * rng.uniform(0.1, 0.9, joints),
        y + height * rng.uniform(0.1, 0.9, joints),
    )
    points[:joints, 2] = np.where(np.arange(joints) % 2, 1, 2)
    row = {
        "image_id": image,
        "keypoints": points.flatten().tolist(),
        "num_keypoints": joints,
        "bbox": list(box),
        "area": 0.5 * width * height,
    }
    return {**row, "category_id": 1, "iscrowd": 0, **more}


def write_pair(
    root: Path, people: list[dict[str, Any]], captions: list[tuple[int, str]], year: str = "train2014"
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"person_keypoints_{year}.json").write_text(json.dumps({"images": [], "annotations": people}))
    (root / f"captions_{year}.json").write_text(
        json.dumps({"annotations": [{"image_id": image, "caption": text} for image, text in captions]})
    )
    return root


def singles(root: Path, count: int = 10, captions: int = 5) -> Path:
    """People alone in images 1 to ``count``, of whom the joints 15 and 16 are not labelled."""
    texts = [(image, f"caption {k} of {image}") for image in range(1, count + 1) for k in range(captions)]
    return write_pair(root, [person(image, 15) for image in range(1, count + 1)], texts)
