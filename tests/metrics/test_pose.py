import contextlib
import io

import numpy as np
import pytest
from invented_people import judged, person, random_set

from posegen.metrics.base import Metric
from posegen.metrics.math.oks import oks
from posegen.metrics.pose import PoseMetric

RANGES = {"": (0, 1e10), "_M": (32**2, 96**2), "_L": (96**2, 1e10)}


def collect(metric: Metric, images) -> dict[str, list]:
    rows = [metric.record(image) for image in images]
    return {name: [row[name] for row in rows] for name in rows[0]}


def evaluate(metric: Metric, images, weights=None) -> dict[str, float]:
    return metric.compute(collect(metric, images), weights)


def coco_values(images) -> dict[str, float]:
    """The same columns from pycocotools."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, results, box = [], [], lambda k: [*k[:, :2].min(0), *np.ptp(k[:, :2], axis=0)]
    for i, image in enumerate(images):
        for keypoints, area in zip(image.keypoints, image.areas, strict=True):
            labelled = int((keypoints[:, 2] > 0).sum())
            facts = {
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": labelled,
            }
            truth.append(facts | {"id": len(truth) + 1, "area": float(area), "bbox": box(keypoints)})
        for keypoints, score in zip(image.found.keypoints, image.found.scores, strict=True):
            results.append(
                {"image_id": i, "category_id": 1, "keypoints": keypoints.ravel().tolist(), "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = {
            "images": [{"id": i} for i in range(len(images))],
            "annotations": truth,
            "categories": [{"id": 1}],
            "info": {},
        }
        api.createIndex()
        evaluation = cocoeval.COCOeval(api, api.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L"]
    return {name: 100 * value for name, value in zip(names, evaluation.stats, strict=True)}


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed):
    images = random_set(60, seed)
    metric = PoseMetric(RANGES)
    assert metric.columns[:8] == ("AP", "AP50", "AP75", "AR", "AP_M", "AR_M", "AP_L", "AR_L")
    ours, theirs = evaluate(metric, images), coco_values(images)
    assert 5 < theirs["AP"] < 95, "the case says nothing"
    for name in ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR_M", "AR_L"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9), name


def test_oks_by_hand():
    """One joint off by its own 2 sigma sqrt(area) contributes exp(-1/2)."""
    target = person(50, 50)[None]
    found = target.copy()
    found[0, 5, 0] += 2 * 0.079 * np.sqrt(200.0)
    assert oks(found, target, np.array([200.0]))[0, 0] == pytest.approx((16 + np.exp(-0.5)) / 17)
    target[0, 5, 2] = 0
    assert oks(found, target, np.array([200.0]))[0, 0] == 1


def test_weights_equal_duplicated_images():
    images = random_set(25, 7)
    rng = np.random.default_rng(1)
    for i, image in enumerate(images):  # distinct scores: with equal ones the ranking of duplicates is arbitrary
        image.found.scores[:] = rng.permutation(len(image.found)) / 7 + i * 1e-3
    weights = rng.integers(0, 4, len(images)).astype(float)
    metric = PoseMetric()
    duplicated = evaluate(metric, [image for image, w in zip(images, weights, strict=True) for _ in range(int(w))])
    assert evaluate(metric, images, weights) == pytest.approx(duplicated)


def test_perfect_and_blind():
    people = [person(30, 30), person(90, 40, 2)]
    perfect = evaluate(PoseMetric(), [judged("a", people, people, [0.9, 0.8])])
    assert perfect == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100, "AR": 100, "PCK@0.1": 100, "OKS": 100, "count_error": 0, "count_bias": 0}
    )
    blind = evaluate(PoseMetric(), [judged("a", people, [], [])])
    assert blind == pytest.approx(
        {"AP": 0, "AP50": 0, "AP75": 0, "AR": 0, "PCK@0.1": 0, "OKS": 0, "count_error": 2, "count_bias": -2}
    )


def test_nobody_asked_for():
    values = evaluate(PoseMetric(), [judged("a", [], [person(30, 30)], [0.5]), judged("b", [], [], [])])
    assert values["count_error"] == 0.5 and values["count_bias"] == 0.5
    assert all(np.isnan(values[name]) for name in ("AP", "AR", "PCK@0.1", "OKS"))


def test_people_without_labels_do_not_count():
    hidden = person(90, 40)
    hidden[:, 2] = 0
    values = evaluate(PoseMetric(), [judged("a", [person(30, 30), hidden], [person(30, 30)], [0.5])])
    assert values["AP"] == pytest.approx(100) and values["count_error"] == 0


def test_pck_is_a_tenth_of_the_longer_box_side():
    """The body is 23 pixels high: 2.2 pixels are right, 2.4 wrong, and only labelled joints are asked."""
    target, found = person(50, 50), person(50, 50)
    found[0, 0] += 2.2
    found[1, 0] += 2.4
    found[2, 0] += 20
    target[2, 2] = 0
    decoy = person(150, 150)
    values = evaluate(PoseMetric(), [judged("a", [target], [decoy, found], [0.9, 0.1])])
    assert values["PCK@0.1"] == pytest.approx(100 * 15 / 16)
    assert evaluate(PoseMetric(pck=0.15), [judged("a", [target], [found], [0.1])])["PCK@0.15"] == 100


def test_counts_all_images():
    images = [
        judged("a", [person(30, 30)], [], []),
        judged("b", [], [person(30, 30)] * 2, [0.5, 0.4]),
        judged("c", [person(30, 30)], [person(30, 30)], [0.5]),
    ]
    values = evaluate(PoseMetric(), images)
    assert values["count_error"] == pytest.approx(1) and values["count_bias"] == pytest.approx(1 / 3)


def test_only_confident_people_are_counted():
    images = [
        judged("a", [person(30, 30)], [person(30, 30)] * 3, [0.2, 0.19, 0.9]),
        judged("b", [], [person(30, 30)], [0.1]),
    ]
    metric = PoseMetric(confident=0.2)
    assert {c for c in metric.columns if c.better == "lower"} == {
        "count_error",
        "count_error_confident",
    } and metric.columns[-3:] == (
        "count_error",
        "count_error_confident",
        "count_bias",
    )
    values = evaluate(metric, images)
    assert values["count_error_confident"] == 0.5 and values["count_error"] == 1.5
    assert evaluate(metric, images, np.array([0.0, 2.0]))["count_error_confident"] == 0


def test_precision_of_other_similarities():
    """Someone who stands elsewhere in another size has the asked pose, but is not the asked person; the cosine does not
    even tell left from right."""
    target, other = person(50, 50), person(150, 80, 2)
    flipped = person(50, 50) * [-1, 1, 1]
    values = evaluate(
        PoseMetric(similarities=["SAP_fixed", "AP_aligned"]),
        [judged("a", [target], [other], [0.9]), judged("b", [target], [flipped], [0.8])],
    )
    assert values["AP"] == 0 and values["AP_aligned"] == pytest.approx(100 * 51 / 101) and values["SAP_fixed"] < 100
    assert list(PoseMetric(similarities=["AP_aligned"]).columns).index("AP_aligned") == 4


def test_areas_that_are_not_known_are_boxes_of_labelled_joints():
    target = person(50, 50)
    target[15:, 2] = 0  # without its feet 14 x 18 pixels
    image = judged("a", [target], [target], [0.5])
    image.areas[:] = np.nan
    assert PoseMetric().record(image)["areas"].tolist() == [14 * 18]


def test_bad_options_are_one_clear_error():
    with pytest.raises(
        ValueError, match=r"area_ranges: '_M' is \[9216, 1024\]; expected the least and the largest area"
    ):
        PoseMetric({"_M": (9216, 1024)})
    with pytest.raises(ValueError, match="similarities: there is no 'SAP'; choose from SAP_fixed, AP_aligned"):
        PoseMetric(similarities=["SAP"])
