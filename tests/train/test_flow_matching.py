"""Flow matching in the one trainer and the one sampler: a tiny transformer of Stable Diffusion 3's class."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from posegen.adapters.none import NoAdapter
from posegen.backbones.base import Injection
from posegen.backbones.mannequin import untrained_transformer
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.backbones.text import Text
from posegen.cli import main
from posegen.config.checking.check import validate
from posegen.data.base import PoseBatch
from posegen.data.mannequin.captions import VOCABULARY
from posegen.errors import UserError
from posegen.runner.components import Components
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.inpainting import Kept
from posegen.runner.user_requests.pipeline_sampler import NoisyBatch
from posegen.train.tasks import TextToImageTask
from tests.backbones.sd3_models import fresh_parts
from tests.tiny import configured


@pytest.fixture
def flow_world(world: list[str], tmp_path: Path) -> list[str]:
    """The tiny world with a transformer in the place of the U-Net, and training that looks at every step."""
    kept = [override for override in world if not override.startswith("backbone.")]
    autoencoder = next(word.partition("=")[2] for word in world if word.startswith("backbone.autoencoder"))
    torch.manual_seed(0)
    untrained_transformer(autoencoder, VOCABULARY, width=16, layers=2, heads=2, text_dim=16).save(tmp_path / "flow")
    place = [f"backbone.path={tmp_path / 'flow'}", f"backbone.autoencoder={autoencoder}", "backbone.recipe=mannequin"]
    small = ["budget.steps=2", "trainer.log_every_n_steps=1", "validation.every=1", "validation.images=4"]
    return [*kept, "backbone=sd3", *place, *small, "backbone.t5=false", f"paths.output={tmp_path / 'out'}"]


@pytest.mark.parametrize(
    ("adapter", "dtype"), [("controlnet", "bfloat16"), ("humansd", "bfloat16"), ("humansd", "float32")]
)
def test_a_method_trains_with_live_curves_and_is_sampled(
    flow_world: list[str], tmp_path: Path, adapter: str, dtype: str
) -> None:
    """Whatever the frozen parts are held in, what trains is held in single precision."""
    words = [*flow_world, f"adapter={adapter}", f"backbone.dtype={dtype}"]
    assert main(["train", *words]) == 0
    (metrics,) = (tmp_path / "out").rglob("metrics.csv")
    with metrics.open(newline="") as file:
        seen = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"train/loss", "val/loss", "val/loss_t125", "val/loss_t875"} <= seen
    assert any(name.startswith("live/") for name in seen)
    (weights,) = (tmp_path / "out" / "train").rglob("method/**/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in load_file(weights).values()} == {torch.float32}
    assert main(["sample", *words]) == 0
    assert len(list((tmp_path / "out" / "sample").rglob("*.png"))) >= 6


def test_a_scheduler_of_another_process_is_refused_before_anything_is_loaded(flow_world: list[str]) -> None:
    with configured("train", *flow_world, "sampler=ddim") as cfg:
        (problem,) = validate(cfg)
        assert problem.key == "sampler.scheduler"
        assert "does not fit StableDiffusion3, which is trained by flow matching; choose sampler=flow" in str(problem)
    with configured("train", *flow_world, "sampler=flow") as cfg:  # the way out
        assert validate(cfg) == []


@pytest.mark.parametrize("adapter", ["stable_pose", "dnaf"])
def test_methods_without_their_place_are_refused_before_anything_is_loaded(
    flow_world: list[str], adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in flow_world if not word.startswith("backbone.path")]
    assert main(["check", "train", *words, "backbone.path=.", f"adapter={adapter}"]) == 1
    said = "".join(capsys.readouterr())
    assert "StableDiffusion3 has blocks, control_copy, latents, tokens; choose a backbone= that has it" in said


def test_weights_of_variance_preserving_steps_are_refused(flow_world: list[str]) -> None:
    with (
        configured("train", *flow_world, "task=text_to_image", "adapter=none") as cfg,
        pytest.raises(UserError, match="task.min_snr=5.0 weighs steps of variance-preserving noise, not flow matching"),
    ):
        TextToImageTask(Components(cfg), min_snr=5.0)


class Oracle(StableDiffusion3):
    """Predicts the velocity to ``clean_latents`` exactly, whatever it is asked."""

    clean_latents: Tensor

    def predict(self, latents: Tensor, timesteps: Tensor, text: Text, injection: Injection) -> Tensor:
        return (latents - self.clean_latents) / self.process.fraction(timesteps).view(-1, 1, 1, 1)


def batch(noise: Tensor) -> NoisyBatch:
    draw = torch.Generator().manual_seed(3)
    text = Text(torch.randn(2, 5, 48, generator=draw), torch.randn(2, 40, generator=draw))
    pictures = torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1
    plain = PoseBatch(["0", "1"], [""] * 2, [np.zeros((0, 17, 3))] * 2, (64, 64), images=pictures, text=text)
    return NoisyBatch(**{**vars(plain), "negative_text": text[:1]}, noise=noise)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("scheduler", [None, "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("skip", [0, 2])
def test_what_is_kept_has_the_noise_of_the_next_step(scheduler: str | None, skip: int, dynamic: bool) -> None:
    """Where the model is exact, keeping the picture changes nothing; with ``skip`` the steps start at a later level."""
    if dynamic and scheduler:
        return  # refused, see the tests of the noise process
    parts = fresh_parts()
    parts.scheduler = {**parts.scheduler, "use_dynamic_shifting": dynamic}
    adapter, sampler = NoAdapter(), Sampler(scheduler, steps=6, guidance=1.0, skip=skip)
    adapter.attach(Oracle.from_parts(parts))
    body, mask = adapter.backbone, torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, :, :32], mask[1, 8:24, 32:] = True, True
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = Kept.of(body, batch(noise), mask)
    body.clean_latents = kept.clean
    built = sampler.build(body, (64, 64))
    first, levels = built.timesteps[skip * built.order], []
    start = body.process.add_noise(kept.clean, kept.noise, first.expand(2))

    def blended(latents: Tensor, noised: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        levels.append(noised(torch.zeros_like(latents), torch.ones_like(latents))[0, 0, 0, 0].item())
        return kept(latents, noised)

    alone = torch.stack(list(sampler.denoising(adapter, body, batch(start))))
    together = torch.stack(list(sampler.denoising(adapter, body, batch(start), blended)))
    assert (alone - together).abs().max() < 1e-3
    assert levels == sorted(levels, reverse=True) and levels[-1] == 0 and len(levels) == len(alone)
    assert torch.allclose(together[-1], kept.clean, atol=1e-3)
