"""IP-Adapter: preprocessing, the resampler, one attention layer, and the whole method, also beside a ControlNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from posegen.adapters.base import State
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.ip_adapter import IPAdapter, clip_pixels, copied, projection_weights
from posegen.backbones.base import Context, Geometry, Injection
from posegen.backbones.blocks.cross_attention import ContextProcessor
from posegen.backbones.loading.ldm_keys import below
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.errors import UserError
from posegen.parity.build import Inexpressible, Outputs, UnknownPart, diffusers_backbone, recorded, with_weights
from posegen.parity.case import FACTS, Case

FILE_PARTS = ("image_proj.", "ip_adapter.")
RESAMPLER_SIZES = ("embedding_dim", "output_dim", "dim", "depth", "dim_head", "heads", "num_queries", "ff_mult")


def ip_adapter_outputs(case: Case) -> Outputs:
    known = {"CLIPImageProcessor": prepared_outputs, "Resampler": resampler_outputs, "ImageProjModel": layer_outputs}
    known |= {"IPAdapter": whole_ip_adapter_outputs, "IPAdapterPlus": whole_ip_adapter_outputs}
    if (part := case.module.partition(" ")[0]) not in known:
        raise UnknownPart(f"module {case.module!r} of {case.place / FACTS} begins with none of {', '.join(known)}")
    yield from known[part](case)


def prepared_outputs(case: Case) -> Outputs:
    picture = case.inputs["image"].float().permute(2, 0, 1)[None] / 127.5 - 1
    yield "pixel_values", clip_pixels(picture, case.config["size"])


def resampler_outputs(case: Case) -> Outputs:
    """The tokens, and the states of each layer."""
    network = resampler(case.config)
    weights = {key.removeprefix(FILE_PARTS[0]): value for key, value in case.weights.items()}
    network.load_state_dict(projection_weights(weights))
    attentions = {f"attention_{i}": layer.attn for i, layer in enumerate(network.layers)}
    with recorded(**attentions, **{f"latents_{i}": layer for i, layer in enumerate(network.layers)}) as (_, made):
        yield "image_tokens", network(case.inputs["features"])
    yield from made.items()


def layer_outputs(case: Case) -> Outputs:
    """The projection, and one cross-attention at several strengths."""
    given, config = case.inputs, case.config
    width = config["cross_attention_dim"]
    encoder = CLIPVisionConfig(projection_dim=config["clip_embeddings_dim"])
    projection = IPAdapter(tokens=config["num_tokens"]).projection(encoder, width)
    projection.load_state_dict(projection_weights(below(case.weights, FILE_PARTS[0])))
    heads = config["heads"]
    layer = Attention(config["hidden_size"], width, heads=heads, dim_head=config["hidden_size"] // heads)
    layer.load_state_dict(below(case.weights, "attn2."))
    layer.set_processor(ContextProcessor("layer", layer.processor))
    maps = [copied(layer.to_k), copied(layer.to_v)]
    for name, linear in zip(("to_k_ip", "to_v_ip"), maps, strict=True):
        (found,) = (value for key, value in case.weights.items() if key.endswith(f"{name}.weight"))
        linear.load_state_dict({"weight": found})
    yield "image_tokens", (tokens := projection(given["image_embeds"]))
    yield "uncond_image_tokens", (nothing := projection(torch.zeros_like(given["image_embeds"])))
    strengths = {"hidden": (tokens, 1.0), "hidden_scale": (tokens, config["scale"]), "hidden_noimage": (tokens, 0.0)}
    for name, (read, strength) in {**strengths, "hidden_uncond": (nothing, 1.0)}.items():
        context = Context({"layer": (maps[0](read), maps[1](read))}, strength)
        yield name, layer(given["hidden"], given["text"], context=(context,))


def whole_ip_adapter_outputs(case: Case) -> Outputs:
    """Tokens, residuals of a ControlNet beside it, predictions, and the loss with its gradients."""
    given, config = case.inputs, case.config
    latents, timesteps, pixels = given["latents"], given["timesteps"].long(), given["pixel_values"]
    backbone = diffusers_backbone(config["unet"], below(case.weights, "unet."))
    method, text = case_method(case, backbone, 1.0), Text(given["text"])
    seen = method.seen(pixels)
    tokens, nothing = method.image_proj(seen), method.image_proj(method.unseen()).expand(len(pixels), -1, -1)
    yield "encoder_hidden", seen
    yield "image_embeds", method.encoder(pixels).image_embeds
    yield "image_tokens", tokens
    yield "uncond_image_tokens", nothing
    state = State(text, Text(given["negative_text"])).having(
        tokens=tokens, no_picture=nothing, chance=torch.ones(len(pixels))
    )
    control = case_control(case, backbone) if "hint" in given else None

    def predicted(by: IPAdapter, state: State, controlled: bool = True) -> Tensor:
        injection = by.inject(state, latents, timesteps)
        if control is not None and controlled:
            injection = control_of(control, state, given["hint"], latents, timesteps) + injection
        return backbone.predict(latents, timesteps, state.text, injection)

    if control is not None:
        residuals = control_of(control, state, given["hint"], latents, timesteps).residuals
        yield from ((f"res_{i:02}", residual) for i, residual in enumerate(residuals))
        yield "eps_nocontrol", predicted(method, state, controlled=False)
    yield "eps", predicted(method, state)
    weighted = [(weight, predicted(method, branch)) for weight, branch in method.branches(state, config["guidance"])]
    yield "eps_uncond", weighted[1][1]
    yield "eps_guided", sum((weight * each for weight, each in weighted), torch.zeros(()))
    yield "eps_scale", predicted(case_method(case, backbone, config["scale"]), state)
    yield "eps_noimage", predicted(case_method(case, backbone, 0.0), state)
    if "drop" in given:
        yield from training_outputs(case, method, state)


def training_outputs(case: Case, method: IPAdapter, state: State) -> Outputs:
    """One step on given noise, where some images lost their picture."""
    given, backbone = case.inputs, method.backbone
    latents, timesteps, pixels = given["latents"], given["timesteps"].long(), given["pixel_values"]
    method.drop_image, method.drop_text, method.drop_both = 0.5, 0.0, 0.0
    with torch.enable_grad():
        tokens = method.image_proj(method.seen(pixels))
        nothing = method.image_proj(method.unseen()).expand(len(pixels), -1, -1)
        state = state.having(tokens=tokens, no_picture=nothing, chance=1 - given["drop"])
        state = method.drop(state, torch.ones(len(pixels), dtype=torch.bool))
        eps = backbone.predict(latents, timesteps, state.text, method.inject(state, latents, timesteps))
        loss = F.mse_loss(eps, given["noise"])
        loss.backward()
    yield "train_eps", eps
    yield "loss", loss
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    for name in (name for name in case.expected if name.startswith("grad.")):
        yield name, torch.cat([gradients[own] for own in method.own_names(name.removeprefix("grad."))])


class CaseAdapter(IPAdapter):
    """The method with the image encoder and the sizes of a case."""

    def __init__(self, case: Case, scale: float) -> None:
        config = case.config
        super().__init__(config["variant"], config["num_tokens"], scale, vision=str(case.place))
        self.case = case

    def image_encoder(self, geometry: Geometry) -> CLIPVisionModelWithProjection:
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.case.config["image_encoder"]))
        encoder.load_state_dict(below(self.case.weights, "image_encoder."))
        return encoder

    def projection(self, encoder: CLIPVisionConfig, width: int) -> nn.Module:
        sizes = self.case.config.get("image_proj")
        return super().projection(encoder, width) if sizes is None else resampler(sizes)


def case_method(case: Case, backbone: StableDiffusion, scale: float) -> CaseAdapter:
    method = CaseAdapter(case, scale)
    method.faithful = True
    method.attach(backbone)
    if listed := case.facts.get("attention_order"):  # the numbers are those of this U-Net
        order = [entry.partition(": ")[2].removesuffix(".processor") for entry in listed]
        if order != method.names:
            raise UserError(f"{case.place / FACTS} counts the cross-attentions as {order}; posegen as {method.names}")
    return with_weights(method, backbone, {k: v for k, v in case.weights.items() if k.startswith(FILE_PARTS)})


def case_control(case: Case, backbone: StableDiffusion) -> ControlNet:
    """The ControlNet beside it; its hint may have another number of halvings than that of the published weights."""
    method, sizes = ControlNet(), case.config["controlnet"]
    method.attach(backbone)
    network, widths = method.branch.network, tuple(sizes["conditioning_embedding_out_channels"])
    network.controlnet_cond_embedding = ControlNetConditioningEmbedding(network.conv_in.out_channels, 3, widths)
    weights = below(case.weights, "controlnet.")
    return with_weights(method, backbone, weights)


def control_of(method: ControlNet, state: State, hint: Tensor, latents: Tensor, timesteps: Tensor) -> Injection:
    own = State(state.text, state.null_text).having(hint=method.branch.hint_features(hint))
    return method.inject(own, latents, timesteps)


def resampler(sizes: Mapping[str, Any]) -> IPAdapterPlusImageProjection:
    """The resampler by the official names of its sizes."""
    if other := sorted(key for key in sizes.keys() - set(RESAMPLER_SIZES) if sizes[key]):
        raise Inexpressible(f"the resampler has {', '.join(other)}, which no published file uses")
    embedding, output, inner, depth, head, heads, queries, mult = (sizes[name] for name in RESAMPLER_SIZES)
    return IPAdapterPlusImageProjection(embedding, output, inner, depth, head, heads, queries, mult)
