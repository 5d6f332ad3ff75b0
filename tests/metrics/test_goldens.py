"""The `corrected` values of the reference cases, where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from posegen.metrics.base import Judged, Poses
from posegen.metrics.math.frechet import frechet_distances, kernel_distances
from posegen.metrics.pose import PoseMetric

ROOT = Path(__file__).parents[2]
FOLDER = next((f for f in (ROOT / "shared/parity/metrics", ROOT.parent / "shared/parity/metrics") if f.is_dir()), None)
CASES = {} if FOLDER is None else {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
POSE = [name for name, case in CASES.items() if case["kind"] == "pose"]
FEATURES = [name for name, case in CASES.items() if case["kind"] == "features"]
RANGES = {"": (0, 1e10), "_M": (32**2, 96**2), "_L": (96**2, 1e10)}

pytestmark = pytest.mark.skipif(
    not CASES, reason="the reference cases (shared/parity/metrics) are not beside this checkout"
)


def judged(index: int, people: list, detections: list) -> Judged:
    keypoints = np.array(people, float).reshape(-1, 17, 3)
    labelled = keypoints[..., 2:] > 0
    low, high = (np.where(labelled, keypoints[..., :2], fill) for fill in (np.inf, -np.inf))
    areas = np.prod(high.max(1) - low.min(1), axis=-1)
    found = np.array([d["keypoints"] for d in detections], float).reshape(-1, 17, 3)
    return Judged(str(index), keypoints, areas, Poses(found, np.array([d["score"] for d in detections], float)))


@pytest.mark.parametrize("name", POSE)
def test_pose(name):
    case = CASES[name]
    metric = PoseMetric(RANGES)
    images = [
        judged(i, *facts)
        for i, facts in enumerate(zip(case["inputs"]["gt_pose"], case["inputs"]["detections"], strict=True))
    ]
    rows = [metric.record(image) for image in images]
    values = metric.compute({key: [row[key] for row in rows] for key in rows[0]})
    expected = case["expected_corrected"]
    compared = [key for key in ("AP", "AP50", "AP75", "AR", "AP_M", "AP_L", "AR_M", "AR_L") if key in expected]
    assert len(compared) == 8
    for key in compared:
        assert np.nan_to_num(values[key] / 100, nan=-1) == pytest.approx(expected[key], rel=1e-6, abs=case["atol"]), key
    assert values["count_error"] == pytest.approx(expected["PCE"], rel=1e-6, abs=case["atol"])


@pytest.mark.parametrize("name", FEATURES)
def test_distances(name):
    case = CASES[name]
    real, fake = (np.array(case["inputs"][key], float) for key in ("real", "fake"))
    once = np.ones((1, len(fake)))
    assert frechet_distances(fake, real, once)[0] == pytest.approx(case["expected"]["fid_torchmetrics"], rel=1e-6)
    assert kernel_distances(fake, real, once)[0] == pytest.approx(
        case["expected"]["kid_whole_set_torchmetrics"], rel=1e-6
    )
