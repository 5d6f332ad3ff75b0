"""The mannequin judge: a small bottom-up pose network that also names style, scene and number of people.

It judges generated images of the mannequin world (see `posegen.data.mannequin`) and is trained on renders alone. The
world tells left from right by shading, hence no horizontal flips in training and no flip test.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.data.base import Sample
from posegen.io.atomic import read_json, replacing, write_text
from posegen.metrics.base import Estimator, Findings, Poses
from posegen.metrics.estimators.bottom_up import keep_distinct, peaks, people_gaussians, snapped_to_peaks
from posegen.metrics.network_weights import load_every_weight
from posegen.poses.topology import COCO_SIGMAS
from posegen.ranges import AtLeastOne, Positive, ZeroToOne

STYLES = ("photo", "cartoon", "sketch", "shadow")
SCENES = ("park", "beach", "room", "street", "studio", "night")
TORSO = [5, 6, 11, 12]  # shoulders and hips
KEYPOINTS = 17
STRIDE = 2  # image pixels per heatmap cell
UNKNOWN = -100  # attribute class that the loss passes over


class MannequinJudge(nn.Module, Estimator):
    """Convolutional U-Net on RGB images, heatmaps at half and offsets at a quarter of the image size.

    Args:
        widths: channels at strides 2, 4, 8 and 16; the last is the dimension of `features`.
        max_count: largest number of people that the attribute head tells apart.
        max_people: largest number of people that are found in an image.
        sigma: standard deviation of the target heatmaps in cells.
        score_threshold: people with a lower score are not reported; see `calibrate`.
        nms_threshold: of two people more similar than this (object keypoint similarity) the weaker one is not reported.
    """

    photographs = False

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128),
        styles: Sequence[str] = STYLES,
        scenes: Sequence[str] = SCENES,
        max_count: AtLeastOne = 3,
        max_people: AtLeastOne = 6,
        sigma: Positive = 1.0,
        score_threshold: ZeroToOne = 0.02,
        nms_threshold: ZeroToOne = 0.3,
    ) -> None:
        super().__init__()
        self._configure(
            {"widths": list(widths)}, styles, scenes, max_count, max_people, sigma, score_threshold, nms_threshold
        )
        a, b, c, d = widths
        self.stem = conv_bn_relu(3 * STRIDE**2, a)
        self.down4 = nn.Sequential(conv_bn_relu(a, b, stride=2), conv_bn_relu(b, b))
        self.down8 = nn.Sequential(conv_bn_relu(b, c, stride=2), conv_bn_relu(c, c))
        self.down16 = nn.Sequential(conv_bn_relu(c, d, stride=2), Residual(d))
        self.up8, self.up4, self.up2 = Up(d, c), Up(c, b), Up(b, a)
        self._add_heads(a, b, d)
        self.to(memory_format=torch.channels_last)

    def _configure(
        self,
        network: Mapping[str, Any],
        styles: Sequence[str],
        scenes: Sequence[str],
        max_count: int,
        max_people: int,
        sigma: float,
        score_threshold: float,
        nms_threshold: float,
    ) -> None:
        """Keeps the arguments of the constructor; those of the network first."""
        self.config: dict[str, Any] = {**network, "styles": list(styles), "scenes": list(scenes)}
        self.config |= {"max_count": max_count, "max_people": max_people, "sigma": sigma}
        self.config |= {"score_threshold": score_threshold, "nms_threshold": nms_threshold}

    def _add_heads(self, fine: int, coarse: int, whole: int) -> None:
        """The heads on maps of stride 2 and 4 and on the features of the image, of these widths."""
        classes = len(self.config["styles"]) + len(self.config["scenes"]) + self.config["max_count"] + 1
        self.heat_head = nn.Conv2d(fine, KEYPOINTS + 1, 1)
        self.offset_head = nn.Conv2d(coarse, 2 * KEYPOINTS, 1)
        self.attribute_head = nn.Linear(whole, classes)
        # about the log odds of a cell near a peak, so that training starts from the prior
        nn.init.constant_(self.heat_head.bias, -4.5)
        self.register_buffer("sigmas", torch.tensor(COCO_SIGMAS, dtype=torch.float32), persistent=False)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps at strides 2, 4, 8 and 16; the last row and column of odd sides are repeated."""
        height, width = (side % STRIDE for side in images.shape[-2:])
        if height or width:
            images = F.pad(images, (0, width, 0, height), mode="replicate")
        x2 = self.stem(F.pixel_unshuffle(images, STRIDE).contiguous(memory_format=torch.channels_last))
        x8 = self.down8(x4 := self.down4(x2))
        return x2, x4, x8, self.down16(x8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits ``heat [B, 17, H/2, W/2]``, ``centre [B, 1, H/2, W/2]``, ``attributes [B, styles + scenes + counts]``;
        ``offset [B, 34, H/4, W/4]`` (see `regress`) and ``features [B, D]``."""
        x2, x4, x8, x16 = self.encode(images)
        u4 = self.up4(self.up8(x16, x8), x4)
        return self._read(self.up2(u4, x2), u4, x16.mean((2, 3)))

    def _read(self, fine: Tensor, coarse: Tensor, features: Tensor) -> dict[str, Tensor]:
        """What `forward` returns, from maps of stride 2 and 4 and the features."""
        heat, centre = self.heat_head(fine).contiguous().split([KEYPOINTS, 1], dim=1)
        maps = {"heat": heat, "centre": centre, "offset": self.offset_head(coarse)}
        return {**maps, "attributes": self.attribute_head(features), "features": features}

    def features(self, images: Tensor) -> Tensor:
        return self.encode(images)[-1].mean((2, 3))

    def heatmaps(self, images: Tensor) -> Tensor:
        return self(images)["heat"].sigmoid()

    def expected_heatmaps(self, people: Tensor, size: tuple[int, int]) -> Tensor:
        grid = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
        return people_gaussians(pixels_to_cells(people[..., :2]), people[..., 2] > 0, grid, self.config["sigma"])

    def targets(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`judge_targets` in this judge's classes."""
        return judge_targets(samples, self.config["styles"], self.config["scenes"], self.config["max_count"])

    def loss(
        self, images: Tensor, keypoints: Tensor, areas: Tensor, attributes: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The training loss; the arguments after ``images [B, 3, H, W]`` are what `targets` returns.

        Returns the total under ``loss`` and its parts: ``heat`` and ``centre`` (cross entropy to Gaussians, in nats per
        keypoint and person), ``offset`` (smooth L1 in units of the person's scale), ``attributes`` (summed entropy)."""
        out = self(images)
        labelled, cells = keypoints[..., 2] > 0, pixels_to_cells(keypoints[..., :2])
        centres, exists = torso_centres(cells, labelled)
        entropy = partial(F.cross_entropy, ignore_index=UNKNOWN, reduction="sum")
        entropies = [entropy(part, attributes[name]) for name, part in self._split(out["attributes"]).items()]
        heat = self._map_loss(out["heat"], cells, labelled)
        centre = self._map_loss(out["centre"], centres[:, :, None], exists[:, :, None])
        offset = self._offset_loss(out["offset"], cells, labelled, centres, areas)
        parts = {"heat": heat, "centre": centre, "offset": offset, "attributes": sum(entropies) / len(images)}
        total = heat + 0.5 * centre + 2.0 * offset + parts["attributes"]
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def _map_loss(self, logits: Tensor, points: Tensor, labelled: Tensor) -> Tensor:
        """Cross entropy of ``logits [B, C, h, w]`` to the highest Gaussian over people around ``points [B, P, C, 2]``,
        which is least, though not 0, at the expected Gaussian, so that sub-cell decoding stays exact."""
        target = people_gaussians(points, labelled, logits.shape[-2:], self.config["sigma"])
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / labelled.sum().clamp_min(1)

    def _offset_loss(self, field: Tensor, cells: Tensor, labelled: Tensor, centres: Tensor, areas: Tensor) -> Tensor:
        """Supervises the four offset cells around each person's centre; errors are relative to the person's size."""
        scale = areas.clamp_min(16.0).sqrt()[..., None, None] / STRIDE
        weight = labelled[..., None].to(field.dtype)
        total = field.new_zeros(())
        for corner in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)):
            error = (regress(field, centres + 2 * centres.new_tensor(corner)) - cells) / scale
            loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1, reduction="none")
            total = total + (weight * loss).sum()
        return total / (4 * weight.sum().clamp_min(1))

    def _split(self, logits: Tensor) -> dict[str, Tensor]:
        sizes = [len(self.config["styles"]), len(self.config["scenes"]), self.config["max_count"] + 1]
        return dict(zip(("style", "scene", "count"), logits.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def estimate(self, images: Tensor) -> list[Poses]:
        return self._decode(self(images))

    @torch.no_grad()
    def attributes(self, images: Tensor) -> list[dict[str, Any]]:
        return self._name(self.attribute_head(self.features(images)))

    @torch.no_grad()
    def examine(self, images: Tensor) -> Findings:
        out = self(images)
        return Findings(self._decode(out), self._name(out["attributes"]), out["features"].float().cpu().numpy())

    def _name(self, logits: Tensor) -> list[dict[str, Any]]:
        style, scene, count = (part.argmax(1).tolist() for part in self._split(logits).values())
        styles, scenes, rows = self.config["styles"], self.config["scenes"], zip(style, scene, count, strict=True)
        return [{"style": styles[i], "scene": scenes[j], "count": k} for i, j, k in rows]

    def _decode(self, out: Mapping[str, Tensor]) -> list[Poses]:
        """Centres, then offsets, then snapping, then suppression of duplicates."""
        heat, centre = out["heat"].sigmoid(), out["centre"][:, 0].sigmoid()
        places, heights = peaks(centre, self.config["max_people"])
        cells, confidence = snapped_to_peaks(regress(out["offset"], places), heat)
        scores, order = (heights * confidence.mean(-1)).sort(dim=1, descending=True, stable=True)
        cells = torch.take_along_dim(cells, order[..., None, None], 1)
        confidence = torch.take_along_dim(confidence, order[..., None], 1)
        keep = keep_distinct(cells, scores, self.sigmas, self.config["nms_threshold"])
        keep &= scores >= self.config["score_threshold"]
        people = torch.cat([cells_to_pixels(cells), confidence[..., None]], -1).float().cpu().numpy()
        scores, keep = scores.float().cpu().numpy(), keep.cpu().numpy()
        return [Poses(p[k], s[k]) for p, s, k in zip(people, scores, keep, strict=True)]

    def calibrate(self, batches: Iterable[tuple[Tensor, Sequence[int]]], tolerance: float = 0.003) -> dict[str, float]:
        """Sets ``score_threshold`` so that the number of people found is right, on images that are in no table.

        Takes the middle of the thresholds whose mean absolute count error is within ``tolerance`` of the least, since
        generated images score differently. AP does not suffer: people with such low scores come last in its ranking.
        ``batches`` are (images, number of people in each). Returns ``score_threshold`` and its ``count_error``."""
        self.config["score_threshold"], found = 0.0, []
        for images, counts in batches:
            found += [(poses.scores, n) for poses, n in zip(self.estimate(images), counts, strict=True)]
        grid = np.geomspace(2e-3, 0.7, 80)
        errors = np.array([np.mean([abs(int((scores >= t).sum()) - count) for scores, count in found]) for t in grid])
        good = np.flatnonzero(errors <= errors.min() + tolerance)
        best = good[len(good) // 2]
        self.config["score_threshold"] = threshold = float(f"{grid[best]:.3g}")
        return {"score_threshold": threshold, "count_error": float(errors[best])}

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Writes ``config.json`` and ``model.safetensors``; each file appears complete or not at all."""
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.state_dict().items()}
        with replacing(Path(folder) / "model.safetensors") as temporary:
            save_file({k: v.contiguous().cpu() for k, v in state.items()}, temporary)
        write_text(Path(folder) / "config.json", json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MannequinJudge:
        """A frozen judge in evaluation mode, computing in float32."""
        config_file, model_file = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        for file in (config_file, model_file):
            if not file.is_file():
                holds = "a judge's folder holds config.json and model.safetensors"
                raise FileNotFoundError(f"{file} is missing: {holds}; train one (task=estimator) or correct the path")
        fix = f"it must hold {cls.__name__}'s arguments as JSON: copy it again"
        arguments = read_json(config_file, fix)
        try:
            judge = cls(**arguments)
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"{config_file} is no judge's configuration ({error}); {fix}") from error
        try:
            tensors = load_file(model_file)
        except Exception as error:  # safetensors raises its own class for every kind of damage
            fix = "the file is damaged or incomplete: copy it again"
            raise ValueError(f"{model_file} cannot be read ({error}); {fix}") from error
        refusal = f"{model_file} does not fit config.json beside it"
        return load_every_weight(judge, tensors, refusal, "take both files from the same save")


class Residual(nn.Module):
    """``x + conv(conv(x))``; context at the coarsest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = conv_bn_relu(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(first, second, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Up(nn.Module):
    """Projects the coarse map, doubles it, cuts it to the finer one's size, adds that and convolves."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(coarse, fine, 1)
        self.body = conv_bn_relu(fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        doubled = F.interpolate(self.project(coarse), scale_factor=2.0, mode="nearest")
        return self.body(doubled[..., : fine.shape[-2], : fine.shape[-1]] + fine)


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def judge_targets(
    samples: Sequence[Sample], styles: Sequence[str] = STYLES, scenes: Sequence[str] = SCENES, max_count: int = 3
) -> dict[str, Any]:
    """The arguments of `MannequinJudge.loss` after the images: ``keypoints [B, P, 17, 3]`` and ``areas [B, P]`` padded
    with unlabelled people, ``attributes``: name -> ``[B]`` classes (UNKNOWN where not given)."""
    people = max(1, *(len(s.keypoints) for s in samples))
    keypoints = np.zeros((len(samples), people, KEYPOINTS, 3), np.float32)
    areas = np.ones((len(samples), people), np.float32)
    for i, s in enumerate(samples):
        keypoints[i, : len(s.keypoints)] = s.keypoints
        areas[i, : len(s.keypoints)] = s.areas
    classes = {
        "style": [class_index(s, "style", styles) for s in samples],
        "scene": [class_index(s, "scene", scenes) for s in samples],
        "count": [min(int(s.attributes.get("count", len(s.keypoints))), max_count) for s in samples],
    }
    attributes = {name: torch.tensor(values) for name, values in classes.items()}
    return {"keypoints": torch.from_numpy(keypoints), "areas": torch.from_numpy(areas), "attributes": attributes}


def class_index(sample: Sample, name: str, classes: Sequence[str]) -> int:
    """The class of a sample's attribute, UNKNOWN without one."""
    value = sample.attributes.get(name)
    if value is not None and value not in classes:
        known = ", ".join(classes)
        raise ValueError(f"{sample.id} has the {name} '{value}', which the judge does not know; it knows {known}")
    return UNKNOWN if value is None else classes.index(value)


def pixels_to_cells(pixels: Tensor) -> Tensor:
    """Pixel coordinates to heatmap cells; cell i covers pixels 2i and 2i + 1, so its centre is at 2i + 0.5."""
    return (pixels - (STRIDE - 1) / 2) / STRIDE


def cells_to_pixels(cells: Tensor) -> Tensor:
    """The inverse of `pixels_to_cells`."""
    return cells * STRIDE + (STRIDE - 1) / 2


def torso_centres(cells: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each person's ``labelled [B, P, 17]`` shoulders and hips among ``cells [B, P, 17, 2]``, else of all
    keypoints, ``[B, P, 2]``, and ``[B, P]`` whether there is anything labelled."""
    torso = torch.zeros_like(labelled)
    torso[..., TORSO] = labelled[..., TORSO]
    chosen = torch.where(torso.any(-1, keepdim=True), torso, labelled)[..., None].to(cells.dtype)
    return (cells * chosen).sum(-2) / chosen.sum(-2).clamp_min(1), labelled.any(-1)


def regress(field: Tensor, places: Tensor) -> Tensor:
    """Keypoints ``[B, N, 17, 2]`` of people centred at ``places [B, N, 2]``, in heatmap cells. ``field [B, 34, h, w]``
    has, at half that resolution, the way from each cell's centre to every keypoint, in units of 8 heatmap cells."""
    h, w = field.shape[-2:]
    x = ((places[..., 0] - 0.5) / 2).round().long().clamp(0, w - 1)
    y = ((places[..., 1] - 0.5) / 2).round().long().clamp(0, h - 1)
    index = (y * w + x)[:, None].expand(-1, field.shape[1], -1)
    way = field.flatten(2).gather(2, index).transpose(1, 2).unflatten(-1, (KEYPOINTS, 2)) * 8
    return torch.stack([x, y], -1)[:, :, None] * 2 + 0.5 + way
