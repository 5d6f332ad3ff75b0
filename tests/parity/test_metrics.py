"""``posegen parity`` on cases of metrics: invented ones, by hand or by pycocotools, and the reference cases."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.profile.keypoint_ap import STATISTICS, People, invented_people, prepared
from posegen.cli import main
from posegen.parity.case import Case
from posegen.parity.compare import compare
from posegen.parity.metrics import METRIC_KINDS
from tests.adapters.cases import ABSENT, FOLDER

CASES = sorted((FOLDER / "metrics").glob("*.json")) if FOLDER else []
NOBODY = [[-1.0, -1.0, 0.0]] * 17
BODY = [[100.0 + 7 * (i % 5) + i, 80.0 + 11 * i, 0.9] for i in range(17)]


def detection(joints: list[list[float]], score: float = 0.5) -> dict[str, Any]:
    return {"keypoints": [[x, y, 0.8] for x, y, _ in joints], "score": score}


def case(people: list, detections: list, **expected: Any) -> dict[str, Any]:
    return {"kind": "pose", "inputs": {"gt_pose": people, "detections": detections}, "atol": 1e-6, **expected}


def write(folder: Path, name: str, facts: dict[str, Any]) -> Path:
    (folder / f"{name}.json").write_text(json.dumps(facts))
    return folder / f"{name}.json"


def run(capsys: pytest.CaptureFixture[str], *places: Path) -> tuple[int, str]:
    code = main(["parity", *map(str, places)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def from_pycocotools(made: People) -> dict[str, float]:
    pytest.importorskip("pycocotools")
    return dict(zip(STATISTICS, prepared("pycocotools", made)()[0].tolist(), strict=True))


def test_a_set_of_invented_people_agrees_with_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = invented_people(20, 50, 120)
    spans = [np.ptp(np.where(k[..., 2:] > 0, k[..., :2], -1), axis=1).prod(-1) for k in made.keypoints]
    tight = [np.array([np.ptp(p[p[:, 2] > 0, :2], axis=0).prod() for p in k]) for k in made.keypoints]
    missing = [np.where(k[..., 2:] > 0, k, [-1.0, -1.0, 0.0]).tolist() for k in made.keypoints]
    detections = [
        [detection(k.tolist(), s) for k, s in zip(*image, strict=True)]
        for image in zip(made.found, made.scores, strict=True)
    ]
    published = from_pycocotools(People(made.keypoints, spans, made.found, made.scores))
    right = from_pycocotools(People(made.keypoints, tight, made.found, made.scores))
    assert published["AP"] != right["AP"]
    code, told = run(
        capsys, write(tmp_path, "invented", case(missing, detections, expected=published, expected_corrected=right))
    )
    assert code == 0 and "passed: 20 of 20 values agree" in told and told.endswith("1 of 1 cases passed\n")


def test_nobody_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No ground truth is -1; the published count error is the mean of nothing, the right one that of all images."""
    nothing = dict.fromkeys([*STATISTICS, "SAP", "SAR_M"], -1.0)
    facts = case(
        [[NOBODY], []],
        [[detection(BODY)], []],
        expected={**nothing, "PCE": None},
        expected_corrected={**nothing, "PCE": 0.5},
    )
    code, told = run(capsys, write(tmp_path, "nobody", facts))
    assert code == 0, told
    facts["expected"]["PCE"] = "nan"
    assert run(capsys, write(tmp_path, "nobody", facts))[0] == 0
    facts["expected"]["PCE"] = 0.5
    code, told = run(capsys, write(tmp_path, "nobody", facts))
    assert code == 1 and "FAILED: 25 of 26 values agree" in told


def test_batches_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five images in batches of 3 and 2, the first with one of two people found: AP 51 / 101 of it."""
    two = [BODY, [[x + 200, y, s] for x, y, s in BODY]]
    people = [two, [NOBODY], [], [BODY], [BODY]]
    found = [[detection(BODY)], [], [], [detection(BODY)], [detection(BODY)]]
    rows = [{"AP": 51 / 101, "AR": 0.5, "AP_L": -1.0, "PCE": 1.0}, {"AP": 1.0, "AR": 1.0, "AP_L": -1.0, "PCE": 0.0}]
    groups = {
        "expected": {"AP": 76 / 101, "AR": 0.75, "PCE": 1 / 3},
        "expected_per_batch_rows": rows,
        "expected_mean_over_batches": {"AP": 76 / 101, "AP_L": -1.0, "PCE": 0.5},
        "expected_mean_over_batches_without_minus_one": {"AP": 76 / 101, "PCE": 0.5},
    }
    assert run(capsys, write(tmp_path, "rows", case(people, found, **groups)))[0] == 0
    uneven = case(
        [people[0], *people[3:], [BODY]],
        [found[0], *found[3:], [detection(BODY)]],
        **{**groups, "expected": {"PCE": 0.25}},
    )
    code, told = run(capsys, write(tmp_path, "uneven", uneven))
    assert code == 0, f"one image and three are two batches too\n{told}"
    rows[1]["AR"] = 0.9
    code, told = run(capsys, write(tmp_path, "rows", case(people, found, **groups)))
    assert code == 1 and "per_batch_rows[1].AR" in told


def features() -> dict[str, Any]:
    """In one dimension FID is the squared difference of means and deviations; KID's kernel is (x y + 1)^3."""
    real, fake = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [1.0], [4.0], [2.0]])
    kernel = lambda a, b: (a @ b.T + 1) ** 3  # noqa: E731
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(real, real), kernel(fake, fake))]
    fid = (real.mean() - fake.mean()) ** 2 + (real.std(ddof=1) - fake.std(ddof=1)) ** 2
    first = 1 + 8 - 2 * (1 + 1 + 27 + 27) / 4  # of 0, 2 and 1, 1: k(0, 2) = 1, k(1, 1) = 8, k(0, 1) = 1, k(2, 1) = 27
    expected = {
        "fid_cleanfid": fid,
        "kid_whole_set_cleanfid": sum(own) - 2 * kernel(real, fake).mean(),
        "kid_first_rows": first,
    }
    return {
        "kind": "features",
        "inputs": {"real": real.tolist(), "fake": fake.tolist(), "subset_rows": 2},
        "expected": expected,
        "atol": 1e-9,
    }


def test_distances_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, write(tmp_path, "distances", features()))
    assert code == 0 and "passed: 3 of 3 values agree" in told


def test_other_kinds_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White is (1 - 0.485) / 0.229 = 2.2489 in red: 573.5 bytes, 61 modulo 256; (1, 0) and (3, 4) have cosine 0.6."""
    rows = {"real_bytes": [[61, 107, 161]], "generated_bytes": [[61, 107, 161]], "corrected_bytes": [[255, 255, 255]]}
    pixels = {
        "kind": "quality_preprocessing",
        "inputs": {"pixels_rgb": [[255, 255, 255]]},
        "expected": rows,
        "atol": 0,
    }
    scenarios = {"a": {"FID": 2.0, "KID": 0.5}, "b": {"FID": 4.0, "KID": None}}
    overall = {
        "kind": "quality_overall",
        "inputs": {"scenarios": scenarios},
        "expected": {"FID": 3.0, "KID": 0.5, "KID_x100": 50.0},
        "atol": 0,
    }
    pairs = {"image": [[1, 0], [0, 2]], "text": [[3, 4], [0, -1]]}
    clip = {
        "kind": "clip_score",
        "inputs": pairs,
        "expected": {"score": 0.0, "per_pair": [60.0, -100.0]},
        "atol": 1e-9,
    }
    code, told = run(
        capsys,
        *(write(tmp_path, name, facts) for name, facts in (("pixels", pixels), ("overall", overall), ("clip", clip))),
    )
    assert code == 0 and told.endswith("3 of 3 cases passed\n")


def test_values_that_are_wrong_or_not_computed_fail_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = case([[BODY]], [[detection(BODY)]], expected={"AP": 1.0}, expected_corrected={"AP": 1.0})
    bad = copy.deepcopy(good)
    bad["expected_corrected"] |= {"AP": 0.99, "invented": 3.0}
    write(tmp_path, "good", good)
    write(tmp_path, "bad", bad)
    write(tmp_path, "other", {**good, "kind": "unheard"})
    write(tmp_path, "notes", {"no": "case"})
    code, told = run(capsys, tmp_path)
    assert code == 1 and told.endswith("1 of 2 cases passed; 1 of methods that posegen does not have\n")
    failed = {line.split()[0]: line for line in told.splitlines() if "FAILED" in line}
    assert "abs 1.00e-02" in failed["corrected.AP"]
    assert failed["corrected.invented"].endswith("FAILED: not computed") and "FAILED: 1 of 3 values agree" in told
    assert "no such method here: kind 'unheard'" in told


def test_files_that_are_no_cases_are_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, write(tmp_path, "notes", {"no": "case"}))
    assert code != 0 and "notes.json is no reference case; a case of a metric says expected, inputs, kind" in told
    assert "no reference case here" in run(capsys, tmp_path)[1]
    assert "is no reference case" in run(capsys, write(tmp_path, "words", {**features(), "expected": {"x": "many"}}))[1]
    (tmp_path / "damaged.json").write_text("{")
    code, told = run(capsys, tmp_path)
    assert code != 0 and "damaged.json is no reference case" in told and "Traceback" not in told


@pytest.mark.skipif(not CASES, reason=ABSENT)
@pytest.mark.parametrize(
    "file", [pytest.param(file, id=file.stem) for file in CASES if json.loads(file.read_text())["kind"] in METRIC_KINDS]
)
def test_every_value_of_the_reference_cases_agrees(file: Path) -> None:
    found = compare(Case.read(file))
    assert found.verdict == "passed", "\n".join(["", found.reason, *map(str, found.lines)])
