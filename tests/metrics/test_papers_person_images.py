"""The papers' evaluations of person images: values of invented pictures, networks against torchvision and the formula
of LPIPS, what is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from invented_people import judged
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torchvision.models import Inception3, alexnet

from posegen.data.base import Sample, to_tensor
from posegen.metrics.math.frechet import frechet_distance
from posegen.metrics.papers.person_images import (
    ImageNetInception,
    PersonPaper,
    PersonPaperMetric,
    relative_error,
    resized,
    ssim_gaussian,
    ssim_uniform,
)
from posegen.metrics.perceptual import Lpips, Perceptual, PerceptualMetric
from posegen.metrics.pixel_similarity import psnr

CONF = Path(__file__).parents[2] / "conf" / "protocol"
PAPERS = ("gfla", "pidm", "pcdms", "cfld")


def invented(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(generated picture, target) of waves, ``[H, W, 3] uint8``."""
    y, x, c = np.mgrid[:height, :width, :3]
    target = np.round(128 + 80 * np.sin(2 * np.pi * (x / 16 + c / 3)) * np.cos(2 * np.pi * y / 24))
    made = np.round(120 + 70 * np.sin(2 * np.pi * ((x - 2) / 16 + c / 3)) * np.cos(2 * np.pi * y / 24))
    return made.astype(np.uint8), target.astype(np.uint8)


def barred(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, 0), (40, 40), (0, 0)), constant_values=255)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (invented(256, 176), (18.4970, 0.7049, 0.6541, 0.6364, 0.6679, 0.6592, 0.0975, 0.1002)),
        (tuple(map(barred, invented(256, 176))), (20.1243, 0.7915, 0.7631, 0.7549, 0.7679, 0.7659, 0.0670, 0.0518)),
        (invented(128, 64), (18.5610, 0.7048, 0.6529, 0.6358, 0.6667, 0.6593, 0.0965, 0.0992)),
    ],
    ids=["256x176", "with white bars", "128x64"],
)
def test_values_of_invented_pictures(pair: tuple[np.ndarray, np.ndarray], expected: tuple[float, ...]) -> None:
    made, target = pair
    found = (
        psnr(made[None], target[None])[0],
        ssim_uniform(made, target),
        ssim_gaussian(made, target, 1.5),
        ssim_gaussian(made, target, 1.2),
        ssim_gaussian(made, target, 1.5, data_range=255),
        ssim_uniform(made, target, window=7),
        np.abs(made.astype(float) - target).mean() / 255,
        relative_error(made, target),
    )
    assert found == pytest.approx(expected, abs=1e-4)


def test_distance_of_invented_sets() -> None:
    a, b = np.array([[0, 0], [2, 0], [0, 2], [2, 2.0]]), np.array([[1, 1], [3, 1], [1, 4], [3, 4.0]])
    assert frechet_distance(a, b) == pytest.approx(3.583333, abs=1e-6)


def test_a_picture_agrees_with_itself_and_a_window_that_does_not_fit_gives_no_number() -> None:
    made, _ = invented(64, 64)
    assert (
        ssim_uniform(made, made) == pytest.approx(1)
        and ssim_gaussian(made, made, 1.2) == pytest.approx(1)
        and relative_error(made, made) == 0
    )
    assert np.isnan(ssim_uniform(made[:50], made[:50]))


def test_libraries_resize_differently() -> None:
    stripes = np.repeat((np.arange(750)[None, :, None] % 3 * 120).astype(np.uint8), 1101, 0).repeat(3, 2)[None]
    made = {
        way: resized(stripes, (256, 176), way)
        for way in ("pil_bicubic", "cv2_bilinear", "cv2_bicubic", "torch_bicubic")
    }
    assert all(picture.shape == (1, 256, 176, 3) for picture in made.values())
    assert (
        made["pil_bicubic"][0] == np.asarray(Image.fromarray(stripes[0]).resize((176, 256), Image.Resampling.BICUBIC))
    ).all()
    assert (made["cv2_bilinear"][0] == cv2.resize(stripes[0], (176, 256), interpolation=cv2.INTER_LINEAR)).all()
    difference = {way: np.abs(made["pil_bicubic"].astype(int) - picture).mean() for way, picture in made.items()}
    assert difference["torch_bicubic"] < 1 < 10 < difference["cv2_bilinear"]
    assert resized(stripes, (256, 176), "none") is stripes and resized(stripes, (1101, 750), "cv2_bicubic") is stripes


# Networks.


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "inception_v3.pth"
    torch.save(scattered(Inception3(aux_logits=True, init_weights=False)).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    with torch.device("meta"):
        features = alexnet(weights=None).features.to_empty(device="cpu")
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, file)
    return file


def scattered(network: nn.Module) -> nn.Module:
    for value in network.state_dict().values():
        if value.ndim == 4:
            nn.init.kaiming_normal_(value)
    return network


def test_features_are_those_of_torchvision_with_its_change_of_values(inception: Path) -> None:
    images = 255 * torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0))
    theirs = Inception3(aux_logits=True, init_weights=False, transform_input=True).eval()
    theirs.load_state_dict(torch.load(inception))
    seen = []
    theirs.avgpool.register_forward_hook(lambda _m, _i, made: seen.append(made.flatten(1)))
    with torch.no_grad():
        theirs(torch.nn.functional.interpolate(images / 255, (299, 299), mode="bilinear", align_corners=False))
    assert ImageNetInception(str(inception)).features(images) == pytest.approx(seen[0].numpy(), rel=1e-4, abs=1e-5)


def test_lpips_is_its_formula(alex: Path) -> None:
    lpips = Lpips(str(alex))
    made, target = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (0, 1))
    shift, scale = (
        torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1),
        torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1),
    )
    network = alexnet(weights=None)
    network.load_state_dict(torch.load(alex), strict=False)
    expected = torch.zeros(2)
    with torch.no_grad():
        a, b = ((x - shift) / scale for x in (made, target))
        stage = 0
        for layer in network.features:
            a, b = layer(a), layer(b)
            if isinstance(layer, nn.ReLU):
                unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
                weights = getattr(lpips.network, f"lin{stage}").model[-1].weight
                expected += ((unit[0] - unit[1]).square() * weights).sum(1).mean((1, 2))
                stage += 1
            if isinstance(layer, nn.ReLU):
                a, b = a.clone(), b.clone()
    assert stage == 5 and lpips.distances(made, target) == pytest.approx(expected.numpy(), rel=1e-4)
    assert lpips.distances(made, made) == pytest.approx([0, 0], abs=1e-7)


def test_papers_share_the_networks_of_the_same_files(alex: Path, inception: Path) -> None:
    protocol = configured("person_all", alexnet=str(alex), imagenet_inception=str(inception), size=[64, 56])
    observers = [observer for observer in protocol.observers if isinstance(observer, PersonPaper)]
    assert (
        len(observers) == 4
        and len({id(o.inception.network) for o in observers}) == len({id(o.lpips.network) for o in observers}) == 1
    )


def test_files_that_are_missing_or_others(alex: Path, inception: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="protocol.alexnet=/nowhere/a.pth: no such file; expected alexnet-owt-7be5be79.pth"
    ):
        Lpips("/nowhere/a.pth").check()
    with pytest.raises(ValueError, match="protocol.alexnet=.* holds another network"):
        Lpips(str(inception)).check()
    with pytest.raises(ValueError, match="protocol.linear=.* holds another network"):
        Lpips(str(alex), linear=str(alex)).check()
    with pytest.raises(ValueError, match="protocol.imagenet_inception=.* holds another network"):
        ImageNetInception(str(alex)).check()


# Observers and columns.


def pair_of(size: tuple[int, int] = (64, 56)) -> tuple[torch.Tensor, list[Sample]]:
    made, target = invented(*size)
    sample = Sample("a", "", np.zeros((0, 17, 3)), np.zeros(0), target, size)
    return to_tensor(made)[None], [sample]


def configured(name: str, **values: Any) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), values), _convert_="all")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_fills_its_columns(paper: str, alex: Path, inception: Path) -> None:
    protocol = configured(
        f"pgpis_{paper}",
        alexnet=str(alex),
        imagenet_inception=str(inception),
        size=[64, 56],
        allow_rank_deficient=True,
        resamples=5,
    )
    protocol.check()
    images, samples = pair_of()
    (looked,) = (observer.observe(images, samples, None, False) for observer in protocol.observers)
    (real,) = (observer.observe(images, samples, None, True) for observer in protocol.observers)
    assert set(real[0]) == {f"{paper}_features"}
    found = protocol.records([judged(str(i), [], [], [], observed=looked[0]) for i in range(3)])
    reference = protocol.records([judged(str(i), [], [], [], observed=real[0]) for i in range(3)])
    row = protocol.table_row([found], reference)
    assert all(np.isfinite(row[column]) for column in protocol.columns) and protocol.absent(found) == {}
    assert (
        row[f"{paper}_SSIM_256"] < 1
        and 15 < row[f"{paper}_PSNR"] < 22
        and (row[f"{paper}_FID"] > 0.01) == (paper == "gfla")
    )  # its file alone is JPEG


def test_programs_differ_where_they_are_said_to(alex: Path) -> None:
    images, samples = pair_of((80, 64))
    values = {}
    for paper in PAPERS:
        (observer,) = configured(f"pgpis_{paper}", alexnet=str(alex), size=[64, 56]).observers
        (values[paper],) = observer.observe(images, samples, None, False)
    assert len({round(values[p][f"{p}_lpips"], 6) for p in PAPERS}) == 4
    assert (
        values["pidm"]["pidm_psnr"] == psnr(*(np.stack([p]) for p in invented(80, 64)))[0]
    )  # in the size that it is stored in
    assert values["pcdms"]["pcdms_psnr"] != values["cfld"]["cfld_psnr"]


def test_without_files_columns_stay_empty_and_say_why() -> None:
    protocol = configured("person_all")
    images, samples = pair_of((256, 176))
    looks = [observer.observe(images, samples, None, False)[0] for observer in protocol.observers]
    observed = {name: value for look in looks for name, value in look.items()}
    records = protocol.records([judged(str(i), [], [], [], observed=observed, features=np.zeros(2)) for i in range(2)])
    absent = protocol.absent(records)
    assert {f"{paper}_{name}" for paper in PAPERS for name in ("FID", "LPIPS")} | {"LPIPS", "clean_FID"} <= set(absent)
    assert (
        "set protocol.alexnet=PATH" in absent["LPIPS"] and "set protocol.imagenet_inception=PATH" in absent["cfld_FID"]
    )
    row = protocol.table_row([records], records)
    assert (
        np.isnan(row["LPIPS"])
        and row["cfld_SSIM"] == pytest.approx(0.7049, abs=1e-4)
        and row["pidm_SSIM_256"] == pytest.approx(0.6364, abs=1e-4)
    )


def test_incomplete_batches_are_dropped_as_there() -> None:
    rng = np.random.default_rng(0)
    records = {
        "id": [str(i) for i in range(10)],
        "x_features": list(rng.normal(size=(10, 2))),
        "x_lpips": list(range(10)),
        "x_ssim": [0.5] * 10,
    }
    reference = {"id": [str(i) for i in range(9)], "x_features": list(rng.normal(size=(9, 2)))}
    for drop, found, real, lpips in ((True, 8, 8, 4.0), (False, 10, 9, 4.5)):
        metric = PersonPaperMetric("x", batch=4, lpips_batch=3, drop_last=drop)
        values = metric.compute(records, reference=reference)
        expected = frechet_distance(np.stack(records["x_features"][:found]), np.stack(reference["x_features"][:real]))
        assert (
            values["x_FID"] == pytest.approx(expected, rel=1e-6)
            and values["x_LPIPS"] == lpips
            and values["x_SSIM"] == 0.5
        )


def test_a_way_of_resizing_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="resize of x is 'nearest'; expected one of none, pil_bicubic"):
        PersonPaper("x", ImageNetInception(None), Lpips(None), (4, 4), resize="nearest")  # type: ignore[arg-type]


def test_the_corrected_distance_is_a_column(alex: Path) -> None:
    images, samples = pair_of()
    observer, metric = Perceptual(Lpips(str(alex))), PerceptualMetric()
    (looked,) = observer.observe(images, samples, None, False)  # type: ignore[arg-type]
    record = metric.record(judged("a", [], [], [], observed=looked))
    assert (
        metric.compute({"lpips": [record["lpips"]] * 2})["LPIPS"] == pytest.approx(looked["lpips"])
        and looked["lpips"] > 0
    )
