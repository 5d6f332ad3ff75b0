"""From what is asked for to pictures and scores, without a browser."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posegen.cli import main
from posegen.demo.first_benchmark import FirstBenchmark
from posegen.demo.html_fragments import best_scores, results_html
from posegen.demo.pose_editor import standing_pose, to_keypoints
from posegen.demo.session import DemoPicture, DemoRequest, DemoSession, Stopped, letterboxed
from posegen.errors import UserError
from posegen.metrics.base import Poses
from posegen.pipeline import PoseGuidedPipeline
from tests.tiny import configured, making
from tests.verbs.demo.conftest import PROMPT

LABEL = "controlnet · train, seed 0, 6 steps"
ASKED = DemoRequest(PROMPT, standing_pose(), [LABEL, "none"], seed=3, steps=2, guidance=3.0)


def test_finished_cells_are_found_and_others_are_not(studio: DemoSession) -> None:
    assert [method.label for method in studio.loaded.methods()] == [LABEL, "none"]


def test_pictures_are_the_pipelines_own(studio: DemoSession) -> None:
    steps: list[tuple[str, int, int]] = []
    made = list(studio.draw(ASKED, lambda method, done, total: steps.append((method.label, done, total))))
    assert [entry.label for entry in made] == [LABEL, "none"] and not any(entry.error for entry in made)
    assert steps == [(label, done, 2) for label in (LABEL, "none") for done in range(3)]
    folder = studio.loaded.methods()[0].folder
    assert folder is not None
    pipe = PoseGuidedPipeline.from_pretrained(folder)
    pose, noise = to_keypoints(standing_pose(), (64, 64)), torch.Generator().manual_seed(3)
    expected = pipe(
        PROMPT, pose, num_inference_steps=2, guidance_scale=3.0, generator=noise, height=64, width=64
    ).images[0]
    assert np.array_equal(made[0].pixels, np.array(expected))
    assert {"PCK@0.1", "OKS"} == made[0].scores.keys() and all(0 <= value <= 100 for value in made[0].scores.values())


def test_without_control_every_method_is_the_backbone_alone(studio: DemoSession) -> None:
    """Which holds only where they start from the same noise; and with more control the picture is another one."""
    folder = studio.loaded.methods()[0].folder
    assert folder is not None
    pictures = {}
    for control in (0.0, 1.0, 2.0):
        method, none = studio.draw(replace(ASKED, control=control))
        pictures[control] = method.pixels
        assert np.array_equal(method.pixels, none.pixels) == (control == 0), control  # type: ignore[arg-type]
    assert not np.array_equal(pictures[1.0], pictures[2.0])  # type: ignore[arg-type]


def test_a_method_that_fails_does_not_keep_the_others(world: list[str], outputs: Path, tmp_path: Path) -> None:
    (cell,) = (outputs / "train" / "controlnet").glob("*/seed0")
    for name in ("good", "bad"):
        shutil.copytree(cell, tmp_path / name / "seed0")
    next((tmp_path / "bad" / "seed0" / "method").rglob("*.safetensors")).write_bytes(b"damaged")
    with configured("demo", *world, f"checkpoints=[{tmp_path}/good/seed0,{tmp_path}/bad/seed0]") as cfg:
        studio = DemoSession(cfg)
        labels = [method.label for method in studio.loaded.methods()]
        assert len(set(labels)) == 3, "two cells of one name are told apart"
        made = list(studio.draw(replace(ASKED, labels=labels)))
    assert [entry.pixels is None for entry in made] == [False, True, False]
    assert "is damaged" in made[1].error


def test_a_folder_without_a_backbone_takes_the_configured_one(world: list[str], outputs: Path, tmp_path: Path) -> None:
    (cell,) = (outputs / "train" / "controlnet").glob("*/seed0")
    shutil.copytree(cell / "method", tmp_path / "mine")
    with configured("demo", *world, f"checkpoints={tmp_path / 'mine'}") as cfg:
        made = list(DemoSession(cfg).draw(replace(ASKED, labels=["mine", "none"])))
    assert [entry.error for entry in made] == ["", ""]


def test_a_folder_names_the_cells_below_it(world: list[str], outputs: Path) -> None:
    with configured("demo", *world, f"checkpoints={outputs / 'train'}") as cfg:
        assert [method.label for method in DemoSession(cfg).loaded.methods()] == [LABEL, "none"]


def test_a_person_is_taken_from_a_picture(world: list[str], tmp_path: Path) -> None:
    assert (
        main(
            [
                "train",
                "adapter=dnaf",
                *making("image", world, ["source"]),
                f"paths.output={tmp_path}",
                "budget.steps=1",
            ]
        )
        == 0
    )
    with configured("demo", *world, f"paths.output={tmp_path}") as cfg:
        studio = DemoSession(cfg)
        label = studio.loaded.methods()[0].label
        assert label == "dnaf · train, seed 0, 1 steps"
        person = np.random.default_rng(0).integers(0, 255, (80, 64, 3), np.uint8)
        (without,) = studio.draw(replace(ASKED, labels=[label]))
        (made,) = studio.draw(replace(ASKED, labels=[label], source=person))
    assert "takes a person from a picture" in without.error and made.pixels is not None


def test_words_that_the_world_lacks_are_told(studio: DemoSession) -> None:
    (made,) = studio.draw(replace(ASKED, labels=["none"], prompt=f"{PROMPT} yoga"))
    assert list(made.unknown) and made.unknown[-1] == "yoga" and "yoga" in results_html([made])
    (known,) = studio.draw(replace(ASKED, labels=["none"], prompt=studio.presets[0].prompt))
    assert not known.unknown and "no other words" not in results_html([known])


def test_a_named_folder_that_cannot_be_used_is_refused(world: list[str], tmp_path: Path) -> None:
    with (
        configured("demo", *world, f"checkpoints=[{tmp_path}]") as cfg,
        pytest.raises(UserError, match=r"posegen\.json is missing"),
    ):
        DemoSession(cfg).loaded.methods()


def test_it_stops_between_two_steps(studio: DemoSession) -> None:
    with pytest.raises(Stopped):
        list(studio.draw(replace(ASKED, steps=5), lambda method, done, total: studio.stop.set() if done == 2 else None))
    assert len(list(studio.draw(ASKED))) == 2, "and the next request is served"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"labels": []}, "no method is chosen"),
        ({"labels": ["gone"]}, "not there any more"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_made_is_refused(studio: DemoSession, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(studio.draw(replace(ASKED, **change)))


def test_nobody_is_a_pose_too(studio: DemoSession) -> None:
    for made in studio.draw(replace(ASKED, pose={"people": []})):
        assert made.pixels is not None and not made.scores


def test_scenes_have_what_their_prompts_say(studio: DemoSession) -> None:
    assert studio.presets
    for preset in studio.presets:
        assert len(to_keypoints(preset.pose, studio.size)) == len(preset.label.split(" & "))
        assert all(action in preset.prompt for action in preset.label.split(" & "))


def test_the_shipped_estimator_reads_a_picture_into_the_editor(world: list[str], outputs: Path) -> None:
    with configured(
        "demo", *[word for word in world if not word.startswith("estimator")], f"paths.output={outputs}"
    ) as cfg:
        studio = DemoSession(cfg)
        sample = next(sample for sample in map(studio.data.__getitem__, range(6)) if len(sample.keypoints) == 1)
        read = to_keypoints(studio.read_picture(sample.image.repeat(4, 0).repeat(4, 1)), studio.size)  # type: ignore[union-attr]
        with pytest.raises(
            UserError, match=r"finds nobody.*\. MannequinJudge has never seen photographs, .*, then estimator=rtmlib"
        ):
            studio.read_picture(np.full((64, 64, 3), 200, np.uint8))
    seen = (sample.keypoints[0, :, 2] > 0) & (read[0, :, 2] > 0)
    assert seen.sum() > 8 and np.median(np.abs(read[0, seen, :2] - sample.keypoints[0, seen, :2])) < 3


def test_photographs_are_read_in_their_own_size_and_from_any_file(
    world: list[str], outputs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rtmlib")
    models = pytest.importorskip("tests.metrics.estimators.onnx_models")
    pose, detector = models.simcc(tmp_path / "pose.onnx", 133), models.detector(tmp_path / "detector.onnx")
    words = [word for word in world if not word.startswith("estimator")]
    words += ["estimator=rtmlib", f"estimator.path={pose}", f"estimator.detector_path={detector}"]
    image = np.zeros((200, 100, 3), np.uint8)
    image[50:100, :50] = 240
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.jpg", quality=100, exif=turned_right())
    with configured("demo", *words, f"paths.output={outputs}") as cfg:
        studio = DemoSession(cfg)
        assert studio.estimator.warning() == ""
        read = to_keypoints(studio.read_picture(image), studio.size)
        assert read.shape == to_keypoints(studio.read_picture(str(tmp_path / "turned.jpg")), studio.size).shape
        found = studio.people_in(image).keypoints[0]
        with pytest.raises(UserError, match=r"finds nobody in this picture; give another one, or drag the joints$"):
            studio.read_picture(np.zeros((90, 50, 3), np.uint8))
    seen = (found[:, 2] >= 0.1) & (read[0, :, 2] > 0)
    on_canvas = (found[:, :2] + 0.5) * 64 / 200 - 0.5 + (16, 0)  # 32 of 64 columns, in the middle
    assert read.shape == (1, 17, 3) and seen.any() and np.allclose(read[0, seen, :2], on_canvas[seen], atol=0.01)


def turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def test_the_canvas_may_be_another_one_and_the_pose_stays(world: list[str], outputs: Path, studio: DemoSession) -> None:
    with configured("demo", *world, f"paths.output={outputs}", "canvas=[128,128]") as cfg:
        large = DemoSession(cfg)
        assert large.size == (128, 128) and large.presets == studio.presets
        (theirs, _), (ours, _) = large.draw(ASKED), studio.draw(ASKED)
    assert np.array_equal(theirs.pixels, ours.pixels)  # type: ignore[arg-type]


def test_pictures_keep_their_aspect() -> None:
    tall = np.zeros((200, 100, 3), np.uint8)
    tall[:, :10] = 255
    small = letterboxed(tall, (64, 64))
    assert small.shape == (64, 64, 3) and small[:, :16].min() > 250 and small[:, 24:].max() < 5, (
        "its border goes on to the left"
    )


def test_a_pose_from_the_prompt(studio: DemoSession, world: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="posegen train adapter=gunet"):
        studio.imagine(PROMPT, 0)
    prior = [word for word in making("pose", world) if not word.startswith("backbone.path")]
    assert main(["train", "adapter=gunet", *prior, f"paths.output={tmp_path}", "budget.steps=1"]) == 0
    with configured("demo", *world, f"paths.output={tmp_path}", "prior.sampler.steps=2") as cfg:
        trained = DemoSession(cfg)
        poses = [trained.imagine(PROMPT, seed) for seed in (0, 0, 1)]
        assert poses[0] == poses[1] != poses[2] and len(poses[0]["people"]) == 1
        assert [method.label for method in trained.loaded.methods()] == ["none"], "a prior makes no picture"


def test_what_is_shown_is_escaped_and_marks_the_best() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    found = Poses(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32))
    made = [
        DemoPicture("<b>a</b>", picture, scores={"OKS": 3.0}, found=found),
        DemoPicture("b", picture, scores={"OKS": 5.0}),
        DemoPicture("c", error="<script>"),
    ]
    made.append(DemoPicture("d", picture, scores={"OKS": math.nan}))
    text = results_html(made)
    assert "<script>" not in text and "<b>a</b>" not in text and text.count("pg-best") == 1
    assert best_scores(made) == {"OKS": 5.0}


def test_a_benchmark_that_is_cancelled_ends(world: list[str], tmp_path: Path) -> None:
    run = FirstBenchmark(["benchmark=smoke", *world, f"paths.output={tmp_path}"])
    assert run.report().state == "running" and run.folder == tmp_path / "benchmark" / "smoke"
    run.stop()
    assert run.process.poll() is not None and run.report().state == "stopped"


@pytest.mark.slow
def test_a_benchmark_trains_what_can_be_chosen(world: list[str], tmp_path: Path) -> None:
    run = FirstBenchmark(["benchmark=smoke", "adapter=controlnet,reference/real", *world, f"paths.output={tmp_path}"])
    texts = []
    while (report := run.report()).state == "running":
        texts.append(report.text)
        time.sleep(0.3)
    assert report.state == "finished", report.text
    assert any("of 2 rows" in text for text in texts)
    with configured("demo", *world, f"paths.output={tmp_path}") as cfg:
        assert [method.label.partition(" · ")[0] for method in DemoSession(cfg).loaded.methods()] == [
            "controlnet",
            "none",
        ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", b"[]"),
        ("status.json", b"{"),
        ("config.yaml", b"a: [\n\t"),
        ("config.yaml", b"x: 1"),
        ("method/posegen.json", b"[]"),
    ],
)
def test_a_damaged_cell_is_named_and_the_others_can_draw(
    world: list[str], outputs: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    (cell,) = (outputs / "train" / "controlnet").glob("*/seed0")
    for name in ("good", "bad"):
        shutil.copytree(cell, tmp_path / name / "seed0")
    (tmp_path / "bad" / "seed0" / file).write_bytes(content)
    with configured("demo", *world, f"paths.output={tmp_path}") as cfg:
        loaded = DemoSession(cfg).loaded
        assert len(loaded.methods()) == 2
    assert len(loaded.left_out) == 1 and str(tmp_path / "bad") in loaded.left_out[0]
