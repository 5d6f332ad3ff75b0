"""The protocol of text-to-pose models, on poses whose values can be told by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posegen.data.base import Sample
from posegen.data.mannequin.world import World
from posegen.metrics.base import Judged, Poses
from posegen.metrics.pose_prior import PosePrior, PosePriorMetric, spread

CELL = 2 / 32  # a cell of the grid of 32 in the coordinates of the square


def body(seed: int = 0) -> np.ndarray:
    """A pose ``[17, 3]`` whose joints fill a box of 25.6 cells' height."""
    rng = np.random.default_rng(seed)
    pose = np.ones((17, 3))
    pose[:, :2] = rng.uniform(-0.6, 0.6, (17, 2))
    pose[0, 1], pose[15, 1] = -0.8, 0.8
    return pose


def moved(pose: np.ndarray, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """The pose, moved by so many cells."""
    return pose + np.array([x * CELL, y * CELL, 0])


def judged(truth: np.ndarray, *poses: np.ndarray, request: str = "running", id: str = "0") -> Judged:
    found = Poses(np.stack(poses).astype(np.float32), np.ones(len(poses), np.float32))
    return Judged(id, truth[None].astype(np.float32), np.ones(1), found, {"actions": request})


def values(*images: Judged, real: tuple[Judged, ...] = ()) -> dict[str, float]:
    protocol = PosePrior([PosePriorMetric()])
    return PosePriorMetric().compute(protocol.records(images), reference=protocol.records(real) if real else None)


def test_lengths_are_in_cells_and_squares_sum_both_axes() -> None:
    found = values(judged(body(), moved(body(), 3, 4)))
    assert found["MSE"] == pytest.approx(25, rel=1e-4)
    assert found["target_PCK@0.1"] == 0  # 5 cells, the radius is 2.56
    found = values(judged(body(), moved(body(), 1, 2), moved(body(), 4)))
    assert found["MSE"] == pytest.approx((5 + 16) / 2, rel=1e-4) and found["target_PCK@0.1"] == 50


def test_variance_and_diversity_are_those_among_the_poses_of_a_caption() -> None:
    poses = [moved(body(), x, y) for x, y in ((0, 0), (3, 4), (-3, -4))]
    found = values(judged(body(), *poses))
    assert found["variance"] == pytest.approx(np.var([0, 3, -3]) + np.var([0, 4, -4]), rel=1e-4)
    assert found["diversity"] == pytest.approx((5 + 5 + 10) / 3, rel=1e-4)
    assert all(np.isnan(spread(np.stack(poses[:1]))))
    absent = poses[2].copy()
    absent[3] = 0
    assert values(judged(body(), poses[0], poses[1], absent))["variance"] < found["variance"]


def test_the_nearest_real_pose_of_the_same_request_counts() -> None:
    real = (judged(moved(body(), 6), body(), request="running"), judged(moved(body(), 12), body(), request="waving"))
    found = values(judged(body(), moved(body(), 5)), real=real)
    assert found["MSE"] == pytest.approx(25, rel=1e-4) and found["nearest_MSE"] == pytest.approx(1, rel=1e-3)
    assert found["target_PCK@0.1"] == 0 and found["nearest_PCK@0.1"] == 100
    assert values(judged(body(), moved(body(), 13)), real=real)["nearest_MSE"] == pytest.approx(49, rel=1e-3)
    silent = judged(body(), moved(body(), 5), request="")
    assert values(silent, real=(judged(moved(body(), 6), body(), request=""),))["nearest_MSE"] == pytest.approx(
        25, rel=1e-4
    )


def test_absent_joints_count_for_presence_and_are_no_hits() -> None:
    half = body()
    half[:8] = 0
    found = values(judged(body(), half))
    assert (
        found["presence"] == pytest.approx(100 * 9 / 17)
        and found["target_PCK@0.1"] == pytest.approx(100 * 9 / 17)
        and found["MSE"] == 0
    )
    found = values(judged(half, body()))
    assert found["presence"] == pytest.approx(100 * 9 / 17) and found["target_PCK@0.1"] == 100
    nothing = values(judged(body(), np.zeros((17, 3))))
    assert np.isnan(nothing["MSE"]) and nothing["target_PCK@0.1"] == nothing["validity"] == 0


def test_bodies_are_told_from_what_is_none() -> None:
    world = World(0, 64)
    people = [s for s in (world.render("validation", i) for i in range(80)) if len(s.keypoints) == 1]
    real = tuple(judged(s.pose.numpy(), s.pose.numpy(), id=s.id) for s in people[:40])
    fresh = [judged(s.pose.numpy(), s.pose.numpy(), id=s.id) for s in people[40:]]
    assert values(*fresh, real=real)["validity"] > 85
    for factor in (0.3, 3.0):
        unlike = [judged(j.keypoints[0], j.keypoints[0] * [factor, factor, 1]) for j in fresh]
        assert values(*unlike, real=real)["validity"] == 0
    few = [judged(j.keypoints[0], j.keypoints[0] * (np.arange(17) < 7)[:, None]) for j in fresh]
    assert values(*few, real=real)["validity"] == 0


def test_a_mean_pose_wins_the_error_and_has_no_variance() -> None:
    rng = np.random.default_rng(0)
    truths = [moved(body(), *rng.normal(0, 4, 2)) for _ in range(50)]
    mean = [judged(t, body(), body(), id=str(i)) for i, t in enumerate(truths)]
    others = [judged(t, *(truths[(i + k) % 50] for k in (7, 19)), id=str(i)) for i, t in enumerate(truths)]
    lazy, exact = values(*mean), values(*others)
    assert lazy["MSE"] < exact["MSE"] and lazy["variance"] == 0 < exact["variance"]
    assert lazy["nearest_MSE"] == lazy["MSE"], "without other real poses the target is the nearest"


def test_a_row_from_disk_is_the_same(tmp_path: Path) -> None:
    protocol = PosePrior([PosePriorMetric()], resamples=50)
    images = [
        judged(body(i), moved(body(i), i % 4), moved(body(i), 0, i % 3), id=str(i), request=str(i % 2))
        for i in range(12)
    ]
    records = protocol.records(images)
    protocol.write(tmp_path, records)
    row = protocol.table_row([protocol.read(tmp_path)], protocol.read(tmp_path))
    assert row == protocol.table_row([records], records)
    assert row["MSE_lo"] < row["MSE"] < row["MSE_hi"] and row["n_images"] == 12
    assert protocol.draws == 10 and protocol.sample == "pose" and protocol.lower_is_better == {"MSE", "nearest_MSE"}


def test_the_main_person_of_a_sample_is_judged() -> None:
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[..., :2], keypoints[..., 2] = np.random.default_rng(0).uniform(0, 60, (2, 17, 2)), 2
    sample = Sample("0", "", keypoints, np.array([5.0, 9.0]), None, (64, 64), {"actions": ("waving", "running")})
    draws = torch.zeros(1, 3, 17, 3)
    [found] = PosePrior([PosePriorMetric()]).judge(None, draws, [sample])  # type: ignore[arg-type]
    assert found.attributes["actions"] == "running" and len(found.found) == 3
    np.testing.assert_array_equal(found.keypoints[0], sample.pose.numpy())
    [found] = PosePrior([PosePriorMetric()]).judge(None, sample.pose[None], [sample])  # type: ignore[arg-type]
    assert len(found.found) == 1
