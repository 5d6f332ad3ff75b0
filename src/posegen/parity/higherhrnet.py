"""HigherHRNet: from the image over the maps of its flip test to people, and the decoding of given maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from posegen.data.base import to_tensor
from posegen.metrics.estimators.associative import Decoding, decode
from posegen.metrics.estimators.higherhrnet import Fit, HeadShape, HigherHRNet, aggregated, to_pixels
from posegen.metrics.estimators.hrnet import Stage
from posegen.parity.build import Inexpressible, Outputs
from posegen.parity.case import FACTS, Case

#: Settings of mmpose's decoding that posegen has with these values of the published evaluations alone.
SWITCHED_ON = ("align_corners", "tag_per_joint", "use_detection_val", "adjust", "use_udp")
PUBLISHED_DECODING = {"scale_factor": [1], "ignore_too_much": False, **dict.fromkeys(SWITCHED_ON, True)}
#: mmpose's setting -> ours; two have the same name.
DECODING_FIELDS = {name: name for name in ("detection_threshold", "tag_threshold")}
DECODING_FIELDS |= {"nms_kernel": "kernel", "max_num_people": "candidates", "refine": "fill"}


def higherhrnet_outputs(case: Case) -> Outputs:
    """Everything that the case's inputs allow, decoded rightly and with mmpose's flaw on processors."""
    if "image" in case.inputs:
        yield from image_outputs(case)
    if "dec_heatmaps" in case.inputs:
        yield from map_outputs(case)


def network_of(case: Case) -> HigherHRNet:
    config = case.config
    shapes = [config["stages"][f"stage{i}"] for i in range(1, len(config["stages"]) + 1)]
    stages = [Stage(s["num_modules"], tuple(s["num_blocks"]), tuple(s["num_channels"])) for s in shapes]
    network = HigherHRNet(stages, config["stem_width"], head_of(config["head"]), config["image_size"])
    return network.fill(case.weights, str(case.place))


def image_of(case: Case) -> np.ndarray:
    """The case's image ``[H, W, 3] uint8``; the official program takes it for BGR."""
    return np.ascontiguousarray(case.inputs["image"].numpy().astype(np.uint8)[..., ::-1])


def image_outputs(case: Case) -> Outputs:
    network, image = network_of(case), image_of(case)
    fit = Fit.of(image.shape[0], image.shape[1], network.size)
    inputs = network.normalised(to_tensor(fit.warped(image))[None])
    yield "network_input", inputs
    yield "backbone_feature", network.backbone(inputs)
    for suffix, given in (("", inputs), ("_of_mirrored_input", inputs.flip(-1))):
        yield from ((f"head_out{i}{suffix}", maps) for i, maps in enumerate(network(given)))
    flip_test = case.config.get("test_cfg", {}).get("flip_test", True)
    heatmaps, tags = network.flip_tested(inputs) if flip_test else aggregated(network(inputs))
    yield from (("heatmaps", heatmaps), ("tags", tags))
    for suffix, decoding in decodings(case):
        ((people, scores),) = decode(heatmaps, tags, decoding)
        found = network.chosen(to_pixels(people, heatmaps.shape[-2:], fit.region), scores)
        width, height = np.ptp(found.keypoints[..., :2], axis=1).T
        results = {"keypoints": found.keypoints, "scores": found.scores, "areas": width * height}
        yield from ((f"{name}{suffix}", torch.from_numpy(value)) for name, value in results.items())


def map_outputs(case: Case) -> Outputs:
    """People of given maps, in the order in which they are grouped."""
    heatmaps, tags = case.inputs["dec_heatmaps"], case.inputs["dec_tags"]
    region = case.inputs["dec_scale"].tolist()[::-1]
    for suffix, decoding in decodings(case):
        ((people, scores),) = decode(heatmaps, tags, decoding)
        yield f"dec_keypoints{suffix}", torch.from_numpy(to_pixels(people, heatmaps.shape[-2:], region))
        yield f"dec_person_scores{suffix}", torch.from_numpy(scores)


def decodings(case: Case) -> Iterator[tuple[str, Decoding]]:
    """Suffix of the outputs -> how they are decoded."""
    config = case.config.get("test_cfg", {})
    known = PUBLISHED_DECODING.items()
    if other := [f"{key}={config[key]}" for key, value in known if config.get(key, value) != value]:
        words = f"{case.place / FACTS}: config.test_cfg has {', '.join(other)}"
        raise Inexpressible(f"{words}; only the decoding of the published evaluations is known here")
    decoding = Decoding(**{field: config[name] for name, field in DECODING_FIELDS.items() if name in config})
    yield "", decoding
    yield "_cpu_quirk", replace(decoding, cpu_quirk=True)


def head_of(config: Mapping[str, Any]) -> HeadShape:
    """The head that mmpose's configuration describes."""
    extra = config.get("extra", {})
    names = {"filters": "num_deconv_filters", "kernels": "num_deconv_kernels", "joined": "cat_output"}
    lists = {ours: tuple(config[theirs]) for ours, theirs in {**names, "tags": "with_ae_loss"}.items()}
    final = config.get("final_conv_kernel", extra.get("final_conv_kernel", 1))
    return HeadShape(blocks=config["num_basic_blocks"], final_kernel=final, **lists)
