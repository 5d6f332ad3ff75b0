"""HumanSD against tensors of the official program, with weights that go through `HumanSD.convert`; and small cases of its own.

Left out, because they need the pose network of the training loss: ``loss``, ``loss_vlb``, ``loss_weight``, ``loss_per_sample``,
``loss_trainmode_bn`` and the intermediates behind ``difference_image``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.humansd import HumanSD
from posegen.backbones import ldm_keys as ldm
from posegen.backbones.base import Backbone, Geometry, Step
from posegen.backbones.files import UnknownKeys
from posegen.backbones.single_file import unet_of, vae_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.data.base import PoseBatch
from posegen.runner.sampler import Sampler
from tests.adapters.cases import SD2, Case, backbone_of, full_size, original, scrambled

TEACHER = {"loss", "loss_vlb", "loss_weight", "loss_per_sample", "loss_trainmode_bn"}


class Given(HumanSD):
    """HumanSD with text states and pose latents that are given."""

    state: State

    def encode(self, batch: PoseBatch) -> State:
        return self.state


class Start(PoseBatch):
    """A batch whose initial noise is given."""

    noise: Tensor

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.noise


class Demo(Sampler):
    """The official demos: pure noise enters at the second of the timesteps, which the shared sampler does not offer."""

    def build(self, backbone: Backbone) -> Any:
        scheduler = super().build(backbone)
        scheduler.timesteps = scheduler.timesteps[1:]
        return scheduler


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.read("humansd_full")


@pytest.fixture(scope="module")
def method(case: Case) -> Given:
    config, sizes = case.facts["config"]["unet_config"], case.facts["config"]["ddconfig"]
    channels, layers = tuple(sizes["ch"] * m for m in sizes["ch_mult"]), sizes["num_res_blocks"]
    vae = vae_of(channels, layers, case.facts["config"]["embed_dim"])
    weights = ldm.vae_tensors(ldm.below(case.weights, ldm.VAE), ldm.vae_table(len(channels), layers))
    vae.load_state_dict(weights.tensors)
    assert not weights.unknown
    adapter, backbone = Given(), backbone_of(Geometry.from_ldm(config), vae)
    adapter.attach(backbone)
    converted = adapter.convert(case.weights)
    assert converted.keys() == {f"backbone.unet.{key}" for key in backbone.unet.state_dict()}
    backbone.unet.load_state_dict({key.removeprefix("backbone.unet."): value for key, value in converted.items()})
    adapter.state = State(case.io["in.context"], case.io["in.context_uncond"]).having(pose=case.io["in.pose_latent"])
    return adapter


def backbone(method: HumanSD) -> StableDiffusion:
    return method.backbone  # type: ignore[return-value]


@torch.no_grad()
def predicted(method: Given, state: State, noisy: Tensor, timesteps: Tensor) -> Tensor:
    return backbone(method).predict(noisy, timesteps, state.text, method.inject(state, noisy, timesteps))


def test_predictions(case: Case, method: Given) -> None:
    noisy, timesteps = case.io["in.x"], case.io["in.t"].long()
    branches = method.branches(method.state, case.facts["sampler"]["guidance"])
    with_text, without = (predicted(method, state, noisy, timesteps) for _, state in branches)
    case.check("eps", with_text)
    case.check("eps_uncond", without)
    case.check("eps_cfg", sum(w * e for (w, _), e in zip(branches, (with_text, without), strict=True)))


def test_intermediates(case: Case, method: Given) -> None:
    unet, seen = backbone(method).unet, {}

    def see(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _module, _inputs, made: seen.update({name: made}))  # None: changes nothing

    hooks = [see("after_input_conv", unet.conv_in), see("after_middle", unet.mid_block)]
    predicted(method, method.state, case.io["in.x"], case.io["in.t"].long())
    for hook in hooks:
        hook.remove()
    for name, made in seen.items():
        case.check(name, made)


@pytest.mark.parametrize(("name", "sampler"), [("ddim5", Sampler), ("demo_decode4of5", Demo)])
def test_sampling(case: Case, method: Given, name: str, sampler: type[Sampler]) -> None:
    x = case.io["in.x"]
    batch = Start([str(i) for i in range(len(x))], ["a"] * len(x), [np.zeros((0, 17, 3))] * len(x), (x.shape[2] * 8, x.shape[3] * 8))
    object.__setattr__(batch, "noise", x)
    facts = case.facts["sampler"]
    used = sampler(steps=len(facts["ddim_timesteps"]), guidance=facts["guidance"])
    assert Sampler.build(used, backbone(method)).timesteps.tolist() == facts["ddim_timesteps"][::-1]
    with torch.no_grad():
        case.check(name, used.latents(method, backbone(method), batch))


def test_plain_loss(case: Case, method: Given) -> None:
    clean, noise, timesteps = case.io["in.x_start"], case.io["in.noise"], case.io["in.t_loss"].long()
    noisy = backbone(method).add_noise(clean, noise, timesteps)
    case.check("x_noisy", noisy)
    prediction = predicted(method, method.state, noisy, timesteps)
    case.check("eps_loss", prediction)
    step = Step(prediction, backbone(method).target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    case.check("loss_plain_mse", method.loss(step, method.state, None)["loss"])  # type: ignore[arg-type]


@torch.no_grad()
def test_autoencoder(case: Case, method: Given) -> None:
    decoded = backbone(method).from_latents(case.io["in.x_start"])
    case.check("vae_decoded", decoded)
    moments = case.io["mid.vae_moments_of_tanh_decoded"]
    case.check("vae_moments_of_tanh_decoded", backbone(method).autoencoder.encode(decoded.tanh()).latent_dist.parameters)
    latents = backbone(method).to_latents(decoded.tanh())
    torch.testing.assert_close(latents, moments[:, :4] * case.facts["config"]["scale_factor"], rtol=1e-3, atol=1e-4)


def test_every_output_of_the_case_is_compared_or_left_out_by_name(case: Case) -> None:
    compared = {"eps", "eps_uncond", "eps_cfg", "ddim5", "demo_decode4of5", "loss_plain_mse"}
    assert {name for name in case.io if name.startswith("out.")} == {f"out.{name}" for name in compared | TEACHER}


# Without the reference cases.


@pytest.fixture(scope="module")
def own() -> HumanSD:
    torch.manual_seed(0)
    adapter = HumanSD()
    adapter.attach(backbone_of(SD2))
    scrambled(backbone(adapter).unet)
    return adapter


def official(adapter: HumanSD) -> dict[str, Tensor]:
    return original(backbone(adapter).unet.state_dict(), ldm.unet_table(SD2), ldm.UNET)


def test_original_names_come_back(own: HumanSD) -> None:
    converted, unet = own.convert(official(own)), backbone(own).unet.state_dict()
    assert converted.keys() == {f"backbone.unet.{key}" for key in unet}
    assert all(torch.equal(converted[f"backbone.unet.{key}"], value) for key, value in unet.items())
    assert converted["backbone.unet.conv_in.weight"].shape[1] == 2 * SD2.latent_channels


def test_the_rest_is_left_out_by_rule_and_other_keys_are_named(own: HumanSD) -> None:
    rest = ["first_stage_model.quant_conv.bias", "cond_stage_model.model.logit_scale", "mmpose_model.backbone.conv1.weight", "betas", "posterior_variance"]
    whole = {**official(own), **dict.fromkeys(rest, torch.zeros(1))}
    assert len(own.convert(whole)) == len(official(own))
    with pytest.raises(UnknownKeys, match="1 keys that HumanSD has no place for: control_model.x"):
        own.convert({**whole, "control_model.x": torch.zeros(1)})


def test_full_size_keys() -> None:
    facts, keys = full_size("humansd_keys.json")
    sd21 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (5, 10, 20, 20), 1024, linear_projection=True)
    with torch.device("meta"):
        unet = unet_of(sd21, in_channels=8)
    adapter = HumanSD()
    object.__setattr__(adapter, "backbone", type("Sized", (), {"geometry": sd21, "unet": unet}))
    converted = adapter.convert({**keys, "mmpose_model.backbone.conv1.weight": torch.empty(0)})
    assert {key: value.shape for key, value in converted.items()} == {f"backbone.unet.{key}": value.shape for key, value in unet.state_dict().items()}
    assert sum(p.numel() for p in unet.parameters()) == facts["trainable_parameters"] == 865_922_244
