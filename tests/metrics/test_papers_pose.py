"""The published pose metrics, checked with pycocotools per batch and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from invented_people import judged, person, random_set

from experiments.profile.keypoint_ap import STATISTICS, People, prepared
from posegen.metrics.base import Judged, Metric, Poses
from posegen.metrics.papers.pose import PaperPoseMetric, rows


def collect(metric: Metric, images: list[Judged]) -> dict[str, list]:
    facts = [metric.record(image) for image in images]
    return {name: [fact[name] for fact in facts] for name in facts[0]}


def evaluate(images: list[Judged], **options) -> dict[str, float]:
    metric = PaperPoseMetric(**options)
    return metric.compute(collect(metric, images))


def busy(images: int, seed: int) -> list[Judged]:
    """Images away from the left border, where everybody labelled has a joint with x > 0; missing joints are told by
    their visibility alone."""
    return [
        image for image in random_set(2 * images, seed) if len(image.found) and (image.keypoints[..., 0] > 0).all()
    ][:images]


def published(image: Judged) -> tuple[np.ndarray, np.ndarray]:
    """The people as the published program has them: missing joints at (-1, -1), areas over all joints."""
    keypoints = np.array(
        [[joint if joint[2] > 0 else (-1, -1, 0) for joint in p] for p in image.keypoints], float
    ).reshape(-1, 17, 3)
    return keypoints, np.array([(p[:, 0].max() - p[:, 0].min()) * (p[:, 1].max() - p[:, 1].min()) for p in keypoints])


def coco_rows(images: list[Judged], batch: int) -> list[dict[str, float]]:
    pytest.importorskip("pycocotools")
    result = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        made = People(
            *map(list, zip(*map(published, part), strict=True)),
            [i.found.keypoints for i in part],
            [i.found.scores for i in part],
        )
        result.append(dict(zip(STATISTICS, prepared("pycocotools", made)()[0], strict=True)))
    return result


@pytest.mark.parametrize(("batch", "seed"), [(4, 0), (3, 1), (10, 2)])
def test_mean_over_batches_equals_pycocotools(batch, seed):
    images = busy(34, seed)
    expected = coco_rows(images, batch)
    metric = PaperPoseMetric(batch=batch)
    found = rows(collect(metric, images), batch)
    for name in STATISTICS:
        assert found[name].tolist() == pytest.approx([row[name] for row in expected], abs=1e-12), name
    complete, values = expected[: len(images) // batch], evaluate(images, batch=batch)
    assert len(complete) < len(expected)
    for name in ("AP", "AR", "AP_M", "AP_L"):
        assert values[f"paper_{name}"] == pytest.approx(100 * np.mean([row[name] for row in complete])), name
    for name in ("AP_M", "AP_L"):
        assert values[f"paper_{name}_defined"] == pytest.approx(
            100 * np.mean([row[name] for row in complete if row[name] >= 0])
        ), name
    with_last = evaluate(images, batch=batch, drop_last=False)
    assert with_last["paper_AP"] == pytest.approx(100 * np.mean([row["AP"] for row in expected]))


def test_missing_joints_make_people_large():
    """A body of 14 x 23 pixels at (300, 400): whole it is small; without its nose it reaches to the corner at (-1,
    -1)."""
    whole, occluded = person(300, 400), person(300, 400)
    occluded[0, 2] = 0
    facts = PaperPoseMetric().record(judged("a", [whole, occluded], [], []))
    assert facts["paper_areas"].tolist() == [14 * 23, 308 * 414]
    far = person(303, 404)
    similarity = PaperPoseMetric().record(judged("a", [whole, occluded], [far], [0.5]))["paper_oks"][0]
    assert similarity[0] < 0.5 and similarity[1] > 0.98


def test_who_counts():
    """At most ten people, only those with a joint to the right of x = 0, and of the detections those with a score; PCE
    counts all detections."""
    left, hidden, silent = person(-50, 100), person(100, 100), person(60, 60)
    hidden[:, 2] = silent[:, 2] = 0
    facts = PaperPoseMetric().record(
        judged(
            "a", [left, hidden] + [person(100 + 9 * i, 100) for i in range(12)], [silent, person(60, 60)], [0.9, 0.5]
        )
    )
    assert facts["paper_people"] == 8 and facts["paper_found"] == 2 and facts["paper_oks"].shape == (1, 8)


def counted(people: int, found: int) -> Judged:
    return judged(f"{people}-{found}", [person(90, 90)] * people, [person(90, 90)] * found, np.full(found, 0.5))


def test_people_count_error_skips_the_last_images():
    """Of (0, 1), (1, 1), (2, 5) two have people, so the published loop sees the first two: errors 1 and 0, never 3."""
    images = [counted(0, 1), counted(1, 1), counted(2, 5)]
    assert evaluate(images, batch=3)["paper_PCE"] == 0.5
    assert evaluate(images, batch=3, count_only_with_people=False)["paper_PCE"] == pytest.approx(4 / 3)
    nobody = [counted(0, 1), counted(0, 0)]
    assert np.isnan(evaluate(nobody, batch=2)["paper_PCE"]) and evaluate(nobody, batch=2)["paper_AP"] == -100
    assert evaluate([*nobody, counted(1, 3), counted(1, 1)], batch=2)["paper_PCE"] == 1, (
        "a batch without a value is left out"
    )


def test_similarity_precision():
    """One labelled joint has no similarity and matches at every threshold, wherever the detection is."""
    lonely = person(200, 200)
    lonely[1:, 2] = 0
    values = evaluate([judged("a", [lonely], [person(900, 50)], [0.5])], batch=1)
    assert values["paper_SAP"] == pytest.approx(100) and values["paper_AP"] == 0
    alike = evaluate([judged("a", [person(100, 100)], [person(100, 100)], [0.5])], batch=1)
    assert alike["paper_AP"] == pytest.approx(100) and 70 <= alike["paper_SAP"] <= 90, (
        "a perfect pose does not reach 100"
    )


def test_poses_found_on_swapped_colours_come_first():
    image = judged("a", [person(200, 200)], [person(200, 200)], [0.5])
    blind = replace(image, observed={"swapped": Poses(np.zeros((0, 17, 3)), np.zeros(0))})
    assert evaluate([image], batch=1)["paper_PCE"] == 0 and evaluate([blind], batch=1)["paper_PCE"] == 1


def test_resamples_weigh_batches():
    images = busy(20, 3)
    metric = PaperPoseMetric(batch=4)
    records = collect(metric, images)
    row = rows(records, 4)["AP"]
    weights = np.array(
        [np.repeat([2.0, 0, 1, 1, 1], 4), [1.0, 1, 1, 1, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 1, 1, 0, 0]]
    )
    share = np.array([[2, 0, 1, 1, 1], [1, 0, 1, 0.5, 0.5]])
    assert metric.resampled(records, weights)["paper_AP"] == pytest.approx(100 * share @ row / share.sum(1))


def test_fewer_images_than_a_batch():
    metric = PaperPoseMetric(batch=4)
    records = collect(metric, [counted(1, 1)] * 3)
    assert all(np.isnan(value) for value in metric.compute(records).values())
    assert (
        metric.absent(records).keys() == set(metric.columns)
        and "fewer images than a batch of 4" in metric.absent(records)["paper_AP"]
    )
    assert PaperPoseMetric(batch=4, drop_last=False).compute(records)["paper_AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="batch is 0"):
        PaperPoseMetric(batch=0)
