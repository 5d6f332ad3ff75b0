"""What observers see of the judged images."""

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer

from posegen.data.base import Sample, to_tensor
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.feature_networks import FeatureNetwork, TorchScriptInception
from posegen.metrics.image_features import CleanFeatures, Swapped, clean_resized, truncated

SAMPLES = [Sample(str(i), "", np.zeros((0, 17, 3), np.float32), np.zeros(0), None, (40, 50)) for i in range(2)]


class Watching(Estimator):
    """Finds nobody and remembers what it was shown."""

    def estimate(self, images):
        self.seen = images
        return [Poses(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32)) for _ in images]


class Mean(FeatureNetwork):
    network = torch.nn.Identity()

    def __init__(self, side=299):
        self.side = side

    def forward(self, images):
        return images.mean((2, 3))


def pictures(n: int = 2, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def tensors(of: np.ndarray) -> torch.Tensor:
    return torch.stack([to_tensor(picture) for picture in of])


def test_swapped():
    judge, given = Watching(), tensors(pictures())
    found = Swapped().observe(given, SAMPLES, judge, real=False)
    assert [list(look) for look in found] == [["swapped"]] * 2 and isinstance(found[0]["swapped"], Poses)
    assert judge.seen.dtype == torch.float32 and torch.allclose(judge.seen, given.flip(1), atol=1e-6)


def test_pixels_are_cut_and_whole_bytes_kept():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(truncated(tensors(every)), every)
    assert np.array_equal(truncated(tensors(every[:, :-1]) + 0.9 / 127.5), every[:, :-1])
    assert truncated(torch.full((1, 3, 1, 1), 1.7)).max() == 255


def test_clean_resizing_is_clean_fids():
    theirs = np.stack([build_resizer("clean")(picture) for picture in pictures()])
    assert np.array_equal(clean_resized(pictures(), 299).permute(0, 2, 3, 1).numpy(), theirs)


def test_clean_features():
    observer = CleanFeatures({"a": Mean(), "b": Mean(32), "clean": TorchScriptInception(None)})
    observer.check()
    found = observer.observe(tensors(pictures()), SAMPLES, Watching(), real=True)
    assert [list(look) for look in found] == [["a_features", "b_features"]] * 2
    assert found[1]["a_features"] == pytest.approx(build_resizer("clean")(pictures()[1]).mean((0, 1)), rel=1e-5)
    assert CleanFeatures({"clean": TorchScriptInception(None)}).observe(
        tensors(pictures()), SAMPLES, Watching(), real=False
    ) == [{}, {}]
