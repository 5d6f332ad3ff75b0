"""Control by low-rank weights: the drawn pose as latents beside the noisy latents, LoRA on the frozen network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from posegen.adapters.base import Paper
from posegen.adapters.humansd import PoseChannels
from posegen.backbones.base import Backbone
from posegen.backbones.blocks.low_rank import LowRank, require_peft
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import Occlusion
from posegen.ranges import Positive, Width

USUAL_RANK = 64  # of diffusers' example
INPUT_LAYERS = "conv_in", "pos_embed.proj", "x_embedder"  # of U-Nets, Stable Diffusion 3 and FLUX
#: The layers of diffusers' example for FLUX, and the convolutions of U-Nets.
USUAL_TARGETS = (
    *INPUT_LAYERS, "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "conv1", "conv2",
)  # fmt: skip


class LoraControl(PoseChannels):
    """The autoencoder encodes the drawn pose, the network takes its latents as additional input channels, and low-rank
    products beside its weights train; the weights themselves stay as they are.

    HumanSD's input with few weights: the form of FLUX.1 Depth and Canny as LoRA, and of diffusers' example that trains
    such weights (``examples/flux-control``). The new columns of the input layer are zero, and so is each product, so
    training starts from the backbone. The rank at the input layer is at least the number of the new columns, so that
    the products can give them any values.

    ``adapter.safetensors`` of a method folder is a LoRA file of diffusers: its ``FluxControlPipeline`` reads it with
    ``load_lora_weights``, for ``alpha = rank`` as it is and else with the weight ``alpha / rank``. Other pipelines read
    it where the input layer was widened before. Such files can be converted, too, with their rank and their targets.

    Args:
        style, occlusion, pose_latent: see `HumanSD`.
        rank: of the products; null: 64, as in the example, and at most an eighth of the network's width.
        alpha: products are multiplied by ``alpha / rank``; null: the rank.
        targets: the layers, by the ends of their names; null: as in the example, and the convolutions of U-Nets.
    """

    paper = Paper(
        "Control LoRA: a LoRA on a network with widened input, as FLUX.1 Depth and Canny [dev] LoRA",
        "huggingface/diffusers examples/flux-control",
        "huggingface/diffusers@v0.42.1",
        "Apache-2.0",
    )

    def __init__(
        self,
        style: Literal["humansd", "openpose"] = "openpose",
        pose_latent: Literal["sample", "mode"] = "sample",
        rank: Width | None = None,
        alpha: Positive | None = None,
        targets: Sequence[str] | None = None,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__(style, pose_latent, occlusion)
        require_peft("lora_control")
        self.rank, self.alpha, self.targets = rank, alpha, targets

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        network = backbone.network
        rank = min(USUAL_RANK, max(1, max(backbone.geometry.channels) // 8)) if self.rank is None else self.rank
        inputs = {name: m for name, m in network.named_modules() if name in INPUT_LAYERS}
        ranks = {name: max(rank, layer.weight[0].numel() // 2) for name, layer in inputs.items()}
        targets = USUAL_TARGETS if self.targets is None else self.targets
        weights = LowRank(network, targets, rank, rank if self.alpha is None else self.alpha, ranks)
        weights.follow()
        self.add_module(backbone.network_name, weights)

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA file of diffusers, with the name of the network before the layers'."""
        if unknown := official.keys() - self.state_dict().keys():
            raise UnknownKeys(sorted(unknown), type(self).__name__)
        return {f"adapter.{key}": value for key, value in official.items()}
