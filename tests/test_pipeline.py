"""The pipeline: what it makes, what it keeps, and what it refuses; `test_pipeline_and_diffusers` compares it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

import posegen
from posegen.adapters.controlnet import ControlNet
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.errors import UserError
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import DRAWING_STYLES
from posegen.poses.pose import Pose
from posegen.poses.reading import read_poses
from posegen.poses.topology import WHOLE_BODY_133, coco_to_openpose18
from posegen.runner.components import Components
from posegen.runner.method_folder import save_method
from tests.backbones.models import SD1, parts_of
from tests.tiny import configured

METHODS = ("controlnet", "humansd", "t2i_adapter")


def person(x: float = 32, y: float = 32) -> np.ndarray:
    points = np.random.default_rng(0).uniform(-20, 20, (17, 3)) + np.array([x, y, 0])
    points[:, 2] = 2
    return points


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def trained(components: Components) -> Components:
    """The components with weights that no fresh ones have."""
    for p in [*components.adapter.parameters(), *components.backbone.parameters()]:
        if p.requires_grad:
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return components


@pytest.fixture(scope="module")
def methods(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A method folder of every method."""
    folder = tmp_path_factory.mktemp("methods")
    for name in METHODS:
        with configured("train", *world, f"adapter={name}") as cfg:
            components = trained(Components(cfg))
            save_method(
                folder / name,
                components.adapter,
                components.backbone,
                sampler={"steps": 2, "guidance": 3.0, "batch": 50},
            )
    return {name: folder / name for name in METHODS}


@pytest.fixture(scope="module")
def base(world: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("backbone.").split("=") for word in world if word.startswith("backbone."))


def loaded(folder: Path, base: dict[str, str] | None = None, **settings: Any) -> PoseGuidedPipeline:
    pipe = PoseGuidedPipeline.from_pretrained(folder, backbone=base, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(methods: dict[str, Path], base: dict[str, str]) -> PoseGuidedPipeline:
    return loaded(methods["controlnet"], base)


def images(pipe: PoseGuidedPipeline, *args: Any, **kwargs: Any) -> np.ndarray:
    return pipe(*args, **{"generator": seeded(), "output_type": "np", **kwargs}).images


# What it makes.


def test_an_image_is_a_function_of_its_generator(pipe: PoseGuidedPipeline) -> None:
    both = images(pipe, "photo", person(), num_images_per_prompt=2, generator=[seeded(1), seeded(2)])
    alone = images(pipe, "photo", person(), generator=seeded(2))
    assert np.allclose(both[1], alone[0], atol=1e-4) and not np.allclose(both[0], both[1], atol=1e-2)
    assert np.array_equal(images(pipe, "photo", person()), images(pipe, "photo", person()))
    torch.manual_seed(5)
    free = images(pipe, "photo", person(), generator=None)
    assert not np.allclose(free, images(pipe, "photo", person(), generator=None), atol=1e-2)
    torch.manual_seed(5)
    assert np.array_equal(free, images(pipe, "photo", person(), generator=None)), (
        "without one, torch's own generator counts"
    )


def test_prompts_and_poses_are_paired(pipe: PoseGuidedPipeline) -> None:
    two = [person(), np.stack([person(20), person(44)])]

    def made(*args: Any, **kwargs: Any) -> np.ndarray:
        return images(pipe, *args, generator=[seeded(1), seeded(2)], **kwargs)

    together = made(["photo", "sketch"], two, negative_prompt=["", "cartoon"])
    second = images(pipe, "sketch", two[1], negative_prompt="cartoon", generator=seeded(2))
    assert np.allclose(together[1], second[0], atol=1e-4)
    one_pose, one_prompt = made(["photo", "sketch"], person()), made("photo", two)
    assert np.allclose(together[0], one_pose[0], atol=1e-4) and np.allclose(together[0], one_prompt[0], atol=1e-4)


def test_every_kind_of_output(pipe: PoseGuidedPipeline) -> None:
    made = {
        kind: pipe("photo", person(), generator=seeded(), output_type=kind, height=64, width=96).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert isinstance(made["pil"], list) and made["pil"][0].size == (96, 64)
    assert (
        made["np"].shape == (1, 64, 96, 3)
        and made["pt"].shape == (1, 3, 64, 96)
        and made["latent"].shape == (1, *pipe.backbone.latent_shape((64, 96)))
    )
    assert np.abs(np.asarray(made["pil"][0]) / 255 - made["np"][0]).max() <= 0.51 / 255 and np.allclose(
        made["pt"][0].permute(1, 2, 0), made["np"][0]
    )
    decoded = pipe.backbone.from_latents(made["latent"]).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(decoded, made["pt"], atol=1e-5)
    (alone,) = pipe("photo", person(), generator=seeded(), output_type="np", height=64, width=96, return_dict=False)
    assert np.array_equal(alone, made["np"])


@pytest.mark.parametrize("method", METHODS)
def test_control_has_a_strength(method: str, methods: dict[str, Path], base: dict[str, str]) -> None:
    pipe = loaded(methods[method], base)
    made = [images(pipe, "a dancer", person(), controlnet_conditioning_scale=scale) for scale in (0.0, 0.5, 1.0)]
    assert np.array_equal(made[2], images(pipe, "a dancer", person()))
    assert all(np.abs(a - b).max() > 1e-4 for a, b in ((made[0], made[1]), (made[1], made[2])))
    assert np.array_equal(made[0], images(pipe, "a dancer", person(20, 20), controlnet_conditioning_scale=0.0)), (
        "at 0 no pose matters"
    )


def test_every_step_is_told_and_what_is_raised_then_ends_the_sampling(pipe: PoseGuidedPipeline) -> None:
    done: list[int] = []

    def told(given: PoseGuidedPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert given is pipe and given.num_timesteps == 3 and int(timestep) > 0 and set(tensors) == {"latents"}
        done.append(step)
        return tensors

    pipe("a dancer", person(), num_inference_steps=3, callback_on_step_end=told)
    assert done == [0, 1, 2]

    def enough(*_given: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipe("a dancer", person(), num_inference_steps=3, callback_on_step_end=enough)


def test_the_scheduler_can_be_replaced(pipe: PoseGuidedPipeline) -> None:
    before, usual = pipe.scheduler, images(pipe, "photo", person())
    try:
        for cls in (
            diffusers.UniPCMultistepScheduler,
            diffusers.DDPMScheduler,
        ):  # the second draws noise in every step
            pipe.scheduler = cls.from_config(pipe.scheduler.config)
            assert not np.allclose(images(pipe, "photo", person(), num_inference_steps=3), usual, atol=1e-3)
            assert np.array_equal(
                images(pipe, "photo", person(), num_inference_steps=3),
                images(pipe, "photo", person(), num_inference_steps=3),
            )
    finally:
        pipe.scheduler = before
    assert np.array_equal(images(pipe, "photo", person()), usual)


def test_the_folder_says_how_to_sample_unless_the_call_does(pipe: PoseGuidedPipeline) -> None:
    assert (pipe.sampler.steps, pipe.sampler.guidance) == (2, 3.0)
    assert np.array_equal(
        images(pipe, "photo", person()), images(pipe, "photo", person(), num_inference_steps=2, guidance_scale=3.0)
    )
    assert not np.allclose(
        images(pipe, "photo", person()), images(pipe, "photo", person(), guidance_scale=1.0), atol=1e-3
    )


def test_the_bar_counts_the_steps(pipe: PoseGuidedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.set_progress_bar_config(desc="sampling")
    pipe("photo", person(), num_inference_steps=3)
    assert "sampling: 100%" in (shown := capsys.readouterr().err) and "3/3" in shown
    pipe.set_progress_bar_config(disable=True)
    pipe("photo", person())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_close(method: str, methods: dict[str, Path], base: dict[str, str]) -> None:
    full, half = (loaded(methods[method], base, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.backbone.process.alphas_cumprod.dtype == torch.float32
    difference = np.abs(images(full, "photo", person()) - images(half, "photo", person()))
    assert 0 < difference.mean() < 0.05


# Poses in every form.


def test_drawings_files_and_keypoints_are_the_same_pose(pipe: PoseGuidedPipeline, tmp_path: Path) -> None:
    expected = images(pipe, "photo", person())
    drawn = DRAWING_STYLES["openpose"](person()[None], (64, 64))
    Image.fromarray(drawn).save(tmp_path / "skeleton.png")
    content = {
        "annotations": [{"image_id": 1, "keypoints": (person() * [2, 2, 1] + [0.5, 0.5, 0]).ravel().tolist()}],
        "images": [{"id": 1, "height": 128, "width": 128}],
    }
    (tmp_path / "pose.json").write_text(json.dumps(content))
    assert np.array_equal(images(pipe, "photo", tmp_path / "skeleton.png"), expected)
    assert np.allclose(images(pipe, "photo", torch.from_numpy(drawn).permute(2, 0, 1) / 255), expected, atol=1e-4)
    assert np.allclose(images(pipe, "photo", tmp_path / "pose.json", height=64, width=64), expected, atol=1e-3), (
        "the file's canvas is scaled to the image"
    )
    assert images(pipe, "photo", tmp_path / "pose.json").shape == (1, 128, 128, 3), "or gives the image its size"


def test_hands_are_read_where_the_method_draws_them_and_said_where_not(
    world: list[str], base: dict[str, str], pipe: PoseGuidedPipeline, tmp_path: Path
) -> None:
    with configured("train", *world, "adapter=controlnet", "adapter.style=dwpose", "adapter.parts=[body,hands]") as cfg:
        components = trained(Components(cfg))
        save_method(tmp_path / "hands", components.adapter, components.backbone, sampler={"steps": 2, "batch": 50})
    hands = loaded(tmp_path / "hands", base)
    people = np.zeros((1, 133, 3))
    people[0, :17] = person()
    (alone := people.copy())[0, 91:112] = np.random.default_rng(1).uniform(5, 60, (21, 3))
    alone[0, :17] = 0
    both = people + alone
    batches = []
    for poses in (people, both, alone):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batches.append(images(hands, "a dancer", Pose(WHOLE_BODY_133, poses)))
    assert all((a != b).any() for a, b in ((batches[0], batches[1]), (batches[1], batches[2])))
    with pytest.warns(UserWarning, match=r"COCO-WholeBody-133 is read as COCO-17, without the hands \(21 joints\)"):
        drawn = images(pipe, "a dancer", both)
    np.testing.assert_array_equal(drawn, images(pipe, "a dancer", person()))
    openpose = coco_to_openpose18(person()[None])
    np.testing.assert_array_equal(drawn, images(pipe, "a dancer", openpose, topology="openpose18"))


def test_a_drawing_takes_the_range_that_the_method_reads(methods: dict[str, Path], base: dict[str, str]) -> None:
    pipe = loaded(methods["humansd"], base)
    drawn = DRAWING_STYLES["humansd"](person()[None], (64, 64))
    expected = images(pipe, "photo", person())
    assert np.allclose(images(pipe, "photo", drawn), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"values from 0 to .*; the method reads -1 \(black\) to 1"):
        pipe("photo", torch.from_numpy(drawn).permute(2, 0, 1) / 255)


def test_poses_are_read_from_pictures_of_people(pipe: PoseGuidedPipeline, world: list[str]) -> None:
    own = [word for word in world if not word.startswith("estimator")]
    with configured("train", *own) as cfg:
        sample = next(
            s for s in map(instantiate(cfg.data.test, _convert_="all").__getitem__, range(6)) if len(s.keypoints) == 1
        )
    [guide] = read_poses(Image.fromarray(sample.image))
    people, hint = pipe.read(guide, (64, 64), None)
    seen = sample.keypoints[0, :, 2] == 2
    off = np.linalg.norm(people[0, seen, :2] - sample.keypoints[0, seen, :2], axis=-1)
    assert len(people) == 1 and np.median(off) < 2 and hint.shape == (3, 64, 64)
    with pytest.raises(UserError, match="the estimator finds nobody in this picture"):
        pipe("photo", np.full((64, 64, 3), 200, np.uint8))


def test_without_poses_nobody_is_drawn(pipe: PoseGuidedPipeline) -> None:
    assert np.array_equal(images(pipe, "photo"), images(pipe, "photo", np.zeros((64, 64, 3), np.uint8)))


def test_a_drawing_of_another_size_is_resized_to_the_image(pipe: PoseGuidedPipeline) -> None:
    """An editor exports 125 x 188; the sides that a message proposes must then work."""
    drawing = np.zeros((188, 125, 3), np.uint8)
    cv2.line(drawing, (40, 30), (80, 150), (0, 255, 0), 6)
    with pytest.raises(UserError, match=r"nearest: height=184 or 192, width=120 or 128"):
        images(pipe, "photo", drawing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = images(pipe, "photo", drawing, height=192, width=128)
    same = cv2.resize(drawing, (128, 192), interpolation=cv2.INTER_LINEAR)
    assert np.abs(made - images(pipe, "photo", same)).max() < 0.02
    assert not np.array_equal(made, images(pipe, "photo", np.zeros((192, 128, 3), np.uint8)))
    with pytest.warns(UserWarning, match=r"a drawn skeleton of 125 x 188 pixels is stretched to 64 x 64"):
        images(pipe, "photo", drawing, height=64, width=64)


def test_numbers_of_numpy_are_numbers(pipe: PoseGuidedPipeline) -> None:
    plain = images(pipe, "photo", person(), height=64, width=64, guidance_scale=3, controlnet_conditioning_scale=0.5)
    numpys = {"height": np.int64(64), "width": np.float32(64), "num_inference_steps": np.int32(2)}
    given = {**numpys, "guidance_scale": np.float32(3), "controlnet_conditioning_scale": np.float64(0.5)}
    assert np.array_equal(plain, images(pipe, "photo", person(), **given))


def test_a_prompt_that_is_cut_is_told_once_per_call(pipe: PoseGuidedPipeline) -> None:
    words = " ".join(f"word{i}" for i in range(100))
    with pytest.warns(UserWarning, match=r"longer than the \d+ tokens that the text tower reads") as told:
        images(pipe, [words, "photo"], person())
    assert len(told) == 1 and "1 of 2 prompts" in str(told[0].message) and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images(pipe, "photo", person())


def test_a_long_prompt_is_read_whole_where_asked(pipe: PoseGuidedPipeline) -> None:
    begin = " ".join(f"word{i}" for i in range(60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (
            images(pipe, f"{begin} {end}", person(), long_prompts="chunk") for end in ("a red shirt", "a blue skirt")
        )
    assert not np.array_equal(one, other)
    with pytest.warns(UserWarning, match="are cut"):
        assert np.array_equal(images(pipe, f"{begin} a", person()), images(pipe, f"{begin} b", person()))


# What it refuses, before anything is computed.


@pytest.mark.parametrize(
    ("poses", "settings", "message"),
    [
        (
            person(),
            {"height": 60, "width": 64},
            r"height=60, width=64: .* multiples of 8; nearest: height=56 or 64, width=64",
        ),
        (person(), {"height": 3, "width": -1}, r"nearest: height=8, width=8"),
        (person(500), {}, r"poses: all joints are outside the canvas of 64 x 64"),
        (person() * [1, 1, 0], {}, r"poses: no joint is visible .* leave poses out"),
        (person() * np.nan, {}, r"poses: person 0, joint 0 \(nose\) is not finite"),
        (np.stack([person()] * 11), {}, r"11 people; the methods know up to 10"),
        (
            [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)],
            {},
            r"canvases of different sizes .*set height and width",
        ),
        ([person()] * 2, {"prompt": ["a", "b", "c"]}, r"3 prompts and poses of 2 images"),
        (person(), {"prompt": 3}, r"prompt is 3; expected a text"),
        (person(), {"negative_prompt": ["a", "b"]}, r"negative_prompt has 2 texts for 1 prompts"),
        (person(), {"num_inference_steps": 0}, r"num_inference_steps is 0; expected a whole number of at least 1"),
        (person(), {"num_images_per_prompt": 1.5}, r"num_images_per_prompt is 1.5"),
        (
            person(),
            {"controlnet_conditioning_scale": -1},
            r"controlnet_conditioning_scale is -1; expected a number of at least 0",
        ),
        (
            person(),
            {"num_inference_steps": np.float32(1.5)},
            r"num_inference_steps is .*1.5.*; expected a whole number",
        ),
        (person(), {"height": True, "width": 64}, r"height is True; expected a whole number"),
        (person(), {"guidance_scale": float("nan")}, r"guidance_scale is nan; expected a finite number"),
        (person(), {"guidance_scale": "7"}, r"guidance_scale is '7'; expected a finite number"),
        (person(), {"long_prompts": "wrap"}, r"long_prompts is 'wrap'; expected cut or chunk"),
        (person(), {"negative_prompt": 5}, r"negative_prompt is 5; expected a text or a list of texts"),
        (person(), {"generator": 5}, r"generator is 5; expected one of torch"),
        (person(), {"output_type": "jpg"}, r"output_type is 'jpg'; expected one of pil, np, pt, latent"),
        (person(), {"generator": [torch.Generator()] * 2}, r"generator has 2 entries for 1 images"),
        (
            person(),
            {"latents": torch.zeros(1, 4, 8, 8)},
            r"latents has the shape \[1, 4, 8, 8\]; 1 images of 64 x 64 pixels start from \[1, 8, 16, 16\]",
        ),
    ],
)
def test_bad_input_is_one_error_at_once(
    pipe: PoseGuidedPipeline, poses: Any, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.backbone, "encode_text", lambda *texts: pytest.fail("something was computed"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "photo", "poses": poses, **settings})


def test_other_pictures_need_an_estimator_on_other_backbones() -> None:
    method = ControlNet()
    method.attach(StableDiffusion.from_parts(parts_of(SD1)))
    with pytest.raises(
        UserError, match="a picture that is no skeleton on black needs something that reads its poses: estimator="
    ):
        PoseGuidedPipeline(method)("a dancer", np.full((64, 64, 3), 200, np.uint8))


# Folders.


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_makes_the_same_images_without_the_rest(
    method: str, methods: dict[str, Path], base: dict[str, str], tmp_path: Path
) -> None:
    copy = {key: str(shutil.copytree(value, tmp_path / key)) for key, value in base.items()}
    pipe = loaded(methods[method], copy)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    expected = images(pipe, ["photo", "sketch"], person(), num_inference_steps=3)
    pipe.save_pretrained(tmp_path / "saved")
    for folder in copy.values():
        shutil.rmtree(folder)
    again = loaded(tmp_path / "saved")
    assert isinstance(again.scheduler, diffusers.DPMSolverMultistepScheduler) and again.sampler.guidance == 3.0
    assert np.array_equal(images(again, ["photo", "sketch"], person(), num_inference_steps=3), expected)
    again.save_pretrained(tmp_path / "saved")  # over itself
    assert np.array_equal(
        images(loaded(tmp_path / "saved"), ["photo", "sketch"], person(), num_inference_steps=3), expected
    )


def test_a_unet_of_its_own_is_saved_along(methods: dict[str, Path], base: dict[str, str], tmp_path: Path) -> None:
    body = StableDiffusion(**base, recipe="mannequin")
    method = ControlNet()
    method.attach(body)
    with torch.no_grad():
        body.unet.conv_out.bias.add_(0.3)
    save_method(tmp_path / "method", method, body, own_unet=True)
    pipe = loaded(tmp_path / "method", base)
    pipe.save_pretrained(tmp_path / "saved")
    expected, again = images(pipe, "photo", person(), num_inference_steps=2), loaded(tmp_path / "saved")
    assert np.array_equal(images(again, "photo", person(), num_inference_steps=2), expected)
    assert again.backbone.weights.sha256 == StableDiffusion(**base).weights.sha256


def test_parts_may_be_given_when_it_is_loaded(methods: dict[str, Path], base: dict[str, str]) -> None:
    scheduler = diffusers.EulerDiscreteScheduler.from_config(loaded(methods["controlnet"], base).scheduler.config)
    pipe = PoseGuidedPipeline.from_pretrained(methods["controlnet"], base, scheduler=scheduler)
    assert pipe.scheduler is scheduler
    with pytest.raises(UserError, match="from_pretrained got safety_checker, which is no part; expected scheduler, "):
        PoseGuidedPipeline.from_pretrained(methods["controlnet"], base, safety_checker=None)


def test_a_trained_cell_is_a_pipeline(world: list[str], tmp_path: Path) -> None:
    from posegen.cli import main

    assert main(["train", *world, "adapter=controlnet", "budget.steps=1", f"paths.output={tmp_path}"]) == 0
    (cell,) = (status.parent for status in tmp_path.rglob("status.json"))
    pipe = loaded(cell)  # its backbone is that of its configuration
    assert (pipe.sampler.steps, pipe.sampler.guidance) == (2, 2.0)
    assert pipe("photo", person()).images[0].size == (64, 64)


def test_the_shipped_backbone_needs_no_name(tmp_path: Path) -> None:
    with configured("train", "adapter=controlnet") as cfg:
        components = Components(cfg)
        save_method(tmp_path / "method", components.adapter, components.backbone)
    pipe = loaded(tmp_path / "method")
    assert pipe.backbone.weights == components.backbone.weights and (pipe.sampler.steps, pipe.sampler.guidance) == (
        50,
        7.5,
    )


def test_a_backbone_that_is_nowhere_must_be_named(
    methods: dict[str, Path], base: dict[str, str], tmp_path: Path
) -> None:
    for id in ("sd15", "elsewhere"):
        folder = copied(methods["controlnet"], tmp_path / id, backbone={"id": id, "sha256": "0" * 64})
        with pytest.raises(
            UserError,
            match=rf"belongs to backbone {id} \(sha256 000000000000\), which is not in it; name it: from_pretrained\(",
        ):
            PoseGuidedPipeline.from_pretrained(folder)
    with pytest.raises(UserError, match=r"was trained on backbone mannequin-v1 .*, configured is mannequin-v1"):
        PoseGuidedPipeline.from_pretrained(methods["controlnet"])
    assert loaded(methods["controlnet"], StableDiffusion(**base)).device.type == "cpu"


def copied(folder: Path, target: Path, **entries: Any) -> Path:
    shutil.copytree(folder, target)
    about = target / "posegen.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **entries}))
    return target


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (
            {"class": "os.system", "kwargs": {"command": "touch trace"}},
            r"names the class os\.system, which is no backbone; nothing was run",
        ),
        (
            {"class": "posegen.backbones.stable_diffusion.StableDiffusion", "kwargs": {"path": "../../x"}},
            r"the backbone's path '../../x' is outside the folder",
        ),
    ],
)
def test_a_foreign_folder_runs_nothing_and_reads_nothing_else(
    methods: dict[str, Path], tmp_path: Path, pipeline: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PoseGuidedPipeline.from_pretrained(copied(methods["controlnet"], tmp_path / "folder", pipeline=pipeline))


def test_a_foreign_scheduler_is_refused(methods: dict[str, Path], base: dict[str, str], tmp_path: Path) -> None:
    folder = copied(methods["controlnet"], tmp_path / "folder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    with pytest.raises(UserError, match="names the class DiffusionPipeline, which is no scheduler of diffusers"):
        loaded(folder, base)


def test_nothing_else_is_overwritten_and_a_backbone_in_memory_cannot_be_saved(
    pipe: PoseGuidedPipeline, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is no method folder, so it is not overwritten"):
        pipe.save_pretrained(tmp_path)
    method = ControlNet()
    method.attach(StableDiffusion.from_parts(parts_of(SD1)))
    with pytest.raises(UserError, match="backbone untrained was not read from files"):
        PoseGuidedPipeline(method).save_pretrained(tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_weights_that_overflow_in_half_precision_are_named(methods: dict[str, Path], base: dict[str, str]) -> None:
    pipe = loaded(methods["controlnet"], base)
    with torch.no_grad():
        pipe.backbone.unet.conv_out.bias[0] = 1e6
    with pytest.raises(
        UserError, match=r"1 tensors are too large for torch\.float16, for instance unet\.conv_out\.bias; .*bfloat16"
    ):
        pipe.to(torch.float16)


def test_importing_posegen_imports_no_torch() -> None:
    program = "import sys, posegen; assert 'torch' not in sys.modules; posegen.PoseGuidedPipeline; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = posegen.Pipeline
