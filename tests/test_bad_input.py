"""Every kind of bad input ends in one clear error with the fix and a non-zero exit code; nothing is lost, nothing is
executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from posegen.cli import main

THEIRS = '''
import json
from pathlib import Path

import cv2
import numpy as np

from posegen.adapters.base import Adapter, Paper
from posegen.data.base import PoseData, Sample


class Folder(PoseData):
    """Images of a folder with their poses in one json file."""

    name = "folder"

    def __init__(self, folder: str, split: str = "test"):
        self.folder, self.split, self.size = Path(folder), split, (64, 64)
        self.people = json.loads((self.folder / "poses.json").read_text())

    def __len__(self):
        return len(self.people)

    def __getitem__(self, index):
        path = self.folder / f"{index}.png"
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path} is not a readable picture; replace it or take it out of poses.json")
        return Sample(f"folder/{index}", "photo", np.array(self.people[index], np.float32), np.array([400.0]), image[..., ::-1].copy(), self.size)

    @property
    def identity(self):
        return {"folder": str(self.folder)}


class PoseMaker(Adapter):
    """Generates poses, not images."""

    needs = frozenset()
    sample = "pose"
    paper = Paper("poses", "")
    encode = inject = None
'''


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A third party's package with a data set and an adapter, on the path."""
    package = tmp_path_factory.mktemp("theirs")
    (package / "bad_input_package.py").write_text(THEIRS)
    for group in ("adapter", "data"):
        (package / "conf" / group).mkdir(parents=True)
    (package / "conf/adapter/pose_maker.yaml").write_text("_target_: bad_input_package.PoseMaker\n")
    split = "{_target_: bad_input_package.Folder, folder: '???', split: SPLIT}"
    (package / "conf/data/theirs.yaml").write_text(
        "\n".join(f"{s}: {split.replace('SPLIT', s)}" for s in ("train", "validation", "test")) + "\n"
    )
    sys.path.insert(0, str(package))
    yield package
    sys.path.remove(str(package))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four images of noise with a pose each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), dice.integers(0, 255, (64, 64, 3), np.uint8))
    (folder / "poses.json").write_text(
        json.dumps([np.concatenate([dice.uniform(5, 60, (1, 17, 2)), np.full((1, 17, 1), 2.0)], -1).tolist()] * 4)
    )
    return folder


def options(world: list[str], *more: str) -> list[str]:
    return [*world, *more]


def on_pictures(world: list[str], theirs: Path, folder: Path, output: Path) -> list[str]:
    """A method's sampling on the third party's data set."""
    own = [o for o in world if not o.startswith("data.")]
    data = [
        "data=theirs",
        f"hydra.searchpath=[file://{theirs / 'conf'}]",
        *(f"data.{s}.folder={folder}" for s in ("train", "validation", "test")),
    ]
    return ["evaluate", *own, *data, f"paths.output={output}"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *expected: str) -> str:
    """The command's one error, which has all of ``expected`` in it."""
    assert main(words) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for text in expected:
        assert text in error, error
    return error


@pytest.fixture(scope="module")
def method(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ControlNet's method folder."""
    output = tmp_path_factory.mktemp("trained")
    assert main(["train", *world, "budget.steps=1", f"paths.output={output}"]) == 0
    (found,) = output.rglob("method")
    return found


def test_a_misspelt_key(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["train", *world, "adapter.strenght=2", f"paths.output={tmp_path}"], capsys, "strenght", "strength")


def test_a_misspelt_option(world: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(["train", *world, "adapter=controlnt"], capsys, "controlnt", "controlnet")


def test_a_wrong_type(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        ["train", *world, "adapter.strength=strong", f"paths.output={tmp_path}"], capsys, "adapter.strength", "strong"
    )
    assert not list(tmp_path.rglob("status.json"))


def test_a_missing_data_folder(
    world: list[str], theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(
        [*on_pictures(world, theirs, tmp_path / "nowhere", tmp_path), "adapter=none"],
        capsys,
        "data.test.folder",
        "nowhere",
    )


def test_a_corrupt_image(
    world: list[str], theirs: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images before it are kept: what was sampled is not sampled again once the file is replaced."""
    words = [*on_pictures(world, theirs, pictures, tmp_path / "out"), "adapter=reference/real", "sampler.batch=1"]
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[:100])
    refused(words, capsys, "3.png", "replace it")
    assert len(list((tmp_path / "out").rglob("00000?.png"))) == 3
    (pictures / "3.png").write_bytes(whole)
    assert main(words) == 0


def test_nan_keypoints(
    world: list[str],
    theirs: Path,
    pictures: Path,
    method: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poses = json.loads((pictures / "poses.json").read_text())
    poses[2][0][5][0] = float("nan")
    (pictures / "poses.json").write_text(json.dumps(poses))
    words = [*on_pictures(world, theirs, pictures, tmp_path), "adapter=controlnet", f"checkpoint={method}"]
    refused(words, capsys, "folder/2", "person 0", "left_shoulder")


def test_truncated_weights(world: list[str], method: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(method, tmp_path / "copy")
    weights = "controlnet/diffusion_pytorch_model.safetensors"
    (copy / weights).write_bytes((method / weights).read_bytes()[:500])
    refused(["sample", *world, f"checkpoint={copy}", f"paths.output={tmp_path}"], capsys, weights, "damaged")


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {Malicious.target}",)


def test_a_checkpoint_that_would_run_code(world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Malicious.target = tmp_path / "executed"
    for name, write in {
        "zip.ckpt": torch.save,
        "plain.pth": lambda value, path: path.write_bytes(pickle.dumps(value)),
    }.items():
        write({"state_dict": {"x": torch.zeros(1)}, "callbacks": Malicious()}, tmp_path / name)
        own = [o for o in world if o.startswith("backbone.")]
        refused(
            ["convert", "adapter=controlnet", *own, f"source={tmp_path / name}", f"target={tmp_path / 'out'}"],
            capsys,
            name,
        )
    assert not Malicious.target.exists() and not (tmp_path / "out").exists()


def test_a_method_folder_of_a_foreign_class(
    world: list[str], method: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from posegen.errors import UserError
    from posegen.runner.method_folder import adapter_class

    copy = shutil.copytree(method, tmp_path / "copy")
    about = json.loads((copy / "posegen.json").read_text())
    (copy / "posegen.json").write_text(json.dumps({**about, "class": "os.system"}))
    refused(["sample", *world, f"checkpoint={copy}", f"paths.output={tmp_path}"], capsys, "os.system")
    with pytest.raises(UserError, match=r"os\.system.*no adapter"):
        adapter_class("os.system", copy)


def test_an_adapter_that_the_backbone_cannot_serve(
    world: list[str], theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        *world,
        "adapter=pose_maker",
        f"hydra.searchpath=[file://{theirs / 'conf'}]",
        f"paths.output={tmp_path}",
    ]
    refused(words, capsys, "PoseMaker", "pose", "backbone")


def test_a_cell_folder_of_another_identity(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *world, "budget.steps=1", f"paths.output={tmp_path}"]
    assert main(words) == 0
    (status,) = tmp_path.rglob("status.json")
    record = json.loads(status.read_text())
    record["identity"]["trainer"]["steps"] = 99
    status.write_text(json.dumps({**record, "hash": "another"}))
    before = {p: p.stat().st_mtime_ns for p in status.parent.rglob("*") if p.is_file()}
    refused(words, capsys, "budget.steps", "99", "study=")
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
