"""COCO-WholeBody's columns against pycocotools, part by part, on invented people with many joints."""

import contextlib
import io

import numpy as np
import pytest

from posegen.metrics.base import Judged, Poses
from posegen.metrics.protocol import Protocol
from posegen.metrics.whole_body import WholeBodyMetric
from posegen.poses.pose import Pose
from posegen.poses.topology import topology_named

PARTS = {
    "body": range(17),
    "feet": range(17, 23),
    "face": range(23, 91),
    "left_hand": range(91, 112),
    "right_hand": range(112, 133),
    "whole": range(133),
}


def people_with(name: str, images: int, seed: int) -> list[Judged]:
    """People of a skeleton of whom whole parts are not labelled; noisy, doubled, missed and surplus detections."""
    topology, rng = topology_named(name), np.random.default_rng(seed)
    result = []
    for i in range(images):
        people, found = [], []
        for _ in range(rng.integers(0, 4)):
            size = rng.uniform(20, 200)
            points = rng.uniform(0, 300, 2) + rng.uniform(0, size, (len(topology), 2))
            seen = np.where(rng.random(len(topology)) < 0.8, 2, 0)
            for joints in PARTS.values() if name == "wholebody133" else ():
                if rng.random() < 0.3 and len(joints) < 133:
                    seen[list(joints)] = 0
            seen[0] = 2
            people.append(np.column_stack([points, seen]))
            for _ in range(rng.choice(3, p=[0.15, 0.7, 0.15])):
                noise = rng.normal(
                    0, size * rng.uniform(0.001, 0.03) * (1 if len(topology) == 133 else 3), points.shape
                )
                found.append(np.column_stack([points + noise, rng.uniform(0.1, 1, len(topology))]))
        for _ in range(rng.integers(0, 2)):
            found.append(np.column_stack([rng.uniform(0, 300, (len(topology), 2)), np.ones(len(topology))]))
        labels = Pose(topology, np.array(people).reshape(-1, len(topology), 3))
        answer = Pose(topology, np.array(found).reshape(-1, len(topology), 3))
        areas = np.array([np.ptp(p[p[:, 2] > 0, :2], axis=0).prod() / 2 for p in people])
        scores = rng.integers(1, 40, len(found)) / 40
        poses = Poses(answer.keypoints[:, :17], scores, answer)
        result.append(Judged(f"image/{i}", labels.keypoints[:, :17], areas, poses, whole=labels))
    return result


def by_pycocotools(images: list[Judged], joints: range, sigmas: np.ndarray) -> tuple[float, float]:
    """AP and AR of some joints, with the box and area of the whole person."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, results = [], []
    for i, image in enumerate(images):
        for whole, area in zip(image.whole.keypoints, image.areas, strict=True):
            labelled, part = whole[whole[:, 2] > 0, :2], whole[list(joints)]
            facts = {"image_id": i, "category_id": 1, "iscrowd": 0, "id": len(truth) + 1, "area": float(area)}
            facts |= {"keypoints": part.ravel().tolist(), "num_keypoints": int((part[:, 2] > 0).sum())}
            truth.append(facts | {"bbox": [*labelled.min(0).tolist(), *np.ptp(labelled, axis=0).tolist()]})
        for whole, score in zip(image.found.whole.keypoints, image.found.scores, strict=True):
            part = whole[list(joints)].ravel().tolist()
            results.append({"image_id": i, "category_id": 1, "keypoints": part, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        pictures = [{"id": i} for i in range(len(images))]
        api.dataset = {"images": pictures, "annotations": truth, "categories": [{"id": 1}], "info": {}}
        api.createIndex()
        evaluation = cocoeval.COCOeval(api, api.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0], 100 * evaluation.stats[5]


def collected(metric: WholeBodyMetric, images: list[Judged]) -> dict[str, list]:
    rows = [metric.record(image) for image in images]
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("seed", range(2))
def test_every_part_equals_pycocotools(seed):
    images, metric = people_with("wholebody133", 60, seed), WholeBodyMetric()
    assert {part: range(j[0], j[-1] + 1) for part, j in metric.parts.items()} == PARTS
    records = collected(metric, images)
    ours = metric.compute(records)
    assert metric.absent(records) == {}
    for part, joints in PARTS.items():
        expected = by_pycocotools(images, joints, metric.topology.sigmas[list(joints)])
        assert 3 < expected[0] < 95, "the case says nothing"
        assert (ours[f"{part}_AP"], ours[f"{part}_AR"]) == pytest.approx(expected, abs=1e-9), part


@pytest.mark.parametrize("name", ["humanart21", "crowdpose14", "coco17"])
def test_other_skeletons_equal_pycocotools(name):
    images, metric = people_with(name, 60, 3), WholeBodyMetric(name)
    topology = topology_named(name)
    assert metric.columns == (f"{name}_AP", f"{name}_AR")
    expected = by_pycocotools(images, range(len(topology)), topology.sigmas)
    assert 5 < expected[0] < 95
    assert tuple(metric.compute(collected(metric, images)).values()) == pytest.approx(expected, abs=1e-9)


def test_hands_are_measured_by_their_own_size():
    """A left hand of 40 pixels: 8 pixels off are right, 9 wrong; the other hand is not labelled."""
    labels = np.zeros((1, 133, 3))
    labels[0, :17] = [[x, 10 * x, 2] for x in range(17)]
    labels[0, 91:112] = [[100 + 2 * j, 50, 2] for j in range(21)]
    found = labels.copy()
    found[0, 91:101, 1] += 8
    found[0, 101:112, 1] += 9
    topology = topology_named("wholebody133")
    poses = Poses(found[:, :17], np.array([0.5]), Pose(topology, found))
    image = Judged("a", labels[:, :17], np.array([4000.0]), poses, whole=Pose(topology, labels))
    metric = WholeBodyMetric()
    values = metric.compute(collected(metric, [image]))
    assert values["hand_PCK@0.2"] == pytest.approx(100 * 10 / 21) and np.isnan(values["right_hand_AP"])
    nothing = Judged(
        "a",
        labels[:, :17],
        np.array([4000.0]),
        Poses(found[:0, :17], np.zeros(0), Pose(topology, found[:0])),
        whole=image.whole,
    )
    blind = metric.compute(collected(metric, [nothing]))
    assert blind["hand_PCK@0.2"] == blind["left_hand_AP"] == 0


def test_columns_without_the_joints():
    metric = WholeBodyMetric()
    (image,) = [each for each in people_with("wholebody133", 20, 0) if len(each.areas) == 2][:1]
    plain = Judged(image.id, image.keypoints, image.areas, Poses(image.found.keypoints, image.found.scores))
    protocol = Protocol([metric], resamples=5)
    records = protocol.records([plain])
    assert (
        set(protocol.absent(records)) == set(metric.columns)
        and "choose an estimator" in protocol.absent(records)["face_AP"]
    )
    assert np.isnan(protocol.table_row([records])["whole_AP"])
    records = protocol.records([Judged(image.id, image.keypoints, image.areas, image.found)])
    assert protocol.absent(records) == dict.fromkeys(
        metric.columns, "the data have no joints of COCO-WholeBody-133 there"
    )
    assert all(np.isnan(protocol.table_row([records])[column]) for column in metric.columns)


def test_records_come_back_from_disk(tmp_path):
    protocol = Protocol([WholeBodyMetric()], resamples=20)
    records = protocol.records(people_with("wholebody133", 12, 1))
    protocol.write(tmp_path, records)
    assert protocol.table_row([protocol.read(tmp_path)]) == protocol.table_row([records])


def test_skeletons_without_sigmas_are_refused():
    with pytest.raises(ValueError, match="topology=mpii16 has no published sigmas, which AP needs; choose from coco17"):
        WholeBodyMetric("mpii16")
