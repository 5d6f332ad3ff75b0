"""Invented people and detections for the metric tests."""

import numpy as np

from posegen.metrics.base import Judged, Poses

BODY = np.array(
    [
        [0, -9],
        [1, -10],
        [-1, -10],
        [2, -9],
        [-2, -9],
        [4, -6],
        [-4, -6],
        [6, -1],
        [-6, -1],
        [7, 3],
        [-7, 3],
        [2, 3],
        [-2, 3],
        [3, 8],
        [-3, 8],
        [3, 13],
        [-3, 13],
    ],
    float,
)


def person(x: float, y: float, scale: float = 1.0) -> np.ndarray:
    """``[17, 3]`` fully visible keypoints around (x, y)."""
    return np.concatenate([BODY * scale + [x, y], np.full((17, 1), 2.0)], 1)


def judged(image_id: str, people: list[np.ndarray], found: list[np.ndarray], scores: list[float], **more) -> Judged:
    """An image whose people have half of their box as area."""
    keypoints = np.array(people).reshape(-1, 17, 3)
    areas = np.prod(np.ptp(keypoints[..., :2], axis=1), axis=-1) / 2
    return Judged(
        image_id, keypoints, areas, Poses(np.array(found).reshape(-1, 17, 3), np.array(scores, float)), **more
    )


def random_set(images: int, seed: int = 0, noise: float = 2.0) -> list[Judged]:
    """People of mixed size and visibility, some nearly on top of each other; noisy, doubled, missed and surplus
    detections, some with equal scores."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(images):
        people = [person(*rng.uniform(20, 300, 2), rng.uniform(0.5, 12)) for _ in range(rng.integers(0, 4))]
        people += [jittered(rng, p * [*rng.uniform(0.9, 1.1, 2), 1], noise) for p in people if rng.random() < 0.4]
        for p in people:
            p[rng.random(17) < 0.3, 2] = 0
        found = [
            jittered(rng, p, noise * rng.uniform(0.2, 3))
            for p in people
            for _ in range(rng.choice(3, p=[0.15, 0.7, 0.15]))
        ]
        found += [person(*rng.uniform(20, 300, 2), rng.uniform(0.5, 12)) for _ in range(rng.integers(0, 3))]
        result.append(judged(f"image/{i}", people, found, rng.integers(1, 40, len(found)) / 40))
    return result


def jittered(rng: np.random.Generator, keypoints: np.ndarray, noise: float) -> np.ndarray:
    """``[17, 3]`` keypoints with ``noise`` pixels of error."""
    return keypoints + np.pad(rng.normal(0, noise, (17, 2)), ((0, 0), (0, 1)))
