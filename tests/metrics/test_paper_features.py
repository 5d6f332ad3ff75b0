"""What the papers' evaluation does to pictures before the network sees them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_goldens import CASES
from test_image_features import Watching, pictures, tensors

from posegen.data.base import Sample
from posegen.metrics.clip import clip_score
from posegen.metrics.feature_networks import FidelityInception
from posegen.metrics.papers.quality import PaperFeatures, cropped, scenario_mean, through_jpeg, wrapped_bytes


class Pixels(FidelityInception):
    """Remembers what it was shown; the features are mean colours."""

    def __init__(self):
        super().__init__("unused")
        self.seen = []

    def pooled(self, images, widths=(64, 2048)):
        self.seen.append(images)
        return {width: images.mean((2, 3)).numpy().repeat(width, 1)[:, :width] for width in widths}


def sample(name, picture, whole=None):
    return Sample(name, "", np.zeros((0, 17, 3), np.float32), np.zeros(0), picture, (40, 50), whole=whole)


def test_wrapped_bytes_of_white_and_black():
    """(1 - 0.485) / 0.229 * 255 = 573.47 is 61 modulo 256, and -540.07 is 228."""
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8)
    assert wrapped_bytes(colours, generated=False)[0].tolist() == [[61, 107, 161], [228, 249, 52], [61, 249, 52]]
    assert wrapped_bytes(colours, generated=True)[0, 2].tolist() == [228, 249, 161]


def test_crop_keeps_the_middle_of_the_shorter_side():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 200
    found = cropped(picture)
    assert found.shape == (299, 299, 3) and found[:, 3:-3].min() == 200
    theirs = np.asarray(Image.fromarray(picture).resize((897, 299), Image.Resampling.BILINEAR))[:, 299:598]
    assert np.array_equal(found, theirs)


def test_real_and_generated_pictures_are_treated_differently():
    network, whole = Pixels(), pictures(1, 80, 60)[0]
    samples = [sample("a", pictures()[0]), sample("b", pictures()[1], lambda: whole)]
    observer = PaperFeatures(network)
    found = observer.observe(tensors(pictures()), samples, Watching(), real=True)
    assert [{name: value.shape for name, value in look.items()} for look in found] == [
        {"paper_64": (64,), "paper_2048": (2048,), "paper_fixed_64": (64,)}
    ] * 2
    crops = np.stack([cropped(pictures()[0]), cropped(whole)])
    assert np.array_equal(network.seen[0].permute(0, 2, 3, 1).numpy(), wrapped_bytes(crops, generated=False))
    assert np.array_equal(network.seen[1].permute(0, 2, 3, 1).numpy(), crops)
    observer.observe(tensors(pictures()), samples, Watching(), real=False)
    saved = np.stack([cropped(through_jpeg(picture)) for picture in pictures()])
    assert np.array_equal(network.seen[2].permute(0, 2, 3, 1).numpy(), wrapped_bytes(saved, generated=True))
    assert np.array_equal(network.seen[3].permute(0, 2, 3, 1).numpy(), saved)


def test_files_change_pictures_a_little():
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    picture = np.stack([ramp, 255 - ramp, ramp[::-1]], -1)
    assert 0 < np.abs(through_jpeg(picture).astype(int) - picture).mean() < 3


def test_switched_off_and_without_pictures():
    assert PaperFeatures(FidelityInception(None)).observe(
        tensors(pictures()), [sample("a", None)] * 2, Watching(), real=True
    ) == [{}, {}]
    with pytest.raises(ValueError, match="sample a has no image, only a pose"):
        PaperFeatures(Pixels()).observe(tensors(pictures(1)), [sample("a", None)], Watching(), real=True)


@pytest.mark.skipif(not CASES, reason="the reference cases (shared/parity/metrics) are not beside this checkout")
def test_reference_cases():
    kinds = {case["kind"]: case for case in CASES.values()}
    case = kinds["quality_preprocessing"]
    pixels = np.array(case["inputs"]["pixels_rgb"], np.uint8)
    for generated, name in ((False, "real_bytes"), (True, "generated_bytes")):
        assert wrapped_bytes(pixels, generated).tolist() == case["expected"][name]
    case = kinds["quality_overall"]
    found = scenario_mean(case["inputs"]["scenarios"])
    assert found == pytest.approx({name: case["expected"][name] for name in ("FID", "KID", "IS")}, abs=1e-9), (
        json.dumps(case)
    )
    case = kinds["clip_score"]
    score, pairs = clip_score(*(np.array(case["inputs"][name]) for name in ("image", "text")))
    assert score == pytest.approx(case["expected"]["score"], abs=1e-4) and pairs == pytest.approx(
        case["expected"]["per_pair"], abs=1e-4
    )


def test_bytes_agree_with_torch():
    x = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    colours = (x * 255).byte().permute(1, 2, 0).numpy()
    from torchvision.transforms.functional import normalize, to_tensor

    theirs = normalize(to_tensor(colours), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) * 255
    assert np.array_equal(
        wrapped_bytes(colours, generated=False), (theirs.long() % 256).byte().permute(1, 2, 0).numpy()
    )
