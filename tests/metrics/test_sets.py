"""CMMD, FD-DINOv2, precision, recall, density, coverage and diversity against formulas written out, on random features
and small networks of the real structure."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid
from hydra.utils import instantiate
from invented_people import judged
from omegaconf import OmegaConf
from PIL import Image
from test_clip import folder as folder  # a CLIP in a folder
from test_image_features import pictures, tensors
from transformers import CLIPModel, Dinov2Config, Dinov2Model

from posegen.data.base import PoseData, Sample
from posegen.data.repeated import Repeated
from posegen.metrics.feature_networks import ClipPictures, Dinov2
from posegen.metrics.image_features import CleanFeatures
from posegen.metrics.math.manifolds import manifold_overlap, spread_within
from posegen.metrics.protocol import Protocol
from posegen.metrics.quality import CleanQualityMetric, CmmdMetric, ManifoldMetric, PoseDiversityMetric
from posegen.runner.components import Components
from tests.tiny import configured


def two_sets(n: int = 60, m: int = 50, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(1.0, 1.2, (n, width)), rng.normal(size=(m, width))


def records_of(metric, space: str, features: np.ndarray, poses=None) -> dict:
    images = [
        judged(
            f"x/{i}", [], [], [], observed={f"{space}_features": row}, attributes={"pose": poses[i]} if poses else {}
        )
        for i, row in enumerate(features.astype(np.float32))
    ]
    return Protocol([metric], resamples=40).records(images)


def test_cmmd_is_the_published_estimate():
    """The biased squared discrepancy of Gaussian kernels of width 10, times 1000, of embeddings of unit length."""
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in two_sets())
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10**2))

    expected = 1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    metric = CmmdMetric("cmmd", "protocol.cmmd=FOLDER")
    found, real = records_of(metric, "cmmd", x), records_of(metric, "cmmd", y)
    assert metric.compute(found, reference=real)["CMMD"] == pytest.approx(expected, rel=1e-9) and expected > 0.1
    weights = np.random.default_rng(1).integers(0, 4, len(x)).astype(float)
    doubled = np.repeat(x, weights.astype(int), axis=0)
    expected = 1000 * (kernel(doubled, doubled).mean() + kernel(y, y).mean() - 2 * kernel(doubled, y).mean())
    assert metric.compute(found, weights, real)["CMMD"] == pytest.approx(expected, rel=1e-9)
    row = Protocol([metric], resamples=40).table_row([found], real)
    assert row["CMMD_lo"] < row["CMMD"] < row["CMMD_hi"]


@pytest.mark.parametrize("k", [3, 5])
def test_overlap_is_counted_ball_by_ball(k):
    x, y = two_sets()

    def distance(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radius(a):
        return np.sort(distance(a, a), 1)[:, k]  # the first is the image itself

    across = distance(y, x)
    expected = {
        "precision": np.mean([(across[:, i] <= radius(y)).any() for i in range(len(x))]),
        "recall": np.mean([(across[j] <= radius(x)).any() for j in range(len(y))]),
        "density": np.mean([(across[:, i] < radius(y)).sum() / k for i in range(len(x))]),
        "coverage": np.mean([across[j].min() < radius(y)[j] for j in range(len(y))]),
    }
    found = manifold_overlap(x, y, np.ones((1, len(x))), k)
    assert {name: value[0] for name, value in found.items()} == pytest.approx(expected, abs=1e-12)
    assert all(0.05 < value != 1 for value in expected.values()), "the case says nothing"
    weights = np.zeros((1, len(x)))
    weights[0, :7] = 2  # the balls are those of the whole set
    some = manifold_overlap(x, y, weights, k)
    assert some["precision"][0] == np.mean([(across[:, i] <= radius(y)).any() for i in range(7)])
    assert some["recall"][0] == np.mean([(across[j, :7] <= radius(x)[:7]).any() for j in range(len(y))])
    assert some["coverage"][0] == np.mean([across[j, :7].min() < radius(y)[j] for j in range(len(y))])


def test_overlap_has_columns_with_the_number_of_neighbours():
    x, y = two_sets()
    metric = ManifoldMetric("dinov2", "protocol.dinov2=FOLDER", 3, ["precision", "recall"])
    assert metric.columns == ("dinov2_precision@3", "dinov2_recall@3")
    found, real = records_of(metric, "dinov2", x), records_of(metric, "dinov2", y)
    row = Protocol([metric], resamples=40).table_row([found], real)
    for name in metric.columns:
        assert row[f"{name}_lo"] <= row[name] <= row[f"{name}_hi"], name
    assert row["dinov2_precision@3"] == pytest.approx(
        100 * manifold_overlap(x.astype(np.float32), y.astype(np.float32), np.ones((1, 60)), 3)["precision"][0]
    )
    few = records_of(metric, "dinov2", x[:3])
    assert metric.absent(few)["dinov2_recall@3"] == "3 neighbours need more images than 3"
    assert np.isnan(metric.compute(few, reference=real)["dinov2_recall@3"])
    assert np.isnan(metric.compute(found)["dinov2_recall@3"])
    with pytest.raises(ValueError, match="5 neighbours need more images than 4"):
        manifold_overlap(x[:4], y, np.ones((1, 4)), 5)


class Two(PoseData):
    """Two samples, without pictures."""

    name, split, size = "two", "test", (8, 8)
    identity = {"name": "two"}

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"two/{index}", f"caption {index}", np.zeros((0, 17, 3)), np.zeros(0), None, self.size)


def test_samples_that_come_more_than_once():
    data = Repeated(Two(), 3)
    assert [sample.id for sample in data] == [f"two/{i}{copy}" for i in (0, 1) for copy in ("", "#1", "#2")]
    assert [sample.attributes["pose"] for sample in data] == ["two/0"] * 3 + ["two/1"] * 3
    assert data.prompts == [sample.prompt for sample in data] and len(data) == 6 and data.identity["repeats"] == 3
    assert data.seen(-1).id == "two/1#2" and data.size == (8, 8)
    with configured("train", "data=mannequin_repeated", "data.test.times=2", "data.test.data.count=2") as cfg:
        test = Components(cfg).data("test")
        assert isinstance(test, Repeated) and len(test) == 4 and test[1].id == f"{test[0].id}#1"


def test_diversity_is_within_a_pose(tmp_path):
    x = np.array([[1.0, 0], [0, 2], [1, 1], [5, 0], [3, 0]])
    half = 1 - 0.5**0.5
    spread = [(1 + half) / 2, (1 + half) / 2, half, 0, 0]
    assert spread_within(x, np.array([0, 0, 0, 1, 1])) == pytest.approx(spread)
    metric = PoseDiversityMetric("dinov2", "protocol.dinov2=FOLDER")
    protocol = Protocol([metric], resamples=5)
    protocol.write(tmp_path, records_of(metric, "dinov2", x, ["7", "7", "7", "8", "8"]))
    records = protocol.read(tmp_path)
    assert metric.compute(records) == pytest.approx({"dinov2_diversity": 100 * np.mean(spread)}) and not metric.absent(
        records
    )
    alone = records_of(metric, "dinov2", x)
    assert metric.absent(alone)["dinov2_diversity"].startswith(
        "no pose has two images; choose data that repeats its poses"
    )
    assert np.isnan(metric.compute(alone)["dinov2_diversity"])


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=224, patch_size=56)).save_pretrained(place)
    return place


def test_networks_see_pictures_as_the_published_programs_do(folder, dinov2):
    """Pillow's bicubic on bytes: the whole picture for DINOv2, the square in the middle for CMMD."""
    drawn = pictures(2, 40, 52)
    given = CleanFeatures({"cmmd": ClipPictures(str(folder)), "dinov2": Dinov2(str(dinov2)), "off": Dinov2(None)})
    given.check()
    notes = given.observe(tensors(drawn), [None] * 2, None, real=True)
    assert set(notes[0]) == {"cmmd_features", "dinov2_features"}
    images = [Image.fromarray(picture) for picture in drawn]

    def pixels(resized, mean, std):
        whole = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in resized]) / 255
        return (whole - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    squares = [image.crop((6, 0, 46, 40)).resize((32, 32), Image.Resampling.BICUBIC) for image in images]
    clip = CLIPModel.from_pretrained(folder).eval()
    whole = [image.resize((224, 224), Image.Resampling.BICUBIC) for image in images]
    with torch.no_grad():
        seen = clip.get_image_features(
            pixels(squares, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        ).pooler_output
        token = (
            Dinov2Model.from_pretrained(dinov2)
            .eval()(pixels(whole, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            .pooler_output
        )
    for i in range(2):
        assert notes[i]["cmmd_features"] == pytest.approx((seen[i] / seen[i].norm()).numpy(), abs=1e-5)
        assert notes[i]["dinov2_features"] == pytest.approx(token[i].numpy(), abs=1e-5)
    with pytest.raises(FileNotFoundError, match="protocol.dinov2=/nowhere is no model folder"):
        Dinov2("/nowhere").check()
    with pytest.raises(ValueError, match="protocol.cmmd=.* cannot be read as a CLIP model|lacks .* weights of CLIP"):
        ClipPictures(str(dinov2)).check()


def test_the_frechet_distance_of_dinov2_is_clean_fids():
    metric = CleanQualityMetric("dinov2")
    x, y = two_sets()
    found, real = records_of(metric, "dinov2", x), records_of(metric, "dinov2", y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = fid.fid_from_feats(x.astype(np.float32).astype(float), y.astype(np.float32).astype(float))
    assert metric.compute(found, reference=real)["dinov2_frechet"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sets", ["CMMD", "dinov2_frechet", "dinov2_precision@3", "dinov2_recall@3", "dinov2_density@5", "dinov2_coverage@5", "dinov2_diversity"]),
        ("preference", ["PickScore_wins", "HPSv2.1_wins", "ImageReward_wins"]),
        ("whole_body", ["PCK@0.1", "AP", "count_error", "body_AP", "feet_AP", "face_AP", "left_hand_AP", "right_hand_AP", "whole_AP", "hand_PCK@0.2"]),
    ],
)  # fmt: skip
def test_protocols_without_files_say_what_is_missing(name, shown):
    node = OmegaConf.load(Path(__file__).parents[2] / f"conf/protocol/{name}.yaml")
    protocol = instantiate(node, _convert_="all")
    assert protocol.headline() == shown
    protocol.check()
    absent = protocol.absent(protocol.records([judged("0", [], [], [])]))
    for column in protocol.columns:
        if name != "whole_body":
            assert "set protocol." in absent[column], column
