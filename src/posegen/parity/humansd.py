"""HumanSD: predictions, sampling, and the heatmap-guided loss with its pose network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from posegen.adapters.base import State
from posegen.adapters.humansd import HumanSD
from posegen.backbones.base import Backbone, Geometry, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.metrics.estimators.higherhrnet import HigherHRNet, aggregated
from posegen.metrics.estimators.hrnet import Stage
from posegen.parity.build import converted, kl_autoencoder, stable_diffusion
from posegen.parity.case import Case
from posegen.parity.higherhrnet import head_of
from posegen.runner.sampler import Sampler

TEACHER = "mmpose_model."  # beginning of the pose network's keys


class Given(HumanSD):
    """HumanSD with text states and pose latents that are given."""

    state: State

    def encode(self, batch: PoseBatch) -> State:
        return self.state


class Drawn(TorchFunctionMode):
    """Within it, ``torch.randn`` returns ``rows`` one after another: the case's random numbers take the way that the project's own take."""

    def __init__(self, rows: Iterable[Tensor]) -> None:
        super().__init__()
        self.rows = iter(rows)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.rows) if function is torch.randn else function(*args, **(kwargs or {}))


class Listed(Sampler):
    """The shared sampler at given timesteps: the official list has one more than was asked for where the steps do not divide the process."""

    def __init__(self, timesteps: Sequence[int], backbone: StableDiffusion, **settings: Any) -> None:
        apart = timesteps[1] - timesteps[0]
        super().__init__(steps=backbone.process.length // apart, **settings)
        self.timesteps = torch.tensor(sorted(timesteps, reverse=True))

    def build(self, backbone: Backbone) -> Any:
        scheduler = super().build(backbone)
        scheduler.timesteps = self.timesteps
        return scheduler


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Every output."""
    config = case.config
    if config["parameterization"] != "eps":
        raise UserError(
            f"{case.folder / 'case.json'} has parameterization {config['parameterization']!r}; HumanSD predicts the noise, eps"
        )
    vae = kl_autoencoder(config["ddconfig"], config["embed_dim"], case.weights)
    vae.register_to_config(scaling_factor=config["scale_factor"])
    factor = 2 ** (len(config["ddconfig"]["ch_mult"]) - 1)
    backbone = stable_diffusion(Geometry.from_ldm(config["unet_config"], latent_factor=factor), vae=vae)
    method = Given(
        loss_kind="heatmap_reference", threshold=config["estimate_thresh"], loss_weight=config["pose_loss_weight"]
    )
    method = converted(method, backbone, case.weights)
    text, null = (Text(case.inputs[name]) for name in ("context", "context_uncond"))
    method.state = State(text, null).having(pose=case.inputs["pose_latent"])
    return {
        **dict(predictions(case, method, backbone)),
        **dict(sampled(case, method, backbone)),
        **dict(losses(case, method, backbone)),
    }


def predictions(case: Case, method: Given, backbone: StableDiffusion) -> Iterator[tuple[str, Tensor]]:
    """One pass per branch of guidance, with what goes through the U-Net on the way; and the autoencoder."""
    noisy, timesteps = case.inputs["x"], case.inputs["t"].long()
    branches = method.branches(method.state, case.facts["sampler"]["guidance"])
    with watched(after_input_conv=backbone.unet.conv_in, after_middle=backbone.unet.mid_block) as seen:
        made = [predicted(method, backbone, state, noisy, timesteps) for _, state in branches]
    yield from ((name, output) for name, (_, output) in seen.items())
    yield from zip(("eps", "eps_uncond"), made, strict=True)
    yield (
        "eps_cfg",
        torch.stack([weight * prediction for (weight, _), prediction in zip(branches, made, strict=True)]).sum(0),
    )
    image = backbone.from_latents(case.inputs["x_start"])
    yield "vae_decoded", image
    yield "vae_moments_of_tanh_decoded", backbone.autoencoder.encode(image.tanh()).latent_dist.parameters


def sampled(case: Case, method: Given, backbone: StableDiffusion) -> Iterator[tuple[str, Tensor]]:
    """Whole loops, and those of the demos, which leave the first steps out: ``demo_decode4of5`` runs the last four of five."""
    facts, start = case.facts["sampler"], case.inputs["x"]
    for name in case.expected:
        if part := re.fullmatch(r"ddim\d+|demo_decode(\d+)of\d+", name):
            skip = len(facts["ddim_timesteps"]) - int(part[1]) if part[1] else 0
            sampler = Listed(facts["ddim_timesteps"], backbone, guidance=facts["guidance"], skip=skip)
            with Drawn(start):
                made = sampler.latents(method, backbone, batch(case, range(len(start))))
            yield name, made


def losses(case: Case, method: Given, backbone: StableDiffusion) -> Iterator[tuple[str, Tensor]]:
    """One training step, with the pose network in evaluation mode, and at last in the training mode that it has in a run of the official program."""
    clean, noise, timesteps = case.inputs["x_start"], case.inputs["noise"], case.inputs["t_loss"].long()
    noisy, rows = backbone.process.add_noise(clean, noise, timesteps), range(len(clean))
    prediction = predicted(method, backbone, method.state, noisy, timesteps)
    step = Step(prediction, backbone.process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    teacher = pose_network(case.config["pose_net"], ldm.below(case.weights, TEACHER), str(case.folder))
    object.__setattr__(method, "teacher", teacher)

    def loss(some: range) -> dict[str, Tensor]:
        taken = Step(**{name: value[some] for name, value in vars(step).items()})
        with Drawn(case.inputs["posterior_noise"][some]):
            return method.loss(taken, method.state, batch(case, some))

    yield from {"x_noisy": noisy, "eps_loss": prediction}.items()
    with Drawn(case.inputs["posterior_noise"]), watched(teacher=teacher, encoder=backbone.autoencoder.encoder) as seen:
        weight = method.weight(step, batch(case, rows))
    yield from {"loss_weight": weight, "weight_latent": (weight - 1) / method.loss_weight}.items()
    yield from {"difference_image": seen["teacher"][0], "heatmaps": aggregated(seen["teacher"][1])[0]}.items()
    yield "below_threshold_count_at_image_size", seen["encoder"][0][:, :1]
    whole = loss(rows)
    yield from {"loss": whole["loss"], "loss_plain_mse": whole["plain"]}.items()
    each = [loss(range(i, i + 1)) for i in rows]
    yield "loss_per_sample", torch.stack([one["loss"] for one in each])
    yield (
        "loss_vlb",
        (
            bound_weights(backbone.process.power(torch.arange(backbone.process.length)).double())[timesteps]
            * torch.stack([one["plain"] for one in each])
        ).mean(),
    )
    teacher.train()
    yield "loss_trainmode_bn", loss(rows)["loss"]


def predicted(method: HumanSD, backbone: StableDiffusion, state: State, noisy: Tensor, timesteps: Tensor) -> Tensor:
    return backbone.predict(noisy, timesteps, state.text, method.inject(state, noisy, timesteps))


@contextmanager
def watched(**modules: nn.Module) -> Iterator[dict[str, tuple[Tensor, Any]]]:
    """Within the context: what each module was given and returned when it was first called."""
    seen: dict[str, tuple[Tensor, Any]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            seen.setdefault(name, (inputs[0], output))

        return hook

    hooks = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def batch(case: Case, rows: range) -> PoseBatch:
    """As many images as ``rows``, of the case's size."""
    height, width = (side * 2 ** (len(case.config["ddconfig"]["ch_mult"]) - 1) for side in case.inputs["x"].shape[2:])
    return PoseBatch(
        [str(i) for i in rows], [""] * len(rows), [np.zeros((0, 17, 3), np.float32)] * len(rows), (height, width)
    )


def pose_network(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> HigherHRNet:
    """The case's HigherHRNet; every stage has the first of ``num_channels`` as the widths of its branches."""
    stages = [Stage(1, tuple(config["num_blocks"]["stage1"]), tuple(config["stage1_num_channels"]))]
    for number in range(2, 2 + len(config["num_modules"])):
        blocks = tuple(config["num_blocks"][f"stage{number}"])
        stages.append(
            Stage(config["num_modules"][f"stage{number}"], blocks, tuple(config["num_channels"][: len(blocks)]))
        )
    return HigherHRNet(stages, config["stem_width"], head_of(config["head"])).fill(weights, source)


def bound_weights(signal: Tensor) -> Tensor:
    """``[T]`` weights of the squared error in the variational bound (Ho et al. 2020, equation 12), the first of which would be infinite and repeats."""
    before = torch.cat([signal.new_ones(1), signal[:-1]])
    alpha = signal / before
    variance = (1 - alpha) * (1 - before) / (1 - signal)
    weights = (1 - alpha).square() / (2 * variance * alpha * (1 - signal))
    return torch.cat([weights[1:2], weights[1:]])
