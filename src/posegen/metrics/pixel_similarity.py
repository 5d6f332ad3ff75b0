"""How alike a picture and its target are, pixel by pixel: for data whose targets a perfect method would reproduce.

Pictures are compared as they are stored, in whole bytes. `Likeness` notes, `LikenessMetric` makes columns of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample, to_uint8
from posegen.metrics.base import Column, Estimator, Judged, Metric, Notes, Observer, Records, Values
from posegen.metrics.math.statistics import mean_of_known

LEAST_ERROR = 1 / 12  # squared grey levels: the variance of rounding to whole bytes, below which two pictures agree
MARGIN = 0.15  # of the longer side of a person's joints, by which their box reaches beyond them: hair, hands, feet
WINDOW = 11  # pixels of a side of SSIM's Gaussian window, of sigma 1.5 (Wang et al. 2004)
SHOULDERS_AND_HIPS = (5, 6, 12, 11)  # COCO joints around the torso
LEGS = ((11, 13), (13, 15), (12, 14), (14, 16))  # thighs and shins
LEG_WIDTH = 0.12  # of the torso's height
NOTED = ("psnr", "ssim", "l1", "person_psnr", "person_l1", "colour_error")


def psnr(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratios ``[B]`` in dB of ``[B, H, W, 3] uint8``; equal ones get 58.9, that of rounding."""
    error = np.square(pictures.astype(np.float64) - targets).reshape(len(pictures), -1).mean(1)
    return 10 * np.log10(255**2 / np.maximum(error, LEAST_ERROR))


def ssim(pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Structural similarities ``[B]`` of ``[B, H, W, 3] uint8`` (Wang et al. 2004): Gaussian window of 11 pixels,
    or the largest odd one that fits, range 255, mean over colours."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    planes = [torch.from_numpy(v.astype(np.float32)).permute(0, 3, 1, 2) / 255 for v in (pictures, targets)]
    side = min(WINDOW, *(side - 1 + side % 2 for side in pictures.shape[1:3]))
    window: dict[str, Any] = {"gaussian_kernel": side == WINDOW, "kernel_size": side, "sigma": 1.5}
    values = structural_similarity_index_measure(*planes, **window, data_range=1.0, reduction="none")
    return values.reshape(-1).double().numpy()  # type: ignore[union-attr]


class Likeness(Observer):
    """Notes how alike an image and its target are: ``psnr``, ``ssim``, ``l1``; ``person_psnr`` and ``person_l1`` in
    the box around the target's people; and ``colour_error``, how far their clothes' colours are apart.

    Colours are means over the torso, the polygon of shoulders and hips, and over the legs, bands from hips to
    ankles, at the *target's* joints, in CIELAB; the error is the mean distance (CIE 1976), NaN without these joints."""

    compares = True

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        if real:
            return [dict.fromkeys(NOTED, float("nan")) for _ in samples]  # a reference is compared as a set alone
        made, targets = to_uint8(images), np.stack([target_picture(sample) for sample in samples])
        if made.shape != targets.shape:
            sizes = f"pictures are {made.shape[1:3]}, their targets {targets.shape[1:3]} pixels"
            raise ValueError(f"{sizes}; generate them in the size of the data")
        l1 = np.abs(made.astype(float) - targets).mean((1, 2, 3)) / 255
        whole = {"psnr": psnr(made, targets), "ssim": ssim(made, targets), "l1": l1}
        people = [in_person(made[i], targets[i], sample.keypoints) for i, sample in enumerate(samples)]
        return [{name: float(v[i]) for name, v in whole.items()} | people[i] for i in range(len(samples))]


def target_picture(sample: Sample) -> np.ndarray:
    """``[H, W, 3]`` the picture of a sample, or a ValueError where it has none."""
    if sample.image is None:
        fix = "choose data with pictures, or a protocol that compares none"
        raise ValueError(f"sample {sample.id} has no picture to compare with; {fix}")
    return sample.image


def in_person(made: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> dict[str, float]:
    """What `Likeness` notes of the people, in ``[H, W, 3] uint8``, given the target's ``[P, 17, 3]``."""
    boxes = [box for person in keypoints if (box := box_of(person, target.shape[:2]))]
    if not boxes:
        return dict.fromkeys(("person_psnr", "person_l1", "colour_error"), float("nan"))
    inside = np.zeros(target.shape[:2], bool)
    for rows, columns in boxes:
        inside[rows, columns] = True
    ours, theirs = made[inside][None, None], target[inside][None, None]
    regions = [mask for person in keypoints for mask in clothes(person, target.shape[:2]) if mask.any()]
    distance = float("nan")
    if regions:
        colours = [np.stack([lab(picture)[mask].mean(0) for mask in regions]) for picture in (made, target)]
        distance = float(np.linalg.norm(colours[0] - colours[1], axis=1).mean())
    l1 = float(np.abs(ours.astype(float) - theirs).mean() / 255)
    return {"person_psnr": float(psnr(ours, theirs)[0]), "person_l1": l1, "colour_error": distance}


def box_of(person: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of the box around a person's labelled joints, with a margin, within the picture, or None."""
    shown = person[person[:, 2] > 0, :2]
    if not len(shown):
        return None
    low, high = shown.min(0), shown.max(0)
    reach = MARGIN * (high - low).max() + 1
    (left, top), (right, bottom) = np.floor(low - reach).astype(int), np.ceil(high + reach).astype(int) + 1
    rows, columns = slice(max(0, top), max(0, min(size[0], bottom))), slice(max(0, left), max(0, min(size[1], right)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def clothes(person: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Masks ``[H, W] bool`` of a person's torso and legs, as far as their joints are labelled."""
    known, points = person[:, 2] > 0, person[:, :2]
    masks = []
    if known[list(SHOULDERS_AND_HIPS)].all():
        torso = np.zeros(size, np.uint8)
        cv2.fillConvexPoly(torso, cv2.convexHull(points[list(SHOULDERS_AND_HIPS)].round().astype(np.int32)), 1)
        masks.append(torso.astype(bool))
        width = max(1, round(LEG_WIDTH * float(np.linalg.norm(points[[5, 6]].mean(0) - points[[11, 12]].mean(0)))))
        legs = np.zeros(size, np.uint8)
        for a, b in LEGS:
            if known[a] and known[b]:
                start, end = (tuple(int(v) for v in points[i].round()) for i in (a, b))
                cv2.line(legs, start, end, 1, width)
        masks.append(legs.astype(bool))
    return masks


def lab(picture: np.ndarray) -> np.ndarray:
    """``[H, W, 3] uint8`` sRGB as CIELAB."""
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


class LikenessMetric(Metric):
    """Means over the images of what `Likeness` noted; L1 as a share of the range of colours."""

    columns = (
        Column("PSNR", family="likeness", unit="dB"),
        Column("SSIM", family="quality", axis=5),
        Column("L1", "lower", None, "likeness"),
        Column("person_PSNR", family="quality", axis=4, unit="dB"),
        Column("person_L1", "lower", None, "likeness"),
        Column("colour_error", "lower", family="likeness"),
    )

    def record(self, judged: Judged) -> dict[str, float]:
        return {name.lower(): judged.observed[name.lower()] for name in self.columns}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        return {name: mean_of_known(records[name.lower()], weights) for name in self.columns}
