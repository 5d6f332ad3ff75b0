import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from invented_people import judged, random_set
from omegaconf import OmegaConf

from posegen.errors import UserError
from posegen.metrics.caption import CaptionMetric
from posegen.metrics.distribution import DistributionMetric
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol, place

CONF = Path(__file__).parents[2] / "conf" / "protocol"
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


CORRECTED = ["PCK@0.1", "AP50", "AP", "AP75", "AR", "count_error", "count_bias", "caption_agreement"]
CORRECTED += ["judge_frechet", "judge_kernel"]
PAPER = ["paper_AP", "paper_SAP", "paper_PCE", "paper_FID", "paper_KID", "paper_CLIP"]
CLEAN = ["clean_FID", "clean_KID", "timm_frechet", "rfd_frechet", "clean_CLIP"]
PERSON = ["PSNR", "SSIM", "person_PSNR", "colour_error", *CORRECTED[:7], *CORRECTED[8:]]
PAPERS = ("gfla", "pidm", "pcdms", "cfld")
FIDS = [f"{paper}_FID" for paper in PAPERS]
SHOWN = {
    "corrected": CORRECTED,
    "paper_pose": PAPER,
    "clean": CLEAN,
    "all": ["PCK@0.1", "AP", "count_error", *PAPER, *CLEAN],
    "person_image": PERSON,
    "person_all": ["PCK@0.1", "AP", "count_error", "judge_frechet", "clean_FID", "clean_KID", *FIDS],
    **{f"pgpis_{paper}": [f"{paper}_FID"] for paper in PAPERS},
}


@pytest.mark.parametrize("name", SHOWN)
def test_shown_columns_of_the_protocols(name):
    protocol = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    assert protocol.headline() == SHOWN[name]


def test_the_axes_of_plots_and_columns_without_a_better_direction():
    protocol = corrected()
    assert protocol.axes("accuracy") == ["PCK@0.1", "AP"] and protocol.axes("quality") == ["judge_frechet"]
    assert [column for column in protocol.columns if column.better is None] == ["count_bias"]


def test_columns_that_do_not_exist_are_named():
    with pytest.raises(UserError, match="headline: the protocol has no column FID; it has AP, AP50"):
        corrected().headline(["AP", "FID"])
    with pytest.raises(UserError, match="hidden: the protocol has no column FID"):
        Protocol([PoseMetric()], hidden=["FID"])


class Plain(PoseMetric):
    """A third party's metric: plain names, and of which less is better."""

    lower_is_better = frozenset({"distance"})

    def __init__(self):
        self.columns = ("distance", "score")


def test_plain_names_are_shown_columns():
    distance, score = Protocol([Plain()]).headline()
    assert (distance, distance.better, score, score.better) == ("distance", "lower", "score", "higher")
    assert Protocol([Plain()]).lower_is_better == {"distance"}
