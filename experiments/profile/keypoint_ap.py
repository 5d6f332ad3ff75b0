"""Keypoint AP of a whole set: `experiments.profile.coco.evaluate` against pycocotools and faster-coco-eval.

Every program has its input in memory in the form that it needs; measured are the similarities, the matching and the
accumulation over three ranges of areas.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

from experiments.profile.coco import evaluate
from experiments.profile.timing import Timing
from posegen.poses.topology import COCO_SIGMAS

#: Package -> its classes, and the ratio that is the target. Ids begin at 1: pycocotools takes id 0 for no match.
PROGRAMS = {
    "pycocotools": ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval", 3.0),
    "faster-coco-eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster", 1.0),
}
STATISTICS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


@dataclass(frozen=True, eq=False)
class People:
    """Invented people and detections of n images.

    Attributes:
        keypoints, areas: n arrays ``[P_i, 17, 3]`` and ``[P_i]``.
        found, scores: n arrays ``[D_i, 17, 3]`` and ``[D_i]``.
    """

    keypoints: list[np.ndarray]
    areas: list[np.ndarray]
    found: list[np.ndarray]
    scores: list[np.ndarray]


def measure_keypoint_ap(
    repetitions: int, images: int = 5000, people: int = 12_588, detections: int = 30_000
) -> list[Timing]:
    """One entry per program, ``repetitions`` times each way, in turns.

    Raises:
        ImportError: one of them is not installed.
    """
    made = invented_people(images, people, detections)
    return [compared_program(name, made, repetitions) for name in PROGRAMS]


def compared_program(program: str, made: People, repetitions: int) -> Timing:
    run = prepared(program, made)
    ours, theirs, agreement = [], [], 0.0
    for _ in range(max(1, repetitions)):
        values, seconds = timed(lambda: evaluate(made.keypoints, made.areas, made.found, made.scores))
        ours.append(seconds)
        expected, seconds = run()
        theirs.append(seconds)
        own = np.nan_to_num([values[name] for name in STATISTICS], nan=-1.0)
        agreement = max(agreement, float(np.abs(own - expected).max()))
    people, detections = (sum(map(len, parts)) for parts in (made.keypoints, made.found))
    name = (
        f"keypoint AP of {len(made.keypoints):,} images, {people:,} people, {detections:,} detections against {program}"
    )
    return Timing(name, median(ours), median(theirs), PROGRAMS[program][2], agreement)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def prepared(program: str, made: People) -> Callable[[], tuple[np.ndarray, float]]:
    """Loads the data into a program; the returned function evaluates it: ``STATISTICS`` and the seconds it took."""
    coco, evaluation, _ = PROGRAMS[program]
    truth, results = as_coco(made)
    with contextlib.redirect_stdout(io.StringIO()):
        api = imported(coco)()
        images = [{"id": i, "height": 512, "width": 512} for i in range(len(made.keypoints))]
        api.dataset = {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "person"}], "info": {}}
        api.createIndex()
        loaded = api.loadRes(results)

    def run() -> tuple[np.ndarray, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            judge = imported(evaluation)(api, loaded, "keypoints")
            _, seconds = timed(lambda: (judge.evaluate(), judge.accumulate()))
            judge.summarize()
        return np.asarray(judge.stats)[: len(STATISTICS)], seconds

    return run


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f"the comparison needs {module.partition('.')[0]}; install it with: pip install 'posegen[metrics]'"
        ) from error


def as_coco(made: People) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The people and the detections as COCO writes them."""
    truth: list[dict[str, Any]] = []
    results = []
    for i, (keypoints, areas, found, scores) in enumerate(
        zip(made.keypoints, made.areas, made.found, made.scores, strict=True)
    ):
        for person, area in zip(keypoints, areas, strict=True):
            low, size = person[:, :2].min(0), np.ptp(person[:, :2], axis=0)
            about = {
                "id": len(truth) + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(area),
                "bbox": [*low.tolist(), *size.tolist()],
            }
            truth.append(about | {"keypoints": person.ravel().tolist(), "num_keypoints": int((person[:, 2] > 0).sum())})
        for person, score in zip(found, scores, strict=True):
            results.append(
                {"image_id": i, "category_id": 1, "keypoints": person.ravel().tolist(), "score": float(score)}
            )
    return truth, results


def invented_people(images: int, people: int, detections: int, seed: int = 0) -> People:
    """People of all sizes, some joints not labelled; most detections are one of them with noise, scores often tie."""
    rng = np.random.default_rng(seed)
    body = rng.normal(0, 0.5, (17, 2)) * [0.6, 1.0]
    owner, place = (np.sort(rng.integers(0, images, count)) for count in (people, detections))
    size = np.exp(rng.normal(np.log(60), 0.7, people + detections))
    points = rng.uniform(60, 450, (people + detections, 1, 2)) + size[:, None, None] * (
        body + rng.normal(0, 0.02, (people + detections, 17, 2))
    )
    seen = np.where(rng.random((people, 17)) < 0.2, 0.0, 2.0)
    seen[:, 0] = 2.0
    first, number = np.searchsorted(owner, place), np.bincount(owner, minlength=images)[place]
    copied = np.flatnonzero((rng.random(detections) < 0.7) & (number > 0))
    chosen = first[copied] + rng.integers(0, number[copied])
    noise = (
        rng.normal(0, 1, (len(copied), 17, 2))
        * COCO_SIGMAS[:, None]
        * rng.uniform(0.1, 2, (len(copied), 1, 1))
        * size[chosen, None, None]
    )
    found = points[people:]
    found[copied] = points[chosen] + noise
    keypoints = np.concatenate([points[:people], seen[..., None]], -1)
    found = np.concatenate([found, rng.random((detections, 17, 1))], -1)
    scores = np.round(rng.random(detections), 3)
    cut_people, cut_found = (np.searchsorted(i, np.arange(1, images)) for i in (owner, place))
    rest = np.split(found, cut_found), np.split(scores, cut_found)
    return People(np.split(keypoints, cut_people), np.split(size[:people] ** 2, cut_people), *rest)
