"""Feature networks: a function of their file or their seed alone, and one clear error for each thing that can be wrong
with a file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from cleanfid import inception_pytorch
from torch import nn

from posegen.metrics.feature_networks import (
    FidelityInception,
    RandomNetwork,
    TimmNetwork,
    TorchScriptInception,
    fid_inception,
)


class StandIn(nn.Module):
    """What is called of FID's TorchScript file: its layers, on values around 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2048, 1, bias=False))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(StandIn()).save(str(tmp_path / "inception-2015-12-05.pt"))
    return tmp_path / "inception-2015-12-05.pt"


def images(n: int = 2, side: int = 299) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_inception_script(script):
    network = TorchScriptInception(str(script), sha256(script))
    network.check()
    weights = torch.jit.load(str(script)).state_dict()["layers.1.weight"][:, :, 0, 0]
    expected = ((images() - 128) / 128).mean((2, 3)) @ weights.T
    assert network.features(images()).shape == (2, 2048) and network.features(images()) == pytest.approx(
        expected.detach().numpy(), abs=1e-5
    )
    from cleanfid.inception_torchscript import InceptionV3W

    assert network.features(images()) == pytest.approx(
        InceptionV3W(str(script.parent), download=False)(images()).detach().numpy(), abs=1e-6
    )


def test_files_that_are_missing_or_others(script, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="protocol.inception=/nowhere/x.pt: no such file; expected inception-2015-12-05.pt"
    ):
        TorchScriptInception("/nowhere/x.pt").check()
    with pytest.raises(
        ValueError, match=f"protocol.inception={script} is damaged or another file .*expected f58cb9b6ec323ed6"
    ):
        TorchScriptInception(str(script)).check()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(script.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no TorchScript file"):
        TorchScriptInception(str(cut), sha256=None).check()
    with pytest.raises(ValueError, match="protocol.paper_inception=.* is damaged or another file .*expected 6726825d"):
        FidelityInception(str(cut)).check()
    with pytest.raises(ValueError, match="protocol.paper_inception=.*cut.pt: cannot be read as weights"):
        FidelityInception(str(cut), sha256=None).check()


def test_networks_without_a_file_are_switched_off():
    for network in (TorchScriptInception(None), FidelityInception(None), TimmNetwork(None, None)):
        assert not network.configured
        network.check()
    assert RandomNetwork().configured


def test_fidelity_inception_is_clean_fids_network(tmp_path, monkeypatch):
    """The same weights in clean-fid's own class give the same features."""
    torch.manual_seed(0)
    state = fid_inception().state_dict()
    for value in state.values():
        if value.ndim == 4:
            nn.init.kaiming_normal_(value)
    torch.save(state, tmp_path / "weights.pth")
    network = FidelityInception(str(tmp_path / "weights.pth"), sha256=None)
    found = network.pooled(images(1))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = inception_pytorch.InceptionV3([0, 3], resize_input=False, normalize_input=False).eval()
    with torch.no_grad():
        first, last = theirs((images(1) - 128) / 128)
    assert found[64] == pytest.approx(first.mean((2, 3)).numpy(), rel=1e-4, abs=1e-5)
    assert found[2048] == pytest.approx(last.flatten(1).numpy(), rel=1e-4, abs=1e-5)
    assert list(network.pooled(images(1), (64,))) == [64]
    assert np.array_equal(network.features(images(1)), found[2048])


def test_random_network_is_a_function_of_its_seed():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = RandomNetwork().features(images())
    assert torch.equal(before, torch.random.get_rng_state()), "it must not use the global generator"
    torch.manual_seed(2)
    assert (
        np.array_equal(first, RandomNetwork().features(images()))
        and first.shape == (2, 512)
        and first.dtype == np.float32
    )
    assert not np.allclose(first, RandomNetwork(seed=1).features(images()))
    assert 0.1 < first.std() < 10 and np.abs(first[0] - first[1]).max() > 0


def test_timm_model(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "resnet10t.pth")
    network = TimmNetwork("resnet10t", str(tmp_path / "resnet10t.pth"))
    side = model.pretrained_cfg["input_size"][-1]
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    x = images(1, side)
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features((x / 255 - mean) / std), pre_logits=True)
    assert network.side == side and network.features(x) == pytest.approx(expected.numpy(), abs=1e-4)


def test_timm_model_of_another_kind(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"protocol.timm=.*other.pth holds another network \(.* tensors differ: "):
        TimmNetwork("resnet10t", str(tmp_path / "other.pth")).check()
    with pytest.raises(ValueError, match="set protocol.timm_model"):
        TimmNetwork(None, "x.pth")
    with pytest.raises(ValueError, match="protocol.timm_model=resnet11 cannot be built"):
        TimmNetwork("resnet11", str(tmp_path / "other.pth")).check()
