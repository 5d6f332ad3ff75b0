"""Methods and backbones on the Hub: pull, push, pin, and what a stranger's repository may do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from posegen.backbones.pose_space import PoseSpace
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.cli import main
from posegen.errors import CellConflict, UserError
from posegen.io.hashes import file_hash
from posegen.pipeline import PoseGuidedPipeline
from posegen.report.formats import markdown, table_grid
from posegen.report.study import study_plan
from posegen.report.table import build_table
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.experiment import splits_of
from posegen.verbs import benchmark
from tests.hub_server import TOKEN, Hub, Repository, connect, serving
from tests.test_pipeline import person, seeded
from tests.tiny import configured

BACKBONE, VAE = "hub:owner/tiny", "hub:owner/vae"


def files_of(folder: Path, name: str = "") -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {name + file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def local(world: list[str]) -> dict[str, str]:
    """The tiny backbone on this disk."""
    return dict(word.removeprefix("backbone.").split("=") for word in world if word.startswith("backbone."))


@pytest.fixture(scope="module")
def hub(local: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the tiny backbone, and with what else is in such repositories."""
    with serving() as server, pytest.MonkeyPatch.context() as patches:
        connect(patches, server, tmp_path_factory.mktemp("hub"))
        patches.setattr(time, "sleep", lambda _: None)
        patches.setenv("HF_TOKEN", TOKEN)
        weights = (Path(local["path"]) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        duplicates = {f"unet/diffusion_pytorch_model.{end}": weights for end in ("fp16.safetensors", "bin")}
        server.repositories["owner/tiny"] = Repository()
        server.repositories["owner/tiny"].commit({**files_of(Path(local["path"])), **duplicates, "big.ckpt": weights})
        server.repositories["owner/vae"] = Repository()
        server.repositories["owner/vae"].commit(files_of(Path(local["autoencoder"])))
        yield server


@pytest.fixture(autouse=True)
def forgetful(hub: Hub) -> None:
    hub.asked.clear()


@pytest.fixture(scope="module")
def words(hub: Hub, world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that trains and judges one cell on the backbone of the hub."""
    given = [word for word in world if not word.startswith(("backbone.", "budget.steps"))]
    places = [
        f"backbone.path={BACKBONE}",
        f"backbone.autoencoder={VAE}",
        f"paths.output={tmp_path_factory.mktemp('out')}",
    ]
    return [*given, *places, "budget.steps=2", "adapter=t2i_adapter", "study=s", "seed=0"]


def finished(words: list[str]) -> bool:
    """Trains, samples and judges the cell, as far as that is not done."""
    with configured("benchmark", *words) as cfg:
        return benchmark.main(cfg) == "finished"


@pytest.fixture(scope="module")
def cell(words: list[str]) -> Path:
    assert finished(words)
    out = next(Path(word.partition("=")[2]) for word in words if word.startswith("paths.output="))
    return next(out.glob("s/t2i_adapter/*/seed0"))


def images(pipe: PoseGuidedPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a person", person(), num_inference_steps=2, generator=seeded(), output_type="np").images


def loaded(name: Any, **settings: Any) -> PoseGuidedPipeline:
    return PoseGuidedPipeline.from_pretrained(name, **settings)


def test_a_cell_records_the_commits_that_it_read(cell: Path, hub: Hub) -> None:
    commits = {text: hub.repositories[text.removeprefix("hub:")].branches["main"] for text in (BACKBONE, VAE)}
    assert json.loads((cell.parents[2] / "hub.json").read_text()) == commits
    status = json.loads((cell / "status.json").read_text())
    assert status["hub"] == commits and status["state"] == "finished"
    assert status["identity"]["backbone"]["path"] == BACKBONE  # as the configuration says it
    about = json.loads((cell / "method" / "posegen.json").read_text())
    pinned = {"path": f"{BACKBONE}@{commits[BACKBONE]}", "autoencoder": f"{VAE}@{commits[VAE]}"}
    assert about["backbone"]["hub"] == pinned


def test_the_same_command_reads_the_same_commit_or_says_that_it_differs(cell: Path, words: list[str], hub: Hub) -> None:
    record, repository = cell.parents[2] / "hub.json", hub.repositories["owner/tiny"]
    before = json.loads(record.read_text())
    moved = repository.commit({**repository.files, "unet/config.json": b"no longer json"})
    (cell / "records.csv").unlink()
    (cell / "samples" / "000000.png").unlink()
    assert finished(words) and (cell / "records.csv").is_file()  # sampled with the weights from then
    with configured("benchmark", *words) as cfg:
        again = Cell.of(cfg, Components(cfg).content(*splits_of(cfg)))
    again.check()
    record.write_text(json.dumps({**before, BACKBONE: moved}))
    with pytest.raises(CellConflict) as caught:
        again.check()
    assert f"was computed with {BACKBONE} at commit {before[BACKBONE]}, and {record} names {moved}" in str(caught.value)
    record.write_text(json.dumps(before))  # as the message says
    again.check()
    record.unlink()  # then the cell's own record counts
    with configured("benchmark", *words) as cfg:
        assert Components(cfg).backbone.weights.hub["path"] == f"{BACKBONE}@{before[BACKBONE]}"
    repository.branches["main"] = before[BACKBONE]


def test_a_cell_without_its_backbone_says_so_in_a_sentence(cell: Path, words: list[str], hub: Hub) -> None:
    missing = [*words, "backbone.path=hub:owner/none", "study=none"]
    assert not finished(missing)
    (status,) = cell.parents[3].glob("none/*/*/seed0/status.json")
    assert json.loads(status.read_text())["reason"].startswith("there is no repository owner/none at ")


def test_the_pipeline_of_a_cell_knows_its_backbone(cell: Path, local: dict[str, str]) -> None:
    assert np.array_equal(images(loaded(cell)), images(loaded(cell, backbone=local)))


def test_only_the_weights_that_are_read_are_fetched(hub: Hub, tmp_path: Path, cell: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        loaded(cell)
    weights = sorted(name for name in hub.fetched() if "config" not in name and not name.startswith("tokenizer"))
    assert weights == [
        "diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_a_published_cell_comes_back_the_same(cell: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", f"checkpoint={cell}", "repo=me/poses", "private=true", "message=First"]) == 0
    repository = hub.repositories["me/poses"]
    commit = repository.branches["main"]
    said = capsys.readouterr()
    assert f"published {cell}: {hub.url}/me/poses/commit/{commit}" in said.out and "HTTP" not in said.err
    assert repository.private and not any(name.startswith(("base/", "backbone/")) for name in repository.files)
    pulled = loaded("me/poses")
    assert np.array_equal(images(pulled), images(loaded(cell)))
    assert pulled.record["origin"] == f"hub:me/poses@{commit}" and pulled.record["training"]["steps"] == 2
    assert pulled.backbone.weights.hub["path"].startswith(f"{BACKBONE}@")


def test_the_card_says_what_it_is_and_its_hashes_are_right(cell: Path, hub: Hub, tmp_path: Path) -> None:
    assert main(["publish", f"checkpoint={cell}", "repo=me/card"]) == 0
    files = hub.repositories["me/card"].files
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "posegen" and card.data.base_model == "owner/tiny"
    assert card.data.license == "other" and card.data.pipeline_tag == "text-to-image" and "posegen" in card.data.tags
    text = card.text
    assert "T2I-Adapter: Learning Adapters" in text and "arXiv:2302.08453" in text
    assert "https://github.com/TencentARC/T2I-Adapter" in text and "- steps: 2" in text and "- seed: 0" in text
    assert "- learning rate: 0.003" in text and "- precision: " in text and "- data: mannequin" in text
    table = markdown(table_grid(build_table(cell.parents[2], plan=study_plan(cell.parents[2]))))
    assert table.splitlines()[2].startswith("| t2i_adapter | ") and table in text and "bootstrap intervals" in text
    (weights,) = [name for name in files if name.endswith(".safetensors")]
    (tmp_path / "weights").write_bytes(files[weights])
    assert f"| `{weights}` | {len(files[weights])} | `{file_hash(tmp_path / 'weights')}` |" in text
    assert "posegen records no licence of the official program" in text and 'from_pretrained("me/card")' in text
    assert "[owner/tiny]" in text and json.loads((cell / "status.json").read_text())["hub"][BACKBONE] in text


def test_a_pipeline_with_a_backbone_of_this_disk_is_published_whole(
    cell: Path, hub: Hub, local: dict[str, str], tmp_path: Path
) -> None:
    pipe = loaded(cell, backbone=local)
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/whole", commit_message="All of it")
    files = hub.repositories["me/whole"].files
    assert "base/unet/diffusion_pytorch_model.safetensors" in files
    assert np.array_equal(images(loaded("me/whole")), images(pipe))
    hub.asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        loaded("hub:me/whole", backbone=local)
    assert not any(name.startswith("base/") for name in hub.fetched())  # who brings a backbone needs no other
    assert "Not judged here" in files["README.md"].decode()


def test_a_second_push_replaces_the_first_and_keeps_what_people_wrote(
    cell: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, repository = loaded(cell), Repository()
    hub.repositories["me/twice"] = repository
    repository.commit(
        {"README.md": b"# By hand", "notes.md": b"Mine", "adapter.safetensors": b"old", "base/unet/old.bin": b"old"}
    )
    pipe.push_to_hub("me/twice")
    assert "was not written by posegen; it stays" in capsys.readouterr().out
    assert repository.files["README.md"] == b"# By hand" and repository.files["notes.md"] == b"Mine"
    assert not {"adapter.safetensors", "base/unet/old.bin"} & repository.files.keys()
    assert np.array_equal(images(loaded("me/twice")), images(pipe))
    first = repository.branches["main"]
    assert pipe.push_to_hub("me/twice", revision="v2", subfolder="inner").oid == repository.branches["v2"]
    assert repository.branches["main"] == first
    assert np.array_equal(images(loaded("me/twice", revision="v2", subfolder="inner")), images(pipe))
    assert pipe.push_to_hub("me/twice", create_pr=True).pr_url and repository.branches["main"] == first


def test_pickles_are_not_published(cell: Path, hub: Hub, local: dict[str, str], tmp_path: Path) -> None:
    for name, data in files_of(Path(local["path"])).items():
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(data)
    weights = tmp_path / "old" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    old = {"path": str(tmp_path / "old"), "autoencoder": local["autoencoder"]}
    pipe = loaded(cell, backbone=local)
    pipe.backbone._source = tuple(map(Path, old.values()))  # as if it had been read from there
    with pytest.warns(UserWarning, match="is not uploaded: its weights are pickles"):
        pipe.push_to_hub("me/pickles")
    assert not any(name.startswith("base/") for name in hub.repositories["me/pickles"].files)
    with pytest.raises(UserError, match="was trained on backbone mannequin-v1"):
        loaded("me/pickles")  # its id is that of a shipped one
    assert np.array_equal(images(loaded("me/pickles", backbone=local)), images(pipe))


def test_a_repository_that_is_none_of_posegens_is_refused_before_anything_is_fetched(hub: Hub) -> None:
    with pytest.raises(
        UserError, match="has none of posegen.json; nothing was fetched. Expected what posegen publish uploads"
    ):
        loaded("owner/tiny")
    assert hub.fetched() == []
    hub.repositories["owner/evil"] = Repository()
    about = {"format": 1, "class": "os.system", "kwargs": {}, "backbone": {"id": "x", "sha256": "0"}}
    hub.repositories["owner/evil"].commit(
        {"posegen.json": json.dumps(about).encode(), "adapter.safetensors": b"0" * 99}
    )
    with pytest.raises(UserError, match="names the class os.system, which is no adapter; nothing was run"):
        loaded("owner/evil")
    assert hub.fetched() == ["posegen.json"]


def test_a_folder_wins_and_what_is_neither_says_so(
    cell: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "poses").symlink_to(cell)
    loaded("me/poses", local_files_only=True)
    assert not any("me/poses" in line for line in hub.asked)
    with pytest.raises(
        UserError, match="outputs/nothing is no folder here, and as a repository: there is no repository"
    ):
        loaded("outputs/nothing")
    with pytest.raises(UserError, match="nothing is no method folder"):
        loaded("nothing")


def test_who_may_not_publish_is_told(cell: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = loaded(cell)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="me/new: the Hub refuses this .401.*log in with hf auth login"):
        pipe.push_to_hub("me/new")
    assert "me/new" not in hub.repositories


def test_nothing_is_published_offline(cell: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = loaded(cell)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="me/new: HF_HUB_OFFLINE=1 forbids to reach the Hub; unset it"):
        pipe.push_to_hub("me/new")


def test_official_weights_are_converted_from_the_hub(
    hub: Hub, local: dict[str, str], cell: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["official/t2i"] = Repository()
    commit = hub.repositories["official/t2i"].commit(
        {f"models/{name}": data for name, data in files_of(cell / "method" / "t2i_adapter").items()}
    )
    places = [f"backbone.{name}={path}" for name, path in local.items()]
    words = ["adapter=t2i_adapter", "backbone=mannequin", *places, f"target={tmp_path / 'converted'}"]
    assert main(["convert", *words, "source=hub:official/t2i/models"]) == 0
    about = json.loads((tmp_path / "converted" / "posegen.json").read_text())
    assert about["converted"]["hub"] == f"hub:official/t2i/models@{commit}"
    pipe = loaded(tmp_path / "converted", backbone=local)
    pipe.push_to_hub("me/converted")
    card = hub.repositories["me/converted"].files["README.md"].decode()
    assert f"SHA-256 `{about['converted']['sha256']}`" in card and loaded("me/converted").record == {
        "converted": about["converted"],
        "origin": f"hub:me/converted@{hub.repositories['me/converted'].branches['main']}",
    }


def test_a_backbone_of_poses_and_a_text_reader_fetch_what_they_read(hub: Hub, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        StableDiffusion.text_reader(BACKBONE)
        assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
        poses = PoseSpace(BACKBONE, grid=16)
    weights = [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert weights == ["text_encoder/model.safetensors"]
    assert poses.weights.id == "tiny" and poses.weights.hub["path"].startswith(f"{BACKBONE}@")


@pytest.mark.slow
def test_the_command_line_reads_the_endpoint_from_its_variable(hub: Hub, local: dict[str, str], tmp_path: Path) -> None:
    """In a process of its own, with huggingface_hub as it is."""
    words = ["adapter=t2i_adapter", "backbone=mannequin", f"backbone.path={BACKBONE}", f"backbone.autoencoder={VAE}"]
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    words += ["source=null", f"target={tmp_path / 'start'}"]
    code = "import sys; from posegen.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", *words],
        env={**os.environ, **variables, "TRANSFORMERS_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "unet/diffusion_pytorch_model.safetensors" in hub.fetched()
    assert json.loads((tmp_path / "start" / "posegen.json").read_text())["backbone"]["hub"]["path"].startswith(BACKBONE)
