"""The consistency reward: the losses of a step, and their gradients with respect to the prediction."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import State
from posegen.adapters.none import NoAdapter
from posegen.backbones.base import Geometry, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import SCHEDULER
from posegen.backbones.process import noise_process
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.losses.reward import ConsistencyReward
from posegen.parity.build import Outputs, batch_of_size, stable_diffusion
from posegen.parity.case import Case


class PoseNetwork(nn.Module):
    """The network of the cases; it looks at images ``[B, 3, H, W]`` in [-1, 1] and shows ``[B, maps, H/4, W/4]``."""

    def __init__(self, width: int, maps: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Conv2d(width, maps, 1)

    def heatmaps(self, images: Tensor) -> Tensor:
        return self.head(F.silu(self.conv2(F.silu(self.conv1((images + 1) / 2))))).sigmoid()


class GivenMaps(ConsistencyReward):
    """The reward whose right heatmaps are given, where the case has some."""

    given: Tensor | None = None

    def wanted_heatmaps(self, batch: PoseBatch, rows: Tensor) -> Tensor:
        return super().wanted_heatmaps(batch, rows) if self.given is None else self.given[rows]


def reward_outputs(case: Case) -> Outputs:
    config, given = case.config, case.inputs
    teacher, backbone = PoseNetwork(config["reward_model"]["width"], config["reward_model"]["maps"]), backbone_of(case)
    teacher.load_state_dict(ldm.below(case.weights, "reward_model."))
    limits = config["min_timestep_rewarding"], config["max_timestep_rewarding"]
    reward = GivenMaps(teacher, "image", config["grad_scale"], limits, faithful=True)
    reward.given = given.get("heatmaps")
    process, clean, noise, timesteps = backbone.process, given["clean"], given["noise"], given["timesteps"].long()
    noisy, prediction = process.add_noise(clean, noise, timesteps), given["prediction"].clone().requires_grad_()
    step = Step(prediction, process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    size = [side * backbone.geometry.latent_factor for side in clean.shape[2:]]
    batch = batch_of_size(len(clean), size, images=given.get("image"))
    state = State(Text(clean.new_zeros(len(clean), 1, 1)), Text(clean.new_zeros(len(clean), 1, 1)))
    with torch.enable_grad():
        own = NoAdapter().loss(step, state, batch)
        losses, alone = reward(own, step, batch, backbone), reward.reward(step, batch, backbone)
        (grad,) = torch.autograd.grad(losses["loss"], prediction)
        (reward_grad,) = torch.autograd.grad(alone + 0 * prediction.sum(), prediction)  # also where nothing counts
    yield from {"loss": losses["loss"], "pretrain_loss": own["loss"], "reward_loss": losses["reward"]}.items()
    yield from {"grad": grad, "reward_grad": reward_grad}.items()
    clean_pred, rows = process.clean(noisy, prediction, timesteps), torch.arange(len(clean))
    wanted = reward.wanted_heatmaps(batch, rows)
    yield from {"noisy": noisy, "clean_pred": clean_pred, "label_maps": wanted}.items()
    yield "rewarded", reward.counts(timesteps, process).float()
    yield "reward_per_sample", reward.errors(clean_pred, wanted, backbone)


def backbone_of(case: Case) -> StableDiffusion:
    """The case's autoencoder and noise process, with a U-Net that nobody runs."""
    config = case.config["vae"]
    vae = AutoencoderKL(**config)
    unused = {key: value for key, value in vae.state_dict().items() if key.startswith(("encoder.", "quant_conv."))}
    vae.load_state_dict(unused | ldm.below(case.weights, "vae."))  # a case may leave those out
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    geometry = Geometry(config["latent_channels"], factor, (32, 32), (False, False), 1, (1, 1), 32)
    backbone = stable_diffusion(geometry, vae=vae.requires_grad_(False).eval())
    backbone.process = noise_process({**SCHEDULER, "prediction_type": case.config["prediction_type"]})
    return backbone
