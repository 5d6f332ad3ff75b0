"""The clean and the paper's distances from records: against the functions on the same features, and what stands where
they cannot be computed."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from cleanfid import fid
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from invented_people import judged
from omegaconf import OmegaConf

from experiments.profile.set_distances import by_loop
from posegen.metrics.math.frechet import frechet_distance, kernel_distance, kernel_distances, random_subsets
from posegen.metrics.papers.quality import PaperQualityMetric, scenario_mean
from posegen.metrics.protocol import Protocol
from posegen.metrics.quality import CleanQualityMetric, rows_by_scenario

CONF = Path(__file__).parents[2] / "conf"
SCENARIOS = ("dance", "mural")


def protocol_of(metric, resamples=50):
    return Protocol([metric], name="test", resamples=resamples)


def images(n: int, seed: int, scenarios: bool = True, shift: float = 0.0, **sizes: int):
    """Judged images with features of these names and sizes; two of three are ``dance``."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        observed = {
            name: (np.maximum(rng.normal(size=size) + shift + (i % 3 == 0), 0)).astype(np.float32)
            for name, size in sizes.items()
        }
        yield judged(
            f"{i}", [], [], [], observed=observed, attributes={"scenario": SCENARIOS[i % 3 == 0]} if scenarios else {}
        )


def stacked(records, name, scenario=None):
    return np.stack(
        [
            x
            for x, of in zip(records[name], records.get("scenario", [None] * len(records[name])), strict=True)
            if scenario in (None, of)
        ]
    )


def sets(metric, found, real, **options):
    protocol = protocol_of(metric)
    return (
        protocol,
        protocol.records(images(found, 0, **options)),
        protocol.records(images(real, 1, **options | {"shift": 0.2})),
    )


def test_clean_distances_are_those_of_clean_fid(tmp_path):
    protocol, records, reference = sets(CleanQualityMetric(kernel_factor=1000), 90, 80, clean_features=8)
    protocol.write(tmp_path, records)
    row = protocol.table_row([protocol.read(tmp_path)], reference)
    a, b = stacked(records, "clean_features").astype(float), stacked(reference, "clean_features").astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert row["clean_FID"] == pytest.approx(fid.fid_from_feats(a, b), rel=1e-6)
    assert row["clean_KID"] == pytest.approx(1000 * kernel_distance(a, b), rel=1e-9)
    np.random.seed(0)  # noqa: NPY002
    assert row["clean_KID"] == pytest.approx(1000 * fid.kernel_distance(b[:80], a[:80]), rel=0.2)
    parts = [
        (frechet_distance(x, y), 1000 * kernel_distance(x, y))
        for x, y in (scenario(records, reference, name) for name in SCENARIOS)
    ]
    assert (row["clean_FID_macro"], row["clean_KID_macro"]) == pytest.approx(np.mean(parts, 0), rel=1e-9)
    for name in protocol.columns:
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"], name
    assert protocol.absent(records) == {} and protocol.lower_is_better == set(protocol.columns)


def scenario(records, reference, name, features="clean_features"):
    return stacked(records, features, name), stacked(reference, features, name)


def test_only_inception_distances_have_the_names():
    assert CleanQualityMetric("rfd").columns == ("rfd_frechet", "rfd_kernel", "rfd_frechet_macro", "rfd_kernel_macro")
    assert CleanQualityMetric().columns == ("clean_FID", "clean_KID", "clean_FID_macro", "clean_KID_macro")


def test_sets_that_are_too_small_for_a_covariance():
    options = {"found": 60, "real": 60, "clean_features": 24}
    protocol, records, reference = sets(CleanQualityMetric(), **options)
    row, reasons = protocol.table_row([records], reference), protocol.absent(records)
    assert (
        np.isnan(row["clean_FID_macro"])
        and list(reasons) == ["clean_FID_macro"]
        and row["clean_FID"] > 0
        and row["clean_KID_macro"] != 0
    )
    assert (
        reasons["clean_FID_macro"]
        == "20 images are no more than the 24 dimensions: generate more, or set protocol.allow_rank_deficient=true"
    )
    protocol, records, reference = sets(CleanQualityMetric(allow_rank_deficient=True), **options)
    assert protocol.table_row([records], reference)["clean_FID_macro"] > 0 and protocol.absent(records) == {}
    few = {name: values[:20] for name, values in reference.items()}
    assert np.isnan(protocol_of(CleanQualityMetric()).table_row([records], few)["clean_FID"])


def test_columns_without_features_scenarios_or_a_reference():
    metric = CleanQualityMetric(setting="protocol.inception=FILE")
    protocol, records, reference = sets(metric, 30, 30)
    assert protocol.absent(records) == dict.fromkeys(
        metric.columns, "the network is not configured: set protocol.inception=FILE"
    )
    assert all(np.isnan(protocol.table_row([records], reference)[name]) for name in metric.columns)
    protocol, records, reference = sets(metric, 30, 30, scenarios=False, clean_features=4)
    row = protocol.table_row([records], reference)
    assert (
        row["clean_FID"] > 0
        and np.isnan(row["clean_FID_macro"])
        and set(protocol.absent(records)) == {"clean_FID_macro", "clean_KID_macro"}
    )
    assert all(np.isnan(protocol.table_row([records])[name]) for name in metric.columns)


def test_scenarios_without_real_images():
    protocol, records, reference = sets(CleanQualityMetric(), 60, 60, clean_features=4)
    dances = {
        name: [x for x, of in zip(values, reference["scenario"], strict=True) if of == "dance"]
        for name, values in reference.items()
    }
    assert rows_by_scenario(records, dances)["mural"][1] == []
    assert np.isnan(protocol.table_row([records], dances)["clean_KID_macro"])


def test_paper_distances(tmp_path):
    """``dance`` has more than 200 images and a KID, ``mural`` has not."""
    protocol, records, reference = sets(PaperQualityMetric(), 320, 330, paper_64=5, paper_2048=7, paper_fixed_64=5)
    protocol.write(tmp_path, records)
    row = protocol.table_row([protocol.read(tmp_path)], reference)
    parts = [scenario(records, reference, name, "paper_64") for name in SCENARIOS]
    assert row["paper_FID"] == pytest.approx(np.mean([frechet_distance(*p) for p in parts]), rel=1e-9)
    dance = [x.astype(float) for x in scenario(records, reference, "dance", "paper_2048")]
    expected = 100 * by_loop(*dance, random_subsets(*map(len, dance), 100, 200))
    assert row["paper_KID"] == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(100 * kernel_distances(*dance, np.ones((1, len(dance[0]))))[0], rel=0.1)
    assert row["paper_fixed_FID"] != row["paper_FID"]
    for name in protocol.columns:
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"], name
    assert protocol.absent(records) == {}


def test_paper_columns_that_stay_empty():
    protocol, records, reference = sets(
        PaperQualityMetric(), 200, 300, scenarios=False, paper_64=5, paper_2048=7, paper_fixed_64=5
    )
    row = protocol.table_row([records], reference)
    assert row["paper_FID"] > 0 and np.isnan(row["paper_KID"])
    assert protocol.absent(records) == {
        "paper_KID": "no scenario has more than 200 generated images, the largest has 200"
    }
    protocol, records, reference = sets(PaperQualityMetric(), 30, 30)
    assert (
        "set protocol.paper_inception=PATH of weights-inception-2015-12-05-6726825d.pth"
        in protocol.absent(records)["paper_FID"]
    )
    assert np.isnan(protocol.table_row([records], reference)["paper_FID"])


def test_mean_over_scenarios():
    found = scenario_mean(
        {"a": {"FID": 1.0, "KID": 0.5}, "b": {"FID": 2.0, "KID": None}, "c": {"FID": 6.0, "IS": None}}
    )
    assert found["FID"] == 3 and found["KID"] == 0.5 and np.isnan(found["IS"])


@pytest.mark.parametrize("name", ["clean", "paper_pose", "all"])
def test_protocols_take_files_from_the_command_line(name, tmp_path):
    files = {
        "inception": "/i.pt",
        "paper_inception": "/p.pth",
        "clip": "/clip",
        "timm": "/t.pth",
        "timm_model": "resnet18",
    }
    with initialize_config_dir(str(CONF), version_base=None):
        protocols = [instantiate(compose("cell", [f"protocol={name}"]).protocol, _convert_="all")]
        own = [
            f"protocol.{key}={value}"
            for key, value in files.items()
            if key in compose("cell", [f"protocol={name}"]).protocol
        ]
        node = OmegaConf.to_container(compose("cell", [f"protocol={name}", *own]).protocol, resolve=True)
    protocols.append(instantiate(OmegaConf.create(node), _convert_="all"))
    assert protocols[0].columns == protocols[1].columns
    read = []
    for protocol in protocols:
        observers = {type(observer).__name__: observer for observer in protocol.observers}
        networks = {
            **getattr(observers.get("CleanFeatures"), "networks", {}),
            "paper": getattr(observers.get("PaperFeatures"), "network", None),
        }
        read.append(
            {space: network.path for space, network in networks.items() if hasattr(network, "path")}
            | {"clip": observers["Clip"].folder}
        )
    own_files = {"clean": "/i.pt", "timm": "/t.pth", "paper": "/p.pth", "clip": "/clip"}
    assert read[1] == {space: own_files[space] for space in read[1]} and set(read[0].values()) == {None}
    assert len(read[1]) == {"clean": 3, "paper_pose": 2, "all": 4}[name]
    assert ("clean_FID" in protocols[0].columns) == (name != "paper_pose") and (
        "paper_FID" in protocols[0].columns
    ) == (name != "clean")
