"""SP-Ctrl: its colours, the loss on attention with its options, and the whole method with gradients."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor
from torch.nn import functional as F

from posegen.adapters.base import State
from posegen.adapters.spctrl import (
    MAP_SIDE,
    RELEASED_LIMBS,
    JointColours,
    SPCtrl,
    attention_loss,
    inside_window,
    with_black_limbs,
)
from posegen.backbones.base import Injection
from posegen.backbones.loading.ldm_keys import below
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.parity.build import Inexpressible, Outputs, UnknownPart, diffusers_backbone, with_weights
from posegen.parity.case import FACTS, Case

CONTROLNET_PART = "controlnet."
#: Output -> (colours of limbs, sigmoid).
HINT_SETTINGS: dict[str, tuple[Any, bool]] = {
    "hint": (None, False), "hint_interp_kpt": ("interp_kpt", False),
    "hint_sigmoid": (None, True), "hint_sigmoid_interp_kpt": ("interp_kpt", True),
}  # fmt: skip


def spctrl_outputs(case: Case) -> Outputs:
    known = {"SpaTextEmbedding": colour_outputs, "CrossAttnHeatmapLoss": attention_outputs}
    known["SpaTextControlNetModel"] = whole_spctrl_outputs
    if (part := case.module.partition(" ")[0]) not in known:
        raise UnknownPart(f"module {case.module!r} of {case.place / FACTS} begins with none of {', '.join(known)}")
    yield from known[part](case)


def colour_outputs(case: Case) -> Outputs:
    """The painted map under all settings, and the gradient of its mean square."""
    config = case.config["spatext"]
    sizes = config["in_channels"], config["hidden_dim"], config["out_channels"]
    for name, (limbs, sigmoid) in HINT_SETTINGS.items():
        palette = JointColours(*sizes, limbs or config["skeleton_type"], sigmoid, RELEASED_LIMBS)
        palette.load_state_dict({**case.weights, "skeleton_emb": with_black_limbs(case.weights["skeleton_emb"])})
        with torch.enable_grad():
            colours = palette()
            painted = palette.painted(case.inputs["map"], colours, faithful=True)
            yield name, painted.detach()
            if name == "hint":
                yield "embeddings", colours.detach()
                painted.square().mean().backward()
                yield from ((f"grad.{part}", p.grad) for part, p in palette.named_parameters() if p.grad is not None)


def attention_outputs(case: Case) -> Outputs:
    """The loss on given maps of attention under all variants, and its gradients."""
    given, layers = case.inputs, case.config["layers"]
    for name, variant in case.config["variants"].items():
        chosen = [k for k, layer in enumerate(layers) if (variant["select_layer_type"] or "") in layer]
        maps = {k: given[f"attention_{k}"].clone().requires_grad_() for k in chosen}
        whole = variant["heatmap_type"] == "whole"
        first = torch.eye(1, given["keypoint_mask"].shape[1]).expand_as(given["keypoint_mask"])
        words = (
            words_of(given["token_mask_word"], first)
            if whole
            else words_of(given["token_mask"], given["keypoint_mask"])
        )
        heatmaps = given[variant.get("target", "heatmap")]
        inside = inside_window(given["timesteps"], window_of(variant))
        with torch.enable_grad():
            means = [attention.mean(1) for attention in maps.values()]
            loss = attention_loss(means, words, heatmaps, inside, variant["loss_type"])
            yield f"loss.{name}", loss.detach()
            for k, gradient in zip(chosen, torch.autograd.grad(loss, list(maps.values())), strict=True):
                yield f"grad.{name}.attention_{k}", gradient


def whole_spctrl_outputs(case: Case) -> Outputs:
    """The hint, residuals, predictions, and both losses with the gradients of the one on attention."""
    given, config = case.inputs, case.config
    noisy, timesteps, text = given["x"], given["timesteps"].long(), Text(given["context"])
    backbone = diffusers_backbone(config["unet"], below(case.weights, "unet."))
    for name, strength in (("eps", 1.0), ("eps_strength", 0.7)):
        method = spctrl_of(case, backbone, strength=strength)
        hint = method.palette.painted(given["map"], method.palette(), faithful=True)
        state = State(text, text).having(hint=method.branch.hint_features(hint))
        injection = method.inject(state, noisy, timesteps)
        eps = backbone.predict(noisy, timesteps, text, injection)
        yield name, eps
        if name == "eps":
            yield "hint", hint
            yield "cond_features", state["hint"]
            yield from ((f"res_{i:02}", residual) for i, residual in enumerate(injection.residuals))
            factors = torch.logspace(-1, 0, len(injection.residuals)).tolist()  # of the official guess mode
            yield "eps_guess_mode", backbone.predict(noisy, timesteps, text, injection.weighted(factors))
            yield "denoise_loss", (error := F.mse_loss(eps, given["noise"]))
    yield "eps_nocontrol", backbone.predict(noisy, timesteps, text, Injection())
    detached = config["loss"]["detach_query"]
    for ending, detach in (("", detached), ("_nodetach", False)):
        found = dict(attention_and_gradients(case, spctrl_of(case, backbone, detach_query=detach)))
        yield from ((name + ending, value) for name, value in found.items())
        if not ending:
            yield "loss", error + config["loss"]["weight"] * found["attn_loss"]
        else:
            yield "attn_grad_keypoints_mlp", found["attn_grad_keypoints_mlp"]


def attention_and_gradients(case: Case, method: SPCtrl) -> Outputs:
    """The loss on attention and its gradients, and the first map."""
    given, timesteps = case.inputs, case.inputs["timesteps"].long()
    with torch.enable_grad():
        text = Text(given["context"].clone().requires_grad_())
        hint = method.branch.hint_features(method.palette.painted(given["map"], method.palette(), faithful=True))
        state = State(text, text).having(hint=hint, words=words_of(given["token_mask"], given["keypoint_mask"]))
        method.inject(state, given["x"], timesteps)
        cells = given["x"].shape[-2:]
        yield "attention_0", method.attention_maps(text.tokens, cells)[0].detach()
        loss = method.attention_error(state, cells, timesteps, given["heatmap"])
        yield "attn_loss", loss.detach()
        sources = {
            "context": text.tokens, "to_k": method.attentions[0].to_k.weight,
            "keypoints_mlp": method.palette.linear_out.weight,
        }  # fmt: skip
        gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
        for name, gradient in zip(sources, gradients, strict=True):
            if gradient is not None:
                yield f"attn_grad_{name}", gradient


def spctrl_of(case: Case, backbone: StableDiffusion, **settings: Any) -> SPCtrl:
    """The method at the case's size with its weights."""
    sizes, loss = case.config["spatext"], case.config["loss"]
    words = {"embedding": sizes["in_channels"], "hidden": sizes["hidden_dim"], "colours": sizes["out_channels"]}
    settings = {"limbs": sizes["skeleton_type"], "attention_loss": loss["loss_type"], **words, **settings}
    settings["window"] = window_of(loss)
    method = SPCtrl(**settings)
    method.faithful = True
    method.attach(backbone)
    expected = {"attn_size": MAP_SIDE, "select_layer_type": f"down_blocks.{method.level}", "heatmap_type": "partition"}
    if other := {key: loss[key] for key, value in expected.items() if loss[key] != value}:
        raise Inexpressible(f"the loss of {case.place / FACTS} has {other}; posegen's has {expected}")
    network, widths = method.branch.network, case.config["conditioning_embedding_out_channels"]
    outputs = network.config.block_out_channels[0]
    network.controlnet_cond_embedding = ControlNetConditioningEmbedding(outputs, sizes["out_channels"], tuple(widths))
    return with_weights(method, backbone, {k: v for k, v in case.weights.items() if k.startswith(CONTROLNET_PART)})


def words_of(tokens: Tensor, joints: Tensor) -> Tensor:
    """``[B, L]`` the joint of each token of the mask, -1 elsewhere: the k-th with the k-th of the whole batch."""
    words = torch.full(tokens.shape, -1)
    words[tokens.bool()] = joints.bool().nonzero()[:, 1]
    return words


def window_of(loss: Any) -> tuple[float, float] | None:
    return None if loss["start"] is None else (loss["start"], loss["end"])
