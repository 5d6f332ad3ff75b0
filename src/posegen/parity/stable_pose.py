"""Stable-Pose: its transformer, its first block, and the whole method with its loss and one guided step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.stable_pose import StablePose, positions
from posegen.backbones.base import Geometry, Injection, Step
from posegen.backbones.loading.ldm_keys import below
from posegen.backbones.process import VariancePreserving
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.parity.build import converted, stable_diffusion
from posegen.parity.case import Case
from posegen.runner.sampler import Sampler

Outputs = Iterator[tuple[str, Tensor]]

BLOCK, ENCODER = "branch.network.down_blocks.0.resnets.0.", "pose_encoder."
NO_ONE = PoseBatch((), (), (), (0, 0))  # the loss reads the state alone


def compute(case: Case) -> dict[str, Tensor]:
    """Every output of a case, and the intermediates that it holds.

    Raises:
        UserError: the case is of a module that is not known here.
    """
    kinds: dict[str, Callable[[Case], Outputs]] = {
        "PMSAViT": transformer,
        "FeatureExtractor": first_block,
        "StablePoseAdapter": whole,
    }
    kind = case.module.partition(" ")[0]
    if kind not in kinds:
        raise UserError(
            f"module {case.module!r} of {case.folder / 'case.json'} is not known; it begins with {', '.join(kinds)}"
        )
    wanted = case.expected.keys() | case.mids.keys()
    return {name: value.detach() for name, value in kinds[kind](case) if name in wanted}


def transformer(case: Case) -> Outputs:
    method = part_of(case, f"{BLOCK}transformer.")
    net, x, masks = method.block.transformer, case.inputs["x"], masks_of(case)
    seen, inputs = recorded(
        {"embed": net.embed, "mlp": net.mlps[-1], **{f"attn{i}": layer for i, layer in enumerate(net.attentions)}}
    )
    state = seeing(method, masks)
    with torch.no_grad():
        yield "y", net(x, method.layers(state))
        yield "token_mask", state["tokens"].transpose(0, 1)
        table = positions(x.shape[-2] // net.patch, x.shape[-1] // net.patch, net.dim)
        tokens = {**seen, "tokens": inputs["mlp"] + seen["mlp"], "pos_embedding": table}
        yield from ((name, strided(value, case.mids.get(name))) for name, value in tokens.items())
        yield "y_first_alone", net(x[:1], method.layers(seeing(method, masks[:1])))
        yield "y_nomask_first", net(x, method.layers(seeing(method, torch.ones_like(masks))))[:1]


def first_block(case: Case) -> Outputs:
    method = part_of(case, BLOCK, ENCODER)
    block, given, masks = method.block, case.inputs, masks_of(case)
    names = {"pose_feature": method.pose_encoder, "cond_conv": block.pose_conv, "vit_out": block.transformer}
    seen, inputs = recorded(names)
    with torch.no_grad():
        for name, shown in (("y", masks), ("y_nomask", torch.ones_like(masks))):
            state = method.conditioned(State(Text(given["emb"]), Text(given["emb"])), given["hint"], shown)
            yield name, block(given["x"], given["emb"], (state["pose"], method.layers(state)))
            if name == "y":
                yield from {**seen, "vit_in": inputs["vit_out"]}.items()
                yield "normed", torch.nn.functional.group_norm(seen["vit_out"], block.groups, eps=1e-5)


def whole(case: Case) -> Outputs:
    config, given = case.config, case.inputs
    backbone = stable_diffusion(Geometry.from_ldm(config), case.weights)
    times = {"beta_start": config["linear_start"], "beta_end": config["linear_end"]}
    times["num_train_timesteps"] = config["timesteps"]
    backbone.process = VariancePreserving({**backbone.process.config, **times})
    method, masks = literal(converted(method_of(case), backbone, case.weights)), masks_of(case)
    text, timesteps = State(Text(given["context"]), Text(given["context_uncond"])), given["timesteps"].long()
    with torch.no_grad():
        state = method.conditioned(text, given["hint"], masks)
        injection = method.inject(state, given["x"], timesteps)
        yield "pose_feature", method.pose_encoder(given["hint"])
        yield from ((f"res_{i:02}", residual) for i, residual in enumerate(injection.residuals))
        yield "eps", (eps := backbone.predict(given["x"], timesteps, state.text, injection))
        yield "eps_nocontrol", backbone.predict(given["x"], timesteps, state.text, Injection())
        free = method.conditioned(text, given["hint"], torch.ones_like(masks))
        yield (
            "eps_nomask",
            backbone.predict(given["x"], timesteps, text.text, method.inject(free, given["x"], timesteps)),
        )
        yield from guided_step(case, method, backbone, state)
    step = Step(
        eps.requires_grad_(),
        backbone.process.target(given["x_start"], given["noise"], timesteps),
        given["x"],
        given["x_start"],
        given["noise"],
        timesteps,
    )
    loss = method.loss(step, state, NO_ONE)["loss"]
    yield "loss", loss
    yield "loss_grad_eps", torch.autograd.grad(loss, step.prediction)[0]


def guided_step(case: Case, method: StablePose, backbone: StableDiffusion, state: State) -> Outputs:
    """One step of the sampler, whose settings the case tells in words; the branch without text comes first there."""
    steps, time, guidance = (stated(case, pattern) for pattern in (r"(\d+)-step", r"\bt=(\d+)", r"guidance ([\d.]+\d)"))
    scheduler = Sampler(steps=int(steps)).build(backbone)
    (w_text, with_text), (w_free, free) = method.branches(state, guidance)
    both, x = State.cat([free, with_text]), case.inputs["x_ddim"]
    repeated, timesteps = x.repeat(2, 1, 1, 1), torch.full((2 * len(x),), int(time))
    pair = backbone.predict(repeated, timesteps, both.text, method.inject(both, repeated, timesteps))
    yield "cfg_pair", pair
    without, full = pair.chunk(2)
    made = scheduler.step(w_text * full + w_free * without, int(time), x, eta=0.0)
    yield "ddim_x_prev", made.prev_sample
    yield "ddim_pred_x0", made.pred_original_sample


# What the modules share.


def method_of(case: Case) -> StablePose:
    """The method at the case's size, before it is attached."""
    config = {key.removeprefix("vit_"): value for key, value in case.config.items()}
    kernels = config["gaussian_kernels"]
    return StablePose(
        patch=config["patch_size"],
        heads=config["heads"],
        head_dim=config["dim_head"],
        mlp=config["mlp_dim"],
        reduced=config["dim"] // config["patch_size"] ** 2,
        pose_channels=config.get("inject_channels", [None])[0],
        kernels=kernels,
        radii=[0] * len(kernels),
        alpha=config.get("alpha", 5),
    )


def part_of(case: Case, *places: str) -> StablePose:
    """The method on a small backbone that has the case's first level, with official weights at and below ``places``, every key accounted for.

    Raises:
        UserError: a key has no place there.
    """
    channels, method = case.config["channels"], method_of(case)
    method.faithful = True
    method.attach(
        stable_diffusion(
            Geometry(4, 8, (channels,) * 2, (False,) * 2, 1, (1,) * 2, channels, norm_groups=math.gcd(channels, 32))
        )
    )
    if "emb_channels" in case.config:
        method.block.time_emb_proj = nn.Linear(case.config["emb_channels"], channels)
    weights = below(method.convert(case.weights), "adapter.")
    for place in places:
        method.get_submodule(place.removesuffix(".")).load_state_dict(below(weights, place))
    if beside := [key for key in weights if not key.startswith(places)]:
        raise UserError(f"{case.folder} holds weights of other modules than {case.module}: {', '.join(beside)}")
    return literal(method)


def literal(method: StablePose) -> StablePose:
    """``method`` with the lowest logit of the whole batch for masked pairs, as released."""
    for attention in method.block.transformer.attentions:
        attention.lowest_over = "batch"
    return method.eval()


def masks_of(case: Case) -> Tensor:
    """``[B, K, h, w]``; in the case the layers come first."""
    return case.inputs["pose_mask"].unflatten(0, (len(case.config["gaussian_kernels"]), -1)).transpose(0, 1).bool()


def seeing(method: StablePose, masks: Tensor) -> State:
    """A state with these masks and a blank drawing."""
    factor = method.backbone.geometry.latent_factor
    hint = torch.zeros(len(masks), 3, factor * masks.shape[-2], factor * masks.shape[-1])
    return method.conditioned(State(Text(hint), Text(hint)), hint, masks)


def recorded(modules: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the modules return and what they are given first, as of their latest call."""
    made: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            made[name], given[name] = output, inputs[0]

        return hook

    for name, module in modules.items():
        module.register_forward_hook(record(name))
    return made, given


def strided(tokens: Tensor, kept: Tensor | None) -> Tensor:
    """``[..., N, d]`` with as few tokens as ``kept [..., n, d]`` has, which are evenly spaced from the first."""
    return tokens if kept is None else tokens[..., :: tokens.shape[-2] // kept.shape[-2], :]


def stated(case: Case, pattern: str) -> float:
    """A number in what the case says of its guided step.

    Raises:
        UserError: it is not there.
    """
    words = " ".join(case.facts["outputs"][name]["meaning"] for name in ("cfg_pair", "ddim_x_prev"))
    if (found := re.search(pattern, words)) is None:
        raise UserError(
            f"the outputs cfg_pair and ddim_x_prev of {case.folder / 'case.json'} do not say their {pattern!r}"
        )
    return float(found[1])
