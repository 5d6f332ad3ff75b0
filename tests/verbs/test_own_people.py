"""A person from the user's pictures: in the pipeline and in ``posegen sample``, one or several, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from posegen.cli import main
from posegen.io.atomic import read_json
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import DRAWING_STYLES
from posegen.runner.components import Components
from posegen.runner.images import picture, read_png, write_png
from posegen.runner.method_folder import save_method
from posegen.runner.user_requests.prompts import guides_from
from tests.runner.test_prompts import pose_file
from tests.test_pipeline import images, loaded, person
from tests.test_pipeline import trained as changed
from tests.tiny import configured


def picture_of(seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def method(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method folder of DNAF whose every weight counts."""
    folder = tmp_path_factory.mktemp("methods") / "dnaf"
    with configured("train", *world, "data=mannequin_pairs", "adapter=dnaf") as cfg:
        components = changed(Components(cfg))
        save_method(folder, components.adapter, components.backbone, sampler={"steps": 2, "guidance": 2.0})
    return folder


@pytest.fixture(scope="module")
def base(world: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("backbone.").split("=") for word in world if word.startswith("backbone."))


@pytest.fixture(scope="module")
def pipe(method: Path, base: dict[str, str]) -> PoseGuidedPipeline:
    return loaded(method, base)


def test_a_picture_is_the_same_from_a_file_from_memory_and_in_a_list(pipe: PoseGuidedPipeline, tmp_path: Path) -> None:
    array = picture_of(0)
    write_png(tmp_path / "a.png", array)
    made = [
        images(pipe, "photo", person(), source=source)
        for source in (array, tmp_path / "a.png", Image.fromarray(array), [array], [[array]])
    ]
    assert all(np.array_equal(each, made[0]) for each in made[1:])
    assert not np.allclose(made[0], images(pipe, "photo", person(), source=picture_of(1)), atol=1e-3)


def test_several_pictures_count_together_and_a_list_of_lists_has_one_per_prompt(pipe: PoseGuidedPipeline) -> None:
    a, b = picture_of(0), picture_of(1, (48, 80))
    both, turned = (images(pipe, "photo", person(), source=source) for source in ([a, b], [b, a]))
    assert np.allclose(both, turned, atol=1e-4) and not np.allclose(
        both, images(pipe, "photo", person(), source=a), atol=1e-3
    )
    each = images(pipe, ["photo", "photo"], person(), source=[[a], [b]])
    assert np.allclose(each[0], images(pipe, ["photo", "photo"], person(), source=a)[0], atol=1e-4)
    assert np.allclose(each[1], images(pipe, ["photo", "photo"], person(), source=b)[1], atol=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "DNAF takes a person from a picture, and there is none; add source=PICTURE"),
        ("nowhere.png", "source=nowhere.png is no picture that can be read"),
        (np.zeros((64, 64, 5), np.uint8), r"source has the shape \[64, 64, 5\]"),
        ([], "holds no picture"),
        ([[picture_of(0)], [picture_of(0)]], "2? ?.*pictures for 1 images"),
    ],
)
def test_what_is_no_picture_is_refused(pipe: PoseGuidedPipeline, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe("photo", person(), source=source)


def test_a_method_without_a_source_refuses_one(world: list[str], base: dict[str, str], tmp_path: Path) -> None:
    with configured("train", *world, "adapter=controlnet") as cfg:
        components = Components(cfg)
        save_method(tmp_path / "method", components.adapter, components.backbone)
    with pytest.raises(ValueError, match="ControlNet reads no picture of a person"):
        loaded(tmp_path / "method", base)("photo", person(), source=picture_of(0))


def sampled(method: Path, world: list[str], out: Path, *words: str) -> int:
    pose = pose_file(out) if not (out / "pose.json").exists() else out / "pose.json"
    own = [
        "adapter=dnaf",
        f"checkpoint={method}",
        "prompt=a person",
        f"poses={pose}",
        f"paths.output={out / 'outputs'}",
    ]
    return main(["sample", *world, *own, *words])


def test_prompts_with_a_person_from_pictures(method: Path, world: list[str], tmp_path: Path) -> None:
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    write_png(a, picture_of(0)), write_png(b, picture_of(1, (30, 40)))
    made = {}
    for name, source in {"one": f"source={a}", "listed": f"source=[{a}]", "two": f"source=[{a},{b}]"}.items():
        assert sampled(method, world, tmp_path, source, f"study={name}", "images=2") == 0
        [status] = (tmp_path / "outputs" / name).rglob("status.json")
        made[name] = [read_png(picture(status.parent / "samples", i)) for i in range(2)]
        assert len(read_json(status)["identity"]["content"]["test"]) == 1 + (name == "two")
    assert np.array_equal(made["one"], made["listed"]) and not np.array_equal(made["one"], made["two"])
    write_png(a, picture_of(2))
    assert sampled(method, world, tmp_path, f"source={a}", "study=one", "images=2") == 0
    assert len(list((tmp_path / "outputs" / "one").rglob("status.json"))) == 2, "another picture is another result"


def test_a_drawn_skeleton_is_a_pose_on_the_command_line(method: Path, world: list[str], tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture_of(0)), write_png(tmp_path / "black.png", np.zeros((64, 64, 3), np.uint8))
    [people] = [guide.people for guide in guides_from(OmegaConf.create(), str(pose_file(tmp_path)), (64, 64))]
    write_png(tmp_path / "skeleton.png", DRAWING_STYLES["openpose"](np.array(people), (64, 64)))
    made, contents = {}, {}
    for study in ("pose.json", "skeleton.png", "black.png"):
        words = (f"study={study}", f"poses={tmp_path / study}", f"source={tmp_path / 'a.png'}")
        assert sampled(method, world, tmp_path, *words) == 0
        [status] = (tmp_path / "outputs" / study).rglob("status.json")
        made[study] = read_png(picture(status.parent / "samples", 0)).astype(int)
        contents[study] = read_json(status)["identity"]["content"]["test"]
    assert np.abs(made["skeleton.png"] - made["pose.json"]).max() <= 1, "a drawing in the method's style is its pose"
    assert np.abs(made["black.png"] - made["pose.json"]).max() > 10
    assert contents["skeleton.png"] != contents["black.png"], "the content of a drawing counts"
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,poses,source\na person,skeleton.png,a.png\nsomebody,black.png,black.png\n")
    assert sampled(method, world, tmp_path, "study=file", "prompt=null", "poses=null", f"prompts={table}") == 0
    [status] = (tmp_path / "outputs" / "file").rglob("status.json")
    first, second = (read_png(picture(status.parent / "samples", i)).astype(int) for i in (0, 1))
    assert np.abs(first - made["skeleton.png"]).max() <= 1 and np.abs(second - first).max() > 10


def test_what_a_prompt_lacks_is_said(
    method: Path, world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in {
        (): "adapter=dnaf takes a person from a picture; set source=FILE",
        ("source=nowhere.png",): "nowhere.png",
        ("source=[nowhere.png]",): "source[0]=nowhere.png is no picture that can be read",
        (
            "prompt=null",
            "poses=null",
            "data=mannequin_pairs",
            f"source={pose_file(tmp_path)}",
        ): "source gives a person to prompts, and there is no prompt",
        ("adapter=controlnet", f"source={pose_file(tmp_path)}"): "adapter=controlnet reads no picture of a person",
    }.items():
        assert sampled(method, world, tmp_path, *words) != 0
        assert message in capsys.readouterr().err
