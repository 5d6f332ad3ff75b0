"""HumanSD: predictions, sampling, and the heatmap-guided loss with its pose network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posegen.adapters.base import State
from posegen.adapters.humansd import HumanSD
from posegen.backbones.base import Backbone, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.metrics.estimators.higherhrnet import HigherHRNet, aggregated
from posegen.metrics.estimators.hrnet import Stage
from posegen.parity import build
from posegen.parity.build import Outputs, batch_of_size, converted, recorded, stable_diffusion
from posegen.parity.case import FACTS, Case
from posegen.parity.higherhrnet import head_of
from posegen.runner.sampler import Sampler


class Prepared(HumanSD):
    """HumanSD with text states and pose latents that are given."""

    state: State

    def encode(self, batch: PoseBatch) -> State:
        return self.state


class Drawn(TorchFunctionMode):
    """Within it ``torch.randn`` returns ``rows`` one after another, the random numbers of the case."""

    def __init__(self, rows: Iterable[Tensor]) -> None:
        super().__init__()
        self.rows = iter(rows)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.rows) if function is torch.randn else function(*args, **(kwargs or {}))


class TimestepSampler(Sampler):
    """The shared sampler at given timesteps; the official list may have one more than was asked for."""

    def __init__(self, timesteps: Sequence[int], backbone: StableDiffusion, **settings: Any) -> None:
        apart = timesteps[1] - timesteps[0]
        super().__init__(steps=backbone.process.length // apart, **settings)
        self.timesteps = torch.tensor(sorted(timesteps, reverse=True))

    def build(self, backbone: Backbone, size: tuple[int, int] | None = None) -> Any:
        scheduler = super().build(backbone, size)
        scheduler.timesteps = self.timesteps
        return scheduler


def humansd_outputs(case: Case) -> Outputs:
    config = case.config
    if config["parameterization"] != "eps":
        given = f"{case.place / FACTS} has parameterization {config['parameterization']!r}"
        raise build.Inexpressible(f"{given}; HumanSD predicts the noise, eps")
    vae = build.kl_autoencoder(config["ddconfig"], config["embed_dim"], case.weights)
    vae.register_to_config(scaling_factor=config["scale_factor"])
    factor = 2 ** (len(config["ddconfig"]["ch_mult"]) - 1)
    backbone = stable_diffusion(build.geometry_of(config["unet_config"], latent_factor=factor), vae=vae)
    threshold, weight = config["estimate_thresh"], config["pose_loss_weight"]
    method = Prepared(loss_kind="heatmap_reference", threshold=threshold, loss_weight=weight)
    method = converted(method, backbone, case.weights)
    text, null = (Text(case.inputs[name]) for name in ("context", "context_uncond"))
    method.state = State(text, null).having(pose=case.inputs["pose_latent"])
    yield from predictions(case, method, backbone)
    yield from sampling_loops(case, method, backbone)
    yield from losses(case, method, backbone)


def predictions(case: Case, method: Prepared, backbone: StableDiffusion) -> Outputs:
    """One pass per branch of guidance, with values on the way through the U-Net; and the autoencoder."""
    noisy, timesteps = case.inputs["x"], case.inputs["t"].long()
    (w_text, with_text), (w_free, free) = method.branches(method.state, case.facts["sampler"]["guidance"])
    with recorded(after_input_conv=backbone.unet.conv_in, after_middle=backbone.unet.mid_block) as (_, returned):
        eps = prediction(method, backbone, with_text, noisy, timesteps)
    eps_uncond = prediction(method, backbone, free, noisy, timesteps)
    yield from returned.items()
    yield from {"eps": eps, "eps_uncond": eps_uncond, "eps_cfg": w_text * eps + w_free * eps_uncond}.items()
    image = backbone.from_latents(case.inputs["x_start"])
    yield "vae_decoded", image
    yield "vae_moments_of_tanh_decoded", backbone.autoencoder.encode(image.tanh()).latent_dist.parameters


def sampling_loops(case: Case, method: Prepared, backbone: StableDiffusion) -> Outputs:
    """Whole loops, and the demos' without the first steps: ``demo_decode4of5`` runs the last four of five."""
    facts, start = case.facts["sampler"], case.inputs["x"]
    for name in case.expected:
        if part := re.fullmatch(r"ddim\d+|demo_decode(\d+)of\d+", name):
            skip = len(facts["ddim_timesteps"]) - int(part[1]) if part[1] else 0
            sampler = TimestepSampler(facts["ddim_timesteps"], backbone, guidance=facts["guidance"], skip=skip)
            with Drawn(start):
                sampled = sampler.latents(method, backbone, images_of(case, len(start)))
            yield name, sampled


def losses(case: Case, method: Prepared, backbone: StableDiffusion) -> Outputs:
    """One training step with the pose network in evaluation mode, then in the training mode of the official program."""
    clean, noise, timesteps = case.inputs["x_start"], case.inputs["noise"], case.inputs["t_loss"].long()
    noisy, rows = backbone.process.add_noise(clean, noise, timesteps), range(len(clean))
    eps = prediction(method, backbone, method.state, noisy, timesteps)
    step = Step(eps, backbone.process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    teacher = pose_network(case.config["pose_net"], ldm.below(case.weights, "mmpose_model."), str(case.place))
    object.__setattr__(method, "teacher", teacher)

    def loss(some: range) -> dict[str, Tensor]:
        taken = Step(**{name: value[some] for name, value in vars(step).items()})
        with Drawn(case.inputs["posterior_noise"][some]):
            return method.loss(taken, method.state, images_of(case, len(some)))

    yield from {"x_noisy": noisy, "eps_loss": eps}.items()
    with Drawn(case.inputs["posterior_noise"]), recorded(teacher=teacher, encoder=backbone.autoencoder.encoder) as seen:
        weight = method.weight(step, images_of(case, len(rows)))
    given, returned = seen
    yield from {"loss_weight": weight, "weight_latent": (weight - 1) / method.loss_weight}.items()
    yield from {"difference_image": given["teacher"], "heatmaps": aggregated(returned["teacher"])[0]}.items()
    yield "below_threshold_count_at_image_size", given["encoder"][:, :1]
    whole, each = loss(rows), [loss(range(i, i + 1)) for i in rows]
    yield from {"loss": whole["loss"], "loss_plain_mse": whole["plain"]}.items()
    yield "loss_per_sample", torch.stack([one["loss"] for one in each])
    plain = torch.stack([one["plain"] for one in each])
    signal = backbone.process.power(torch.arange(backbone.process.length)).double()
    yield "loss_vlb", (bound_weights(signal)[timesteps] * plain).mean()
    teacher.train()
    yield "loss_trainmode_bn", loss(rows)["loss"]


def prediction(method: HumanSD, backbone: StableDiffusion, state: State, noisy: Tensor, timesteps: Tensor) -> Tensor:
    return backbone.predict(noisy, timesteps, state.text, method.inject(state, noisy, timesteps))


def images_of(case: Case, count: int) -> PoseBatch:
    factor = 2 ** (len(case.config["ddconfig"]["ch_mult"]) - 1)
    return batch_of_size(count, [side * factor for side in case.inputs["x"].shape[2:]])


def pose_network(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> HigherHRNet:
    """The case's HigherHRNet; every stage has the first of ``num_channels`` as the widths of its branches."""
    stages = [Stage(1, tuple(config["num_blocks"]["stage1"]), tuple(config["stage1_num_channels"]))]
    for number in range(2, 2 + len(config["num_modules"])):
        blocks = tuple(config["num_blocks"][f"stage{number}"])
        modules, widths = config["num_modules"][f"stage{number}"], tuple(config["num_channels"][: len(blocks)])
        stages.append(Stage(modules, blocks, widths))
    return HigherHRNet(stages, config["stem_width"], head_of(config["head"])).fill(weights, source)


def bound_weights(signal: Tensor) -> Tensor:
    """``[T]`` weights of the error in the variational bound (Ho et al. 2020, eq. 12); the second is the first, too."""
    before = torch.cat([signal.new_ones(1), signal[:-1]])
    alpha = signal / before
    variance = (1 - alpha) * (1 - before) / (1 - signal)
    weights = (1 - alpha).square() / (2 * variance * alpha * (1 - signal))
    return torch.cat([weights[1:2], weights[1:]])
