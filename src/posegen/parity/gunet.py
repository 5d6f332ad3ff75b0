"""GUNet: its graph block alone, the whole network and its sampling loops, and the way from poses to joint maps and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.gunet import GUNet, SpatialBlock
from posegen.backbones.base import Injection, Step
from posegen.backbones.blocks import pose_maps
from posegen.backbones.loading.diffusers_folder import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.pose_space import PoseSpace, pose_unet
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.parity.build import converted
from posegen.parity.case import Case
from posegen.poses.pose_square import Square, to_square
from posegen.runner.sampler import Sampler

Outputs = Iterator[tuple[str, Tensor]]


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Every output of the case.

    Raises:
        UserError: its module is unknown here.
    """
    known: dict[str, Callable[[Case], Outputs]] = {
        "utils.spatial_block": block,
        "GUNet2DConditionModel": network,
        "data_process.heatmap": encoding,
        "utils.draw_pose": decoding,
    }
    part = next((function for begin, function in known.items() if case.module.startswith(begin)), None)
    if part is None:
        raise UserError(f"module {case.module!r} of {case.folder / 'case.json'} is none of {', '.join(known)}")
    return dict(part(case))


# The graph block, with its nodes on the last axis as the released program has them.


def block(case: Case) -> Outputs:
    own = block_of(case.weights["spa_block.theta"], case.weights["spa_block.b"])
    yield "y", nodes_last(own, case.inputs["x"], case.inputs["Lk"])
    if "ks3_theta" in case.inputs:
        deep = block_of(case.inputs["ks3_theta"], case.inputs["ks3_b"])
        yield "ks3_y", nodes_last(deep, case.inputs["x"], case.inputs["ks3_Lk"])
    for name, given in case.inputs.items():
        if name.startswith("mid_"):
            yield name, own.copied(given) if len(given) == 2 else own.across(given)


def block_of(theta: Tensor, b: Tensor) -> SpatialBlock:
    made = SpatialBlock(*theta.shape[1:])
    made.load_state_dict({"theta": theta.float(), "b": b.float()})
    return made


def nodes_last(made: SpatialBlock, x: Tensor, operators: Tensor) -> Tensor:
    return made(x.movedim(-1, 0), operators.reshape(-1, *operators.shape[-2:])).movedim(0, -1)


# The network.


def network(case: Case) -> Outputs:
    backbone = pose_backbone(case)
    method = converted(GUNet(graph="batch17"), backbone, case.weights)
    for run in sorted({name.partition(".")[0] for name in case.expected}):
        given = {name.partition(".")[2]: value for name, value in case.inputs.items() if name.startswith(f"{run}.")}
        with watched(backbone.unet) as seen:
            if "latents" in given:
                yield f"{run}.heatmaps", sampled(case, method, backbone, run, given)
            elif "x0" in given:
                yield (
                    f"{run}.mse",
                    loss(method, backbone, {"encoder_hidden_states": text_for(len(given["x0"]), case), **given}),
                )
            else:
                yield (
                    f"{run}.sample",
                    predicted(backbone, given["sample"], given["timestep"], given["encoder_hidden_states"]),
                )
                yield from ((f"{run}.{name}", value) for name, value in seen.items())


def pose_backbone(case: Case) -> PoseSpace:
    """A backbone of the case's size; the height of its maps follows from the rows that the graph block mixes."""
    config, tokenizer = dict(case.config), build_tokenizer(["person"])
    grid = len(case.weights["spa_block.theta"]) * 2 ** (len(config["block_out_channels"]) - 1)
    scheduler = {**SCHEDULER, **case.facts.get("sampling", {}).get("scheduler_config", {})}
    text = build_text(tokenizer, config["cross_attention_dim"], layers=1, heads=1)
    parts = ModelParts(pose_unet(config, grid), None, text, tokenizer, scheduler, origin=case.name)  # type: ignore[arg-type]
    return PoseSpace.of(parts, "reference", grid)


def predicted(backbone: PoseSpace, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return backbone.predict(noisy, timestep.long().expand(len(noisy)), Text(text), Injection())


def text_for(count: int, case: Case) -> Tensor:
    """The text states of another run with as many images; the loss brings none of its own."""
    return next(
        value for name, value in case.inputs.items() if name.endswith(".encoder_hidden_states") and len(value) == count
    )


def loss(method: GUNet, backbone: PoseSpace, given: dict[str, Tensor]) -> Tensor:
    clean, noise, text = given["x0"], given["noise"], given["encoder_hidden_states"]
    timesteps = given["timestep"].long().expand(len(clean))
    noisy = backbone.process.add_noise(clean, noise, timesteps)
    prediction = predicted(backbone, noisy, timesteps, text)
    step = Step(prediction, backbone.process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    return method.loss(step, State(Text(text), Text(text)), batch_of(clean, text, text))["loss"]


def sampled(case: Case, method: GUNet, backbone: PoseSpace, run: str, given: dict[str, Tensor]) -> Tensor:
    """The whole loop with the shared sampler, from given noise."""
    facts, start = case.facts["sampling"], given["latents"]
    sampler = Sampler(facts["scheduler"], facts["steps"][run], facts["guidance_scale"])
    text = given["prompt_embeds"].expand(len(start), -1, -1)
    return sampler.latents(method, backbone, batch_of(start, text, given["negative_prompt_embeds"]))


class Given(PoseBatch):
    """A batch whose noise is given."""

    noise: Tensor

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.noise


def batch_of(noise: Tensor, text: Tensor, negative: Tensor) -> Given:
    count = len(noise)
    batch = Given(
        [str(i) for i in range(count)], [""] * count, [], (0, 0), text=Text(text), negative_text=Text(negative)
    )
    object.__setattr__(batch, "noise", noise)
    return batch


@contextmanager
def watched(unet: Any) -> Iterator[dict[str, Tensor]]:
    """What goes through the middle of the U-Net within the context: ``mid_block`` before the graph, ``after_spatial`` behind it."""
    seen: dict[str, Tensor] = {}

    def leaves_middle(_module: nn.Module, _inputs: Any, made: Tensor) -> None:
        seen["mid_block"] = made

    def enters_decoder(_module: nn.Module, _inputs: Any, given: dict[str, Tensor]) -> None:
        seen["after_spatial"] = given["hidden_states"]

    hooks = [
        unet.mid_block.resnets[-1].register_forward_hook(leaves_middle),
        unet.up_blocks[0].register_forward_pre_hook(
            lambda module, inputs, given: enters_decoder(module, inputs, given), with_kwargs=True
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# Poses and maps.


def encoding(case: Case) -> Outputs:
    for i in sorted({name.partition(".")[0] for name in case.inputs}, key=int):
        keypoints, box = (case.inputs[f"{i}.{name}"].double().numpy() for name in ("keypoints", "bbox"))
        pose = torch.from_numpy(to_square(Square.of_box(box), keypoints))
        vectors = pose_maps.joint_vectors(
            pose[None], case.config["heatmap_size"], case.config["sigma"], case.config["variance_threshold"]
        ).float()
        yield f"{i}.joint_vector", vectors[0].flatten(1)
        yield f"{i}.dataset_image", pose_maps.shrunk(vectors, case.expected[f"{i}.dataset_image"].shape[-1])[0]


def decoding(case: Case) -> Outputs:
    found = torch.from_numpy(pose_maps.cells(case.inputs["heatmaps"], case.config["area_threshold"]))
    yield "coordinates", found
    absent = (found == 0).all(-1)
    yield "subset", torch.where(absent, -1, torch.arange(found.shape[1]))
