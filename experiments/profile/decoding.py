"""Decoding associative embeddings: the vectorised form against released programs' loops over people and joints."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from experiments.profile.timing import Timing
from posegen.metrics.estimators.associative import ORDER, PUBLISHED, Decoding, decode
from posegen.metrics.estimators.bottom_up import peak_gaussians

TARGET = 5.0
SIZE, SIGMA = 256, 2.0  # of the maps of an image of 512 pixels


def measure_decoding(repetitions: int) -> list[Timing]:
    """Decodes maps of 5 and of 8 people, some of whose joints are hidden, ``repetitions`` times each way, in turns."""
    return [compared_decoding(people, repetitions) for people in (5, 8)]


def compared_decoding(people: int, repetitions: int) -> Timing:
    heatmaps, tags = invented_maps(people)
    ours, theirs = [], []
    for _ in range(max(1, repetitions)):
        fast, seconds = timed_decoding(lambda: decode(heatmaps, tags)[0])
        ours.append(seconds)
        plain, seconds = timed_decoding(lambda: in_loops(heatmaps, tags))
        theirs.append(seconds)
    agreement = max(largest(a, b) for a, b in zip(fast, plain, strict=True))
    return Timing(
        f"decoding {people} people on maps of {SIZE} x {SIZE}", median(ours), median(theirs), TARGET, agreement
    )


def timed_decoding(run: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def largest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, infinite between results of different shapes."""
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")


def invented_maps(people: int, hidden: float = 0.15, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Heatmaps ``[1, 17, 256, 256]`` and tags ``[1, 17, 256, 256, 2]`` of people, some joints hidden, with noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(people, 1, 2, generator=generator) * (SIZE - 80) + 40
    points = centres + torch.rand(people, 17, 2, generator=generator) * 70 - 35
    height = (0.4 + 0.6 * torch.rand(people, 17, generator=generator)) * (
        torch.rand(people, 17, generator=generator) >= hidden
    )
    heat = peak_gaussians(points, (SIZE, SIZE), SIGMA) * height[..., None, None]
    owner = heat.argmax(0)
    tags = 2.0 * owner[..., None] + 0.1 * torch.randn(17, SIZE, SIZE, 2, generator=generator)
    noise = 0.01 * torch.rand(17, SIZE, SIZE, generator=generator)
    return (heat.amax(0) + noise)[None], tags[None]


# The plain form.


def in_loops(heatmaps: Tensor, tags: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`posegen.metrics.estimators.associative.decode` of one image, one person and one joint after the other."""
    candidates = listed(heatmaps, tags, PUBLISHED)
    heat, tag = heatmaps[0].numpy(), tags[0].numpy()
    people = grouped(candidates, PUBLISHED)
    logs = np.stack([np.log(np.clip(cv2.GaussianBlur(h, (3, 3), 0), 0.001, 50)) for h in heat])
    for person in people:
        for joint in range(17):
            person[joint, :2] = stepped(logs[joint], *person[joint, :2])
    scores = np.array([person[:, 2].mean() for person in people], np.float32)
    for person in people:
        complete(person, heat, tag)
    return np.array(people, np.float32).reshape(-1, 17, 3), scores


def listed(heatmaps: Tensor, tags: Tensor, d: Decoding) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Per joint its peaks (x, y, height) with their tags."""
    summits = F.max_pool2d(heatmaps, d.kernel, 1, d.kernel // 2)
    heights, cells = (heatmaps * (summits == heatmaps)).flatten(2).topk(d.candidates)
    found = []
    for joint in range(17):
        own = []
        for height, cell in zip(heights[0, joint].tolist(), cells[0, joint].tolist(), strict=True):
            y, x = divmod(cell, heatmaps.shape[-1])
            if height > d.detection_threshold:
                own.append((np.array([x, y, height], np.float32), tags[0, joint, y, x].numpy()))
        found.append(own)
    return found


def grouped(candidates: list[list[tuple[np.ndarray, np.ndarray]]], d: Decoding) -> list[np.ndarray]:
    people: dict[float, np.ndarray] = {}
    member_tags: dict[float, list[np.ndarray]] = {}
    for joint in ORDER:
        peaks, keys = candidates[joint], list(people)
        cost = np.full((len(peaks), max(len(peaks), len(keys))), 1e10)
        distance = np.full(cost.shape, np.inf)
        for i, (peak, tag) in enumerate(peaks):
            for j, key in enumerate(keys):
                distance[i, j] = np.linalg.norm(tag.astype(float) - np.mean(member_tags[key], axis=0))
                cost[i, j] = np.round(distance[i, j]) * 100 - peak[2]
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            peak, tag = peaks[i]
            if distance[i, j] < d.tag_threshold:
                people[keys[j]][joint] = peak
                member_tags[keys[j]].append(tag)
            else:
                people.setdefault(float(tag[0]), np.zeros((17, 3), np.float32))[joint] = peak
                member_tags[float(tag[0])] = [tag]
    return list(people.values())


def stepped(logs: np.ndarray, x: float, y: float) -> np.ndarray:
    """A Newton step from a cell of one map."""
    padded = np.pad(logs, 1, mode="edge")
    a = padded[int(y) : int(y) + 3, int(x) : int(x) + 3]
    gradient = np.array([a[1, 2] - a[1, 0], a[2, 1] - a[0, 1]]) / 2
    mixed = (a[2, 2] - a[1, 2] - a[2, 1] + 2 * a[1, 1] - a[1, 0] - a[0, 1] + a[0, 0]) / 2
    hessian = np.array([[a[1, 2] - 2 * a[1, 1] + a[1, 0], mixed], [mixed, a[2, 1] - 2 * a[1, 1] + a[0, 1]]])
    return np.array([x, y]) - np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2)) @ gradient


def complete(person: np.ndarray, heat: np.ndarray, tags: np.ndarray) -> None:
    """Looks for every joint of a person, and keeps what is found of the missing ones."""
    h, w = heat.shape[1:]
    cells = [
        (j, min(max(int(person[j, 1]), 0), h - 1), min(max(int(person[j, 0]), 0), w - 1))
        for j in range(17)
        if person[j, 2] > 0
    ]
    mean = np.mean([tags[cell] for cell in cells], axis=0)
    for joint in range(17):
        apart = np.round(((tags[joint] - mean) ** 2).sum(axis=2) ** 0.5)
        y, x = divmod(int(np.argmax(heat[joint] - apart)), w)
        height = heat[joint, y, x]
        dx = 0.25 if heat[joint, y, min(x + 1, w - 1)] > heat[joint, y, max(x - 1, 0)] else -0.25
        dy = 0.25 if heat[joint, min(y + 1, h - 1), x] > heat[joint, max(y - 1, 0), x] else -0.25
        if height > 0 and person[joint, 2] == 0:
            person[joint] = x + dx, y + dy, height
