"""GUNet: its graph block, the whole network with its sampling loops, and the way from poses to joint maps and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.gunet import GUNet, SpatialBlock
from posegen.backbones.base import Injection, Step
from posegen.backbones.blocks import pose_maps
from posegen.backbones.loading.model_parts import ModelParts
from posegen.backbones.loading.single_file import SCHEDULER
from posegen.backbones.mannequin import build_text, build_tokenizer
from posegen.backbones.pose_space import PoseSpace, pose_unet
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.parity.build import Outputs, UnknownPart, batch_of_size, converted, recorded
from posegen.parity.case import FACTS, Case
from posegen.poses.pose_square import Square, to_square
from posegen.runner.sampler import Sampler


def gunet_outputs(case: Case) -> Outputs:
    known: dict[str, Callable[[Case], Outputs]] = {
        "utils.spatial_block": spatial_block_outputs,
        "GUNet2DConditionModel": network_outputs,
        "data_process.heatmap": joint_map_outputs,
        "utils.draw_pose": decoded_outputs,
    }
    part = next((outputs for begin, outputs in known.items() if case.module.startswith(begin)), None)
    if part is None:
        raise UnknownPart(f"module {case.module!r} of {case.place / FACTS} is none of {', '.join(known)}")
    yield from part(case)


def spatial_block_outputs(case: Case) -> Outputs:
    """The block, there with nodes last, with operators of one and of three orders, and the paths of the batch sizes."""
    given = case.inputs
    block = spatial_block_of(case.weights["spa_block.theta"], case.weights["spa_block.b"])
    yield "y", with_nodes_last(block, given["x"], given["Lk"])
    if "ks3_theta" in given:
        deep = spatial_block_of(given["ks3_theta"], given["ks3_b"])
        yield "ks3_y", with_nodes_last(deep, given["x"], given["ks3_Lk"])
    for name, maps in given.items():
        if name.startswith("mid_"):
            yield name, block.copied(maps) if len(maps) == 2 else block.across(maps)


def spatial_block_of(theta: Tensor, b: Tensor) -> SpatialBlock:
    block = SpatialBlock(*theta.shape[1:])
    block.load_state_dict({"theta": theta.float(), "b": b.float()})
    return block


def with_nodes_last(block: SpatialBlock, x: Tensor, operators: Tensor) -> Tensor:
    return block(x.movedim(-1, 0), operators.reshape(-1, *operators.shape[-2:])).movedim(0, -1)


def network_outputs(case: Case) -> Outputs:
    """The runs of the case: single passes, a training loss and sampling loops, each with inputs ``<run>.*``."""
    backbone = pose_backbone(case)
    method = converted(GUNet(graph="batch17"), backbone, case.weights)
    middle, decoder = backbone.unet.mid_block.resnets[-1], backbone.unet.up_blocks[0]
    for run in sorted({name.partition(".")[0] for name in case.expected}):
        given = {name.partition(".")[2]: value for name, value in case.inputs.items() if name.startswith(f"{run}.")}
        if "latents" in given:
            yield f"{run}.heatmaps", sampled_maps(case, method, backbone, run, given)
        elif "x0" in given:
            yield f"{run}.mse", training_loss(case, method, backbone, given)
        else:
            with recorded(middle=middle, decoder=decoder) as (entering, leaving):
                text = given["encoder_hidden_states"]
                yield f"{run}.sample", predicted_maps(backbone, given["sample"], given["timestep"], text)
            yield f"{run}.mid_block", leaving["middle"]
            yield f"{run}.after_spatial", entering["decoder"]


def pose_backbone(case: Case) -> PoseSpace:
    """A backbone of the case's size; the height of its maps follows from the rows that the graph block mixes."""
    config, tokenizer = dict(case.config), build_tokenizer(["person"])
    grid = len(case.weights["spa_block.theta"]) * 2 ** (len(config["block_out_channels"]) - 1)
    scheduler = {**SCHEDULER, **case.facts.get("sampling", {}).get("scheduler_config", {})}
    text = build_text(tokenizer, config["cross_attention_dim"], layers=1, heads=1)
    parts = ModelParts.of_one_tower(pose_unet(config, grid), None, text, tokenizer, scheduler, origin=case.name)
    return PoseSpace.of(parts, "reference", grid)


def predicted_maps(backbone: PoseSpace, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    return backbone.predict(noisy, timestep.long().expand(len(noisy)), Text(text), Injection())


def training_loss(case: Case, method: GUNet, backbone: PoseSpace, given: dict[str, Tensor]) -> Tensor:
    """The loss of a training step; its text states are those of another run with as many images."""
    clean, noise = given["x0"], given["noise"]
    texts = [value for name, value in case.inputs.items() if name.endswith("encoder_hidden_states")]
    text = next(value for value in texts if len(value) == len(clean))
    timesteps = given["timestep"].long().expand(len(clean))
    noisy = backbone.process.add_noise(clean, noise, timesteps)
    prediction = predicted_maps(backbone, noisy, timesteps, text)
    step = Step(prediction, backbone.process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    batch = batch_of_size(len(clean), (0, 0), text=Text(text), negative_text=Text(text))
    return method.loss(step, State(Text(text), Text(text)), batch)["loss"]


class StartsFrom(PoseBatch):
    """A batch whose noise is its ``latents``."""

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        assert self.latents is not None
        return self.latents


def sampled_maps(case: Case, method: GUNet, backbone: PoseSpace, run: str, given: dict[str, Tensor]) -> Tensor:
    facts, start = case.facts["sampling"], given["latents"]
    sampler = Sampler(facts["scheduler"], facts["steps"][run], facts["guidance_scale"])
    text, negative = Text(given["prompt_embeds"].expand(len(start), -1, -1)), Text(given["negative_prompt_embeds"])
    batch = batch_of_size(len(start), (0, 0), StartsFrom, text=text, negative_text=negative, latents=start)
    return sampler.latents(method, backbone, batch)


def joint_map_outputs(case: Case) -> Outputs:
    """Keypoints as joint vectors at full size and as training tensors."""
    for i in sorted({name.partition(".")[0] for name in case.inputs}, key=int):
        keypoints, box = (case.inputs[f"{i}.{name}"].double().numpy() for name in ("keypoints", "bbox"))
        pose = torch.from_numpy(to_square(Square.of_box(box), keypoints))
        sizes = (case.config[name] for name in ("heatmap_size", "sigma", "variance_threshold"))
        vectors = pose_maps.joint_vectors(pose[None], *sizes).float()
        yield f"{i}.joint_vector", vectors[0].flatten(1)
        yield f"{i}.dataset_image", pose_maps.shrunk(vectors, case.expected[f"{i}.dataset_image"].shape[-1])[0]


def decoded_outputs(case: Case) -> Outputs:
    """Heatmaps as whole coordinates, and which joints are there."""
    found = torch.from_numpy(pose_maps.cells(case.inputs["heatmaps"], case.config["area_threshold"]))
    yield "coordinates", found
    yield "subset", torch.where((found == 0).all(-1), -1, torch.arange(found.shape[1]))
