"""The consistency reward: what it compares, whom its gradient reaches, what it costs, and how it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.profile.memory import LiveBytes
from posegen.backbones.base import Step
from posegen.backbones.process import noise_process
from posegen.cli import main
from posegen.config.groups import conf_dir
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.hashes import value_hash
from posegen.losses.base import TrainingLoss
from posegen.losses.reward import ConsistencyReward
from posegen.metrics.base import Estimator
from posegen.metrics.estimators.higherhrnet import HigherHRNet, to_pixels
from posegen.metrics.estimators.mannequin import MannequinJudge
from posegen.runner.batches import Needs, collate
from posegen.runner.cell import identity
from posegen.runner.components import Components
from posegen.train.loop import build_task
from posegen.train.tasks import AdapterTask
from tests.adapters.cases import SD1, backbone_of
from tests.tiny import configured, make_world
from tests.train.test_train import Stop, equal, interrupt, trained

REWARD = ("loss=reward", "loss.timesteps=[0,1000]", "loss.weight=100")  # every step counts
DYNAMIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
DYNAMIC |= {"base_image_seq_len": 0, "max_image_seq_len": 2048, "base_shift": 0.0, "max_shift": 2.0}
ADAPTERS = ("controlnet", "grpose", "humansd", "stable_pose", "t2i_adapter")


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tiny world, whose judge has answers that differ from place to place."""
    folder = tmp_path_factory.mktemp("sighted")
    world = make_world(folder)
    judge = MannequinJudge.from_pretrained(folder / "judge")
    torch.nn.init.constant_(judge.heat_head.bias, 0.0)
    torch.nn.init.normal_(judge.heat_head.weight, generator=torch.Generator().manual_seed(0))
    judge.save(folder / "judge")
    return world


@pytest.fixture
def tiny(sighted: list[str]) -> Iterator[DictConfig]:
    with configured("train", *sighted, "adapter=controlnet", "loss=reward", "trainer.precision=32-true") as cfg:
        yield cfg


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[DictConfig]:
    """The shipped mannequins, in single precision."""
    few = ["data.train.count=64", f"paths.output={tmp_path}", "progress=none", "trainer.precision=32-true"]
    with configured("train", "adapter=t2i_adapter", "loss=reward", *few) as cfg:
        yield cfg


def task_of(cfg: DictConfig) -> tuple[AdapterTask, ConsistencyReward]:
    task: Any = build_task(Components(cfg))
    task.recipe = OmegaConf.create({"drop_text": 0.0})
    return task, task.loss


def batch_of(task: AdapterTask, count: int = 8) -> PoseBatch:
    data = task.components.data("train")
    return collate(data, range(count), Needs(task.needs | {"images"}, task.adapter.hint), 0)


def given_step(task: AdapterTask, batch: PoseBatch, timesteps: list[int], error: float = 0.0) -> Step:
    """A step whose prediction is right up to an ``error``."""
    assert batch.images is not None
    process, draw = task.backbone.process, torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = task.backbone.to_latents(batch.images)
    noise, t = torch.randn(clean.shape, generator=draw), torch.tensor(timesteps)
    target = process.target(clean, noise, t)
    wrong = error * torch.randn(clean.shape, generator=draw)
    return Step((target + wrong).requires_grad_(), target, process.add_noise(clean, noise, t), clean, noise, t)


def test_the_judge_sees_in_renders_what_is_expected_of_their_poses(shipped: DictConfig) -> None:
    """In the right places, of the right width and height: any other are further from what it sees."""
    task, reward = task_of(shipped)
    batch = batch_of(task, 16)
    assert batch.images is not None
    seen, expected = reward.teacher.heatmaps(batch.images), reward.wanted_heatmaps(batch, torch.arange(16))

    def apart(maps: Tensor) -> float:
        return float((seen - maps).square().mean())

    assert apart(expected) < 0.25 * min(apart(torch.zeros_like(seen)), apart(expected.roll(1, 0)))
    assert apart(expected) < 0.5 * min(apart(expected.roll(shift, axis)) for shift in (-1, 1) for axis in (-1, -2))


def test_the_maps_expected_of_higherhrnet_are_decoded_to_the_poses() -> None:
    network = HigherHRNet.from_width(8)
    people = torch.tensor([[[20.0, 30.0, 2.0]] * 17, [[0.0] * 3] * 17])[None]
    people[0, 0, 3, 2] = 0  # an unlabelled joint
    maps = network.expected_heatmaps(people, (64, 128))
    assert maps.shape == network.heatmaps(torch.zeros(1, 3, 64, 128)).shape and not maps[0, 3].any()
    y, x = np.unravel_index(int(maps[0, 0].argmax()), maps.shape[-2:])
    found = to_pixels(np.array([[[x, y, 1.0]]]), maps.shape[-2:], (63, 127))[0, 0]
    assert np.abs(found[:2] - (20, 30)).max() < 1.1 and 0.9 < float(maps[0, 0].max()) <= 1


def test_steps_count_whose_noise_is_small_and_no_other_is_looked_at(tiny: DictConfig) -> None:
    task, reward = task_of(tiny)
    batch = batch_of(task, 4)
    step = given_step(task, batch, [0, 200, 201, 999], error=0.3)
    step.prediction.data[2:] = float("nan")  # an overflow where the image shows nothing is no harm
    (gradient,) = torch.autograd.grad(reward.reward(step, batch, task.backbone), step.prediction)
    assert gradient[:2].flatten(1).any(1).all() and not gradient[2:].any()


def test_the_network_that_rewards_is_frozen_whoever_built_it() -> None:
    judge = MannequinJudge()
    ConsistencyReward(judge)
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [
        ({"_class_name": "DDIMScheduler"}, 0.201),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 500}, 0.202),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 0.2 / (3 - 2 * 0.2)),  # s = 3u / (1 + 2u)
        (DYNAMIC, 0.2 / (math.e - (math.e - 1) * 0.2)),  # the shift is e for images of 1024 tokens
    ],
)
def test_the_share_of_steps_follows_the_process_and_the_size(scheduler: dict[str, Any], share: float) -> None:
    backbone = backbone_of(SD1)
    backbone.process = noise_process(scheduler)
    assert ConsistencyReward(MannequinJudge()).share(backbone, (256, 256)) == pytest.approx(share, abs=1e-3)


def test_a_divided_batch_has_the_gradient_of_the_whole_but_not_as_released(tiny: DictConfig) -> None:
    task, reward = task_of(tiny)
    batch = batch_of(task, 4)
    step = given_step(task, batch, [50, 120, 150, 700], error=0.3)

    def gradients(rows: slice) -> Tensor:
        some = Step(**{name: value[rows] for name, value in vars(step).items()})
        part = replace(batch, keypoints=batch.keypoints[rows], images=None)
        return torch.autograd.grad(reward.reward(some, part, task.backbone), step.prediction)[0]

    whole, parts = gradients(slice(None)), (gradients(slice(0, 2)) + gradients(slice(2, 4))) / 2
    assert whole.any() and torch.allclose(whole, parts, rtol=1e-3, atol=1e-7 * whole.abs().max())
    reward.faithful = True
    assert not torch.allclose(gradients(slice(None)), (gradients(slice(0, 2)) + gradients(slice(2, 4))) / 2, rtol=0.1)


@pytest.mark.parametrize(
    "words", [["backbone=mannequin"], ["backbone=mannequin_dit_untrained", "sampler=flow"]], ids=" ".join
)
def test_the_right_prediction_has_nearly_the_best_reward_whatever_the_noise_process(words: list[str]) -> None:
    with configured("train", "adapter=controlnet", *words, "loss=reward", *SMALL) as cfg:
        task, reward = task_of(cfg)
        batch = batch_of(task, 4)
        errors = [
            float(reward.reward(given_step(task, batch, [150] * 4, error), batch, task.backbone).detach())
            for error in (0.0, 2.0, 6.0)
        ]
        assert errors[0] < 0.8 * errors[1] and errors[1] < errors[2]


SMALL = ("data.train.count=64", "progress=none", "trainer.precision=32-true")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_gradient_reaches_every_method_and_neither_teacher_nor_autoencoder(
    adapter: str, sighted: list[str]
) -> None:
    with configured("train", *sighted, *REWARD, f"adapter={adapter}", "trainer.precision=32-true") as cfg:
        task, reward = task_of(cfg)
        losses = task.losses(batch_of(task, 4))
        losses["loss"].backward()
        own = float(losses["loss"].detach()) - reward.weight * float(losses["reward"])
        assert float(losses["reward"]) > 0 and not losses["reward"].requires_grad and own > 0
        task.zero_grad()
        batch = batch_of(task, 4)
        state = task.adapter.encode(batch)
        step = task.step(batch, state.text, lambda noisy, t: task.adapter.inject(state, noisy, t))
        reward.reward(step, batch, task.backbone).backward()
        learning = [p for p in task.parameters() if p.requires_grad]
        assert sum(p.grad is not None and bool(p.grad.any()) for p in learning) > 0
        fixed: list[Any] = [*reward.teacher.parameters(), *task.backbone.autoencoder.parameters()]  # type: ignore[union-attr]
        assert all(p.grad is None and not p.requires_grad for p in fixed)
        assert not any("teacher" in name for name, _ in task.named_modules()) and not reward.teacher.training


def test_the_reward_falls_where_it_is_all_that_is_minimised(shipped: DictConfig) -> None:
    task, reward = task_of(shipped)
    batch = batch_of(task, 4)
    optimizer = torch.optim.AdamW(task.adapter.parameters(), lr=2e-3)
    values = []
    for _ in range(8):
        state = task.adapter.encode(batch)
        step = task.step(batch, state.text, lambda noisy, t: task.adapter.inject(state, noisy, t), 200)  # noqa: B023
        loss = reward.reward(step, batch, task.backbone)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.9 * values[0] and sorted(values, reverse=True) == values


def test_memory_is_that_of_the_images_that_are_decoded_together(sighted: list[str]) -> None:
    with configured("train", *sighted, *REWARD, "trainer.precision=32-true") as cfg:
        task, reward = task_of(cfg)
        peaks = {}
        for count, reward.at_once in ((8, 8), (8, 1), (24, 1)):
            batch = batch_of(task, count)
            step = given_step(task, batch, [100] * count)
            with LiveBytes() as live:
                reward.reward(step, batch, task.backbone).backward()
            peaks[count, reward.at_once] = live.peak
        assert peaks[8, 1] < 0.3 * peaks[8, 8]
        assert (peaks[24, 1] - peaks[8, 1]) / 16 < 0.15 * peaks[8, 8] / 8  # latents and wanted heatmaps


@pytest.mark.parametrize("wanted", ["poses", "image"])
def test_a_reward_changes_what_is_trained_and_is_in_no_file(wanted: str, sighted: list[str], tmp_path: Path) -> None:
    """The images come beside their cached latents; the curve of the reward stands beside that of the loss."""
    usual = ["adapter=t2i_adapter", "budget.steps=2"]
    plain = trained(sighted, tmp_path / "plain", *usual)
    options = [*usual, *REWARD, f"loss.wanted={wanted}", "trainer.log_every_n_steps=1"]
    rewarded = trained(sighted, tmp_path / "rewarded", *options)
    assert plain.keys() == rewarded.keys() and not equal(plain, rewarded)
    curve = pd.read_csv(next((tmp_path / "rewarded").rglob("metrics.csv")))["train/reward"].dropna()
    assert len(curve) == 2 and (curve > 0).all()


def test_an_interrupted_training_with_a_reward_ends_at_the_same_weights(
    sighted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with parts of batches and averages; nothing of the teacher is in the checkpoint."""
    options = ["adapter=t2i_adapter", *REWARD, "optim.accumulate=2", "budget.steps=4"]
    whole = trained(sighted, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(sighted, tmp_path / "broken", *options)
    (checkpoint,) = (tmp_path / "broken").rglob("last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state and all(key.startswith("adapter.") for key in state)
    assert equal(whole, trained(sighted, tmp_path / "broken", *options))


def test_updates_in_the_backward_pass_which_runs_twice_end_at_the_same_weights(
    sighted: list[str], tmp_path: Path
) -> None:
    options = ["adapter=t2i_adapter", *REWARD, "optim.clip=0.01", "budget.steps=2"]
    usual = trained(sighted, tmp_path / "usual", *options)
    assert equal(usual, trained(sighted, tmp_path / "freed", *options, "optim.in_backward=true"))


def test_training_plainly_and_then_with_the_reward(sighted: list[str], tmp_path: Path) -> None:
    """As published: ``checkpoint=`` is a cell, or its method folder."""
    short = ["adapter=t2i_adapter", "budget.steps=1", "optim.warmup=0"]
    first = trained(sighted, tmp_path / "first", *short)
    cell = next((tmp_path / "first").rglob("method")).parent
    still = [*short, *REWARD, "optim.lr=1e-12", f"checkpoint='{cell}'"]
    second = trained(sighted, tmp_path / "second", *still)
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-6) for key in first)


def test_the_identity_of_a_cell_without_a_reward_is_what_it_was(world: list[str]) -> None:
    with configured("train", *world, "adapter=controlnet") as cfg:
        now: Any = OmegaConf.to_container(cfg, resolve=True)
        before = {key: value for key, value in now.items() if key != "loss"}
        assert now["loss"] and value_hash(identity(now)) == value_hash(identity(before))
        assert isinstance(build_task(Components(OmegaConf.create(before))).loss, TrainingLoss)
    with configured("train", *world, "adapter=controlnet", "loss=reward") as cfg:
        found = identity(cfg)
        assert value_hash(found) != value_hash(identity(before))
        assert found["loss"]["teacher"] == found["estimator"]  # by the content of its files


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.teacher=null"], "a reward needs a pose network that reads images: loss.teacher='${estimator}'"),
        (["estimator=mobilenetv2", "estimator.path=."], "needs heatmaps with gradients, and MobileNetV2 has none"),
        (["task=estimator"], "choose task=adapter or loss=plain"),
        (["backbone=mannequin_pose", "adapter=gunet", "data=mannequin_single"], "and PoseSpace generates poses"),
        (["loss.weight=-1"], "loss.weight"),
        (["loss.wanted=maps"], "loss.wanted"),
    ],
)
def test_what_cannot_be_rewarded_is_refused_before_anything_is_loaded(
    words: list[str], said: str, world: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    used = [
        word for word in world if not (words[0].startswith(("estimator", "backbone")) and word.startswith(words[0][:8]))
    ]
    assert main(["check", "train", *used, "loss=reward", *words]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert said in printed and "Traceback" not in printed


def test_data_without_people_and_networks_that_learn_nothing_are_one_sentence(tiny: DictConfig) -> None:
    task, reward = task_of(tiny)
    data = task.components.data("train")

    class Empty(type(data)):  # type: ignore[misc]
        def seen(self, *args: Any, **more: Any) -> Any:
            return replace(super().seen(*args, **more), keypoints=np.zeros((0, 17, 3), np.float32))

    task.require(data)
    data.__class__ = Empty
    with pytest.raises(UserError, match=r"nobody is labelled in 24 samples of mannequin; take loss.wanted=image"):
        task.require(data)
    reward.wanted = "image"
    task.require(data)
    reward.timesteps = (2000, 3000)
    with pytest.raises(UserError, match="rewards no step of"):
        task.require(data)

    class Rounding(MannequinJudge):
        @torch.no_grad()
        def heatmaps(self, images: Tensor) -> Tensor:
            return super().heatmaps(images)

        expected_heatmaps = Estimator.expected_heatmaps

    other = ConsistencyReward(Rounding())
    with pytest.raises(UserError, match="Rounding does not say how its heatmaps show a pose; take loss.wanted=image"):
        other.require(task.backbone, data)
    with pytest.raises(ValueError, match=r"loss.timesteps is \[300, 200\]; expected the first one and the last one"):
        ConsistencyReward(MannequinJudge(), timesteps=(300, 200))
    other.wanted, batch = "image", batch_of(task, 2)
    with pytest.raises(UserError, match="heatmaps of Rounding have no gradient"):
        other.reward(given_step(task, batch, [100, 100]), batch, task.backbone)


def test_another_network_than_the_judge_rewards(world: list[str], tmp_path: Path) -> None:
    MannequinJudge(widths=(8, 8, 8, 8)).save(tmp_path / "other")
    words = ["+estimator@loss.teacher=mannequin", f"loss.teacher.folder={tmp_path / 'other'}"]
    with configured("train", *world, "loss=reward", *words) as cfg:
        assert json.dumps(identity(cfg)["loss"]["teacher"]) != json.dumps(identity(cfg)["estimator"])
        assert task_of(cfg)[1].teacher.config["widths"] == [8, 8, 8, 8]


def test_every_loss_is_described() -> None:
    for file in (conf_dir() / "loss").glob("*.yaml"):
        assert file.read_text().startswith("# ") and "_target_: posegen.losses." in file.read_text()
