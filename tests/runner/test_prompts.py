"""Prompts in the place of a test split: with poses from a file, from a prior, or without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from posegen.cli import main
from posegen.data.mannequin.dataset import MannequinData
from posegen.io.atomic import read_json
from posegen.poses.reading import read_poses
from posegen.runner.images import write_png
from posegen.runner.user_requests.guides import default_estimator, people_in_picture
from posegen.runner.user_requests.prompts import guides_from
from tests.tiny import making

PROMPT = "prompt=a photo of a person dancing"


@pytest.fixture
def trained(world: list[str], tmp_path: Path) -> list[str]:
    """Overrides for sampling with a trained ControlNet."""
    own = [*world, f"paths.output={tmp_path / 'outputs'}"]
    assert main(["train", *own, "budget.steps=1"]) == 0
    return own


def cell(tmp_path: Path, output: str = "outputs", study: str = "sample") -> Path:
    (status,) = (tmp_path / output / study).rglob("status.json")
    return status.parent


def pose_file(folder: Path) -> Path:
    dice = np.random.default_rng(0)
    person = np.concatenate([dice.uniform(5, 60, (17, 2)), np.full((17, 1), 2.0)], 1)
    file = folder / "pose.json"
    file.write_text(json.dumps([{"image_id": 1, "keypoints": person.flatten().tolist()}]))
    return file


def test_a_prompt_with_the_poses_of_a_file(trained: list[str], tmp_path: Path) -> None:
    words = ["sample", *trained, PROMPT, f"poses={pose_file(tmp_path)}", "images=3"]
    assert main(words) == 0
    folder = cell(tmp_path)
    made = {name: sorted(p.name for p in (folder / name).glob("*.png")) for name in ("samples", "judged")}
    assert len(made["samples"]) == 3 and made["judged"] == made["samples"]
    pixels = {p.read_bytes() for p in (folder / "samples").glob("*.png")}
    assert len(pixels) == 3, "every image of a prompt starts from its own noise"
    test = read_json(folder / "status.json")["identity"]["data"]["test"]
    assert test["prompts"] == ["a photo of a person dancing"] * 3 and np.shape(test["people"]) == (3, 1, 17, 3)


def test_hands_of_a_file_are_drawn_by_a_method_that_was_trained_with_them(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "whole.json"
    person = np.concatenate([np.random.default_rng(0).uniform(5, 60, (133, 2)), np.full((133, 1), 2.0)], 1)
    file.write_text(json.dumps([{"image_id": 1, "keypoints": person.flatten().tolist()}]))
    own = [*world, f"paths.output={tmp_path / 'outputs'}"]
    assert main(["train", *own, "budget.steps=1", "adapter.style=dwpose", "adapter.occlusion=faint"]) == 0
    trained = cell(tmp_path, study="train")
    identity = read_json(trained / "status.json")["identity"]["adapter"]
    assert identity["occlusion"] == "faint" and "parts" not in identity
    words = ["sample", *own, PROMPT, f"checkpoint={trained}"]
    assert main([*words, f"poses={file}", "study=hands"]) == 0
    test = read_json(cell(tmp_path, study="hands") / "status.json")["identity"]["data"]["test"]
    assert np.shape(test["people"]) == (1, 1, 133, 3)
    capsys.readouterr()
    short = tmp_path / "sixteen.json"
    short.write_text(json.dumps([{"image_id": 1, "keypoints": person[:16].flatten().tolist()}]))
    assert main([*words, f"poses={short}"]) != 0
    assert "add topology=mpii16 if they are" in capsys.readouterr().err
    assert main([*words, f"poses={short}", "topology=mpii16"]) == 0
    assert "MPII-16 is read as COCO-WholeBody-133, without pelvis, thorax" in capsys.readouterr().err


def test_a_method_that_draws_a_pose_needs_one(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *trained, PROMPT]) != 0
    assert "set poses=FILE (COCO or OpenPose json, or a picture), or prior=gunet" in capsys.readouterr().err
    assert main(["sample", *trained, f"poses={pose_file(tmp_path)}"]) != 0
    assert "there is no prompt" in capsys.readouterr().err
    assert main(["sample", *trained, "adapter=none", PROMPT]) == 0


def test_a_file_for_another_number_of_prompts_is_refused(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pose_file(tmp_path)
    (one,) = json.loads(file.read_text())
    file.write_text(json.dumps([one, {**one, "image_id": 2}]))
    assert main(["sample", *trained, PROMPT, f"poses={file}", "images=3"]) != 0
    assert "holds 2 images and there are 3 prompts" in capsys.readouterr().err


def test_images_and_prompts_are_paired_in_the_order_of_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pose_file(tmp_path)
    [row] = json.loads(file.read_text())
    low = np.reshape(row["keypoints"], (17, 3))
    high = low + np.array([3, 0, 0])
    rows = [{"image_id": i, "keypoints": points.ravel().tolist()} for i, points in (("3", high), (1, low))]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in (1, 2, 3)]
    file.write_text(json.dumps({"images": images, "annotations": [*rows, {"image_id": 2, "bbox": [1, 2, 3, 4]}]}))
    first, nobody, last = (guide.people for guide in guides_from(OmegaConf.create(), str(file), (64, 64)))
    assert np.allclose(first, [low]) and nobody == [] and np.allclose(last, [high], atol=1e-4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{file}: 1 annotations without joints of a person are passed over"
    far = low * [1, 9, 1]
    file.write_text(json.dumps([{"keypoints": far.ravel().tolist()}]))
    guides_from(OmegaConf.create(), str(file), (64, 64))
    assert "joints lie on the canvas of 64 x 64 pixels: x is" in capsys.readouterr().err


def test_text_to_pose_to_image(
    trained: list[str], world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", *trained, PROMPT, "prior=gunet", "prior.sampler.steps=2", "prior.scale=0.5", "images=2"]
    assert main(words) != 0
    assert "no finished cell of adapter gunet" in capsys.readouterr().err
    prior = [word for word in making("pose", world) if not word.startswith("backbone.path")]
    assert main(["train", "adapter=gunet", *prior, f"paths.output={tmp_path / 'outputs'}", "budget.steps=1"]) == 0
    assert main(words) == 0
    people = np.array(read_json(cell(tmp_path) / "status.json")["identity"]["data"]["test"]["people"])
    assert people.shape == (2, 1, 17, 3) and not np.array_equal(people[0], people[1])
    seen = people[people[..., 2] > 0][:, :2]
    assert (seen > 13).all() and (seen < 51).all(), "a square of half the canvas, around its middle"


@pytest.fixture(scope="module")
def start(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for sampling with a ControlNet as training starts it."""
    target = tmp_path_factory.mktemp("start") / "method"
    backbone = [word for word in world if word.startswith("backbone")]
    assert main(["convert", "adapter=controlnet", *backbone, "source=null", f"target={target}"]) == 0
    return [*world, "adapter=controlnet", f"checkpoint={target}", "sampler.steps=1"]


def prompts_of(output: Path) -> dict[str, Path]:
    """The only prompt of each cell below a folder -> the cell."""
    files = list(output.rglob("status.json"))
    return {read_json(file)["identity"]["data"]["test"]["prompts"][0]: file.parent for file in files}


def test_prompts_are_sampled_as_they_are_typed_each_in_its_folder(start: list[str], tmp_path: Path) -> None:
    texts = ["best quality, it's (me): ${x} [4k]", "2024", "a man/woman", "a boy/woman"]
    words = ["sample", *start, f"paths.output={tmp_path / 'out'}", f"poses={pose_file(tmp_path)}"]
    for text in texts:
        assert main([*words, f"prompt={text}"]) == 0
    cells = prompts_of(tmp_path / "out")
    assert cells.keys() == set(texts)
    assert (cells[texts[0]] / "samples" / "prompts.txt").read_text() == f"{texts[0]}\n"


def test_a_pose_that_is_edited_is_another_result(start: list[str], tmp_path: Path) -> None:
    file = pose_file(tmp_path)
    words = ["sample", *start, f"paths.output={tmp_path / 'out'}", f"poses={file}", "prompt=a dancer"]
    assert main(words) == 0
    rows = json.loads(file.read_text())
    rows[0]["keypoints"][0] += 5
    file.write_text(json.dumps(rows))
    assert main(words) == 0
    cells = [read_json(status)["identity"]["data"]["test"] for status in (tmp_path / "out").rglob("status.json")]
    first, second = (np.array(test["people"]) for test in cells)
    assert abs(first - second).max() == pytest.approx(5)


def test_poses_can_name_their_canvas(start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenPose writes pixels and no canvas: here of a person on 128 x 192 pixels."""
    dice = np.random.default_rng(1)
    person = np.concatenate([dice.uniform(40, 120, (18, 2)), np.full((18, 1), 0.9)], 1)
    file = tmp_path / "frame.json"
    file.write_text(json.dumps({"people": [{"pose_keypoints_2d": person.flatten().tolist()}]}))
    words = ["sample", *start, f"paths.output={tmp_path / 'out'}", f"poses={file}", "prompt=a dancer"]
    assert main([*words, "canvas=[192,128]"]) == 0
    people = read_json(*(tmp_path / "out").rglob("status.json"))["identity"]["data"]["test"]["people"]
    assert (np.array(people)[..., :2] < 64).all() and np.array(people)[..., 0].max() > 50
    for canvas in ("5", "[0,1]", "[a,b]", "[1,2,3]"):
        assert main([*words, f"canvas={canvas}"]) == 1
        told = capsys.readouterr().err
        assert "canvas" in told and ": expected " in told and "Traceback" not in told
    sized = {
        "images": [{"id": 1, "height": 64, "width": 64}],
        "annotations": json.loads(pose_file(tmp_path).read_text()),
    }
    file.write_text(json.dumps(sized))
    assert main([*words, "canvas=[192,128]"]) == 1
    assert "names its canvas, [64, 64] (height, width); leave canvas out" in capsys.readouterr().err


def test_what_is_taken_and_what_is_cut_is_said_before_sampling(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", *start, f"paths.output={tmp_path / 'out'}", f"poses={pose_file(tmp_path)}", "images=2"]
    assert main([*words, f"prompt={' '.join(f'word{i}' for i in range(150))}"]) == 0
    told = capsys.readouterr().err
    assert "controlnet with the weights of " in told and "; 2 images to make in " in told
    assert told.count("tokens that the text tower reads") == 1 and "2 of 2 prompts are longer than the " in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=5"], "checkpoint=5: no such file or folder"),
        (["checkpoint=/"], "/ is no method folder"),
        (["checkpoint=[a,b]"], "checkpoint=['a', 'b']: expected a string or null"),
        (["prompt=true", "poses=[a,b]"], "poses=['a', 'b']: expected a string or null"),
        (["prompt=a", "poses=5"], "5: no such file"),
        (["prompt=[]"], "prompt is an empty list"),
        (["prompt=a", "images=0"], "images=0: expected an integer from 1"),
        (["study=null"], "study=None: expected a name"),
        (["study=../x"], "study=../x leads out of"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_value_of_another_kind_is_one_line(
    start: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", *start, *words]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_a_file_of_prompts_with_names_and_poses(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pose, out = pose_file(tmp_path), tmp_path / "out"
    [[person]] = [guide.people for guide in guides_from(OmegaConf.create(), str(pose), (64, 64))]
    table = tmp_path / "my prompts.csv"
    table.write_text(f'id,prompt,poses\ngreen,"a dancer, green",pose.json\nred,a boxer,"{json.dumps(person)}"\n')
    words = ["sample", *start, f"paths.output={out}"]
    assert main([*words, "study=named", f"prompts={table}", "images=2"]) == 0
    named = cell(tmp_path, "out", "named") / "named"
    assert sorted(path.name for path in named.iterdir()) == ["green_0.png", "green_1.png", "red_0.png", "red_1.png"]
    samples = cell(tmp_path, "out", "named") / "samples"
    assert (named / "red_0.png").read_bytes() == (samples / "000002.png").read_bytes()
    lines = (samples / "prompts.txt").read_text().splitlines()
    assert lines == ["a dancer, green", "a dancer, green", "a boxer", "a boxer"]

    plain = tmp_path / "prompts.txt"
    plain.write_text("a dancer\n\na boxer\n")
    assert main([*words, "study=listed", "prompt=[a dancer,a boxer]", f"poses={pose}"]) == 0
    assert main([*words, "study=lines", f"prompts={plain}", f"poses={pose}"]) == 0
    listed, read = (cell(tmp_path, "out", study) / "samples" / "000001.png" for study in ("listed", "lines"))
    assert listed.read_bytes() == read.read_bytes(), "a file of prompts and a list of them are the same"

    table.write_text("prompt,poses\na dancer,pose.json\na boxer,\n")
    for more, message in {
        (f"prompts={plain}", "prompt=a dancer"): "prompt and prompts are both set",
        (f"prompts={plain}",): "adapter=controlnet draws a pose and the prompt brings none",
        (f"prompts={table}",): "my prompts.csv, line 3, brings none",
        (f"prompts={table}", f"poses={pose}"): "my prompts.csv (line 2) both give poses; leave one of them out",
        (f"prompts={tmp_path}",): "is a folder",
        (f"prompts={plain}", f"poses={pose}", f"source={pose}"): "reads no picture of a person",
    }.items():
        capsys.readouterr()
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err, more


def test_a_photograph_is_a_pose_on_the_command_line_as_in_python(
    start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = MannequinData(split="test", count=1, size=64)[0].image
    assert photograph is not None
    write_png(tmp_path / "photograph.png", photograph)
    usual = [word for word in start if not word.startswith("estimator")]
    words = ["sample", *usual, f"paths.output={tmp_path / 'out'}", "prompt=x", f"poses={tmp_path / 'photograph.png'}"]
    assert main(words) == 0
    identity = read_json(cell(tmp_path, "out") / "status.json")["identity"]
    [guide] = read_poses(str(tmp_path / "photograph.png"))
    found = people_in_picture(guide, (64, 64), default_estimator("poses", "mannequin"))
    assert np.allclose(identity["data"]["test"]["people"], [found], atol=1e-3)
    assert main([*words, "backbone.recipe=published"]) == 1
    assert "needs something that reads its poses: estimator=..." in capsys.readouterr().err


def test_long_prompts_are_read_in_chunks(start: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    pose, out = pose_file(tmp_path), tmp_path / "out"
    made = {}
    for study, prompt, way in (("cut", text, "cut"), ("all", text, "chunk"), ("other", f"{text} red", "chunk")):
        words = ["sample", *start, f"paths.output={out}", f"poses={pose}", f"study={study}"]
        assert main([*words, f"prompt={prompt}", f"long_prompts={way}"]) == 0
        made[study] = (cell(tmp_path, "out", study) / "samples" / "000000.png").read_bytes()
        told = capsys.readouterr().err
        assert ("; long_prompts=chunk reads prompts whole" in told) == (way == "cut")
    assert len(set(made.values())) == 3, "what would be cut counts"
    identities = {s: read_json(cell(tmp_path, "out", s) / "status.json")["identity"]["sampler"] for s in ("cut", "all")}
    assert "long_prompts" not in identities["cut"] and identities["all"]["long_prompts"] == "chunk"
