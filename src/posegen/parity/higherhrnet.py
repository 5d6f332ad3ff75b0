"""HigherHRNet: from the image to the maps of its flip test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import to_tensor
from posegen.metrics.estimators.higherhrnet import HeadShape, HigherHRNet, fitted
from posegen.metrics.estimators.hrnet import Stage
from posegen.parity.case import Case


@torch.no_grad()
def compute(case: Case) -> dict[str, Tensor]:
    """Everything up to the maps; the people in them are not decoded."""
    config = case.config
    shapes = [config["stages"][f"stage{i}"] for i in range(1, len(config["stages"]) + 1)]
    stages = [Stage(s["num_modules"], tuple(s["num_blocks"]), tuple(s["num_channels"])) for s in shapes]
    network = HigherHRNet(stages, config["stem_width"], head_of(config["head"])).fill(case.weights, str(case.folder))
    image = case.inputs["image"].numpy().astype(np.uint8)[..., ::-1]  # the detector is given BGR
    inputs = network.normalised(to_tensor(fitted(np.ascontiguousarray(image), config["image_size"]))[None])
    made = {"network_input": inputs, "backbone_feature": network.backbone(inputs)}
    for suffix, given in (("", inputs), ("_of_mirrored_input", inputs.flip(-1))):
        made |= {f"head_out{i}{suffix}": maps for i, maps in enumerate(network(given))}
    made["heatmaps"], made["tags"] = network.flip_tested(inputs)
    return made


def head_of(config: Mapping[str, Any]) -> HeadShape:
    """The head that mmpose's configuration describes."""
    extra = config.get("extra", {})
    return HeadShape(
        filters=tuple(config["num_deconv_filters"]),
        kernels=tuple(config["num_deconv_kernels"]),
        blocks=config["num_basic_blocks"],
        joined=tuple(config["cat_output"]),
        tags=tuple(config["with_ae_loss"]),
        final_kernel=config.get("final_conv_kernel", extra.get("final_conv_kernel", 1)),
    )
