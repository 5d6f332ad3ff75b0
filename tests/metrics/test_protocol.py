import time
from dataclasses import replace

import numpy as np
import pytest
from invented_people import judged, random_set

from posegen.metrics.caption import CaptionMetric
from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol, place

SCENES = ("park", "beach")


def corrected(resamples: int = 200) -> Protocol:
    return Protocol([PoseMetric(), CaptionMetric(), DistributionMetric()], resamples=resamples)


def judged_set(images: int, noise: float, seed: int = 0, dimension: int = 16):
    rng = np.random.default_rng(seed)
    for i, image in enumerate(random_set(images, 0, noise)):
        wanted = {"style": "photo", "scene": SCENES[i % 2], "count": len(image.keypoints)}
        found = {"style": "photo", "scene": SCENES[int(rng.integers(2))]}
        yield replace(
            image, attributes=wanted, found_attributes=found, features=rng.normal(size=dimension).astype(np.float32)
        )


def test_row(tmp_path):
    protocol = corrected()
    reference = protocol.records(judged_set(80, 0.0, 9))
    seeds = [protocol.records(judged_set(80, 2.0, seed)) for seed in (0, 1)]
    protocol.write(tmp_path, seeds[0])
    row = protocol.table_row([protocol.read(tmp_path), seeds[1]], reference)
    assert row == protocol.table_row(seeds, reference), "a table from disk differs"
    assert list(row)[-2:] == ["n_images", "n_seeds"] and row["n_images"] == 80 and row["n_seeds"] == 2
    for name in protocol.columns:
        assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"], name
    assert row["style_agreement"] == 100 and 20 < row["scene_agreement"] < 80
    assert protocol.lower_is_better == {"count_error", "judge_frechet", "judge_kernel"}


def test_p_values():
    protocol = corrected()
    reference = protocol.records(judged_set(80, 0.0, 9))
    spreads = {
        f"noise {noise}": protocol.resampled([protocol.records(judged_set(80, noise))], reference)
        for noise in (2.0, 2.1, 12.0)
    }
    p = protocol.p_values(spreads, "noise 2.0")
    assert p.keys() == {"noise 2.1", "noise 12.0"}
    assert p["noise 12.0"]["AP"] < 0.05 and p["noise 12.0"]["style_agreement"] == 1


def test_seeds_of_a_row_share_their_images():
    protocol = corrected()
    first, second = (protocol.records(judged_set(n, 2.0)) for n in (10, 9))
    with pytest.raises(ValueError, match="different images"):
        protocol.table_row([first, second])
    with pytest.raises(ValueError, match="no records"):
        protocol.table_row([])
    with pytest.raises(ValueError, match="twice"):
        Protocol([PoseMetric(), PoseMetric()])


def test_bootstrap_takes_seconds():
    protocol = corrected(1000)
    records = protocol.records(judged_set(400, 2.0, 0, dimension=128))
    reference = protocol.records(judged_set(400, 2.0, 1, dimension=128))
    start = time.process_time()
    protocol.table_row([records], reference)
    assert time.process_time() - start < 20, "1000 resamples of 400 images must be cheap"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"actions": ("sitting",)}, {"action": "sitting"}),
        ({"actions": "sitting"}, {"action": "sitting"}),
        ({"actions": ("sitting", "running")}, {"action": "several"}),
        ({"actions": ()}, {}),
        ({"scenario": 7}, {"scenario": "7"}),
    ],
)
def test_what_tables_are_broken_down_by(attributes, expected):
    assert place(judged("a", [], [], [], attributes=attributes)) == expected
