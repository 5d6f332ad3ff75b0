"""The metrics' reference cases: invented people, features or numbers, and what the published programs make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from posegen.metrics.base import Judged, Metric, Poses, Records
from posegen.metrics.clip import clip_score
from posegen.metrics.math.average_precision import COCO_RANGES, summary
from posegen.metrics.math.frechet import Polynomial, frechet_distance, kernel_distance
from posegen.metrics.papers.pose import PaperPoseMetric, rows
from posegen.metrics.papers.quality import scenario_mean, wrapped_bytes
from posegen.metrics.pose import PoseMetric
from posegen.parity.build import Outputs, UnknownPart
from posegen.parity.case import METRIC_RTOL, Case, leaves

#: What a case expects, by name: of the published program (""), of a right one ("corrected"), ...
ExpectedGroups = dict[str, Any]
CaseRow = dict[str, float]


def metrics_outputs(case: Case) -> Outputs:
    """The values of the case that can be computed, by the names under which it expects them."""
    if case.module not in METRIC_KINDS:
        raise UnknownPart(f"kind {case.module!r} of {case.place} is none of {', '.join(METRIC_KINDS)}")
    for group, values in METRIC_KINDS[case.module](case).items():
        for name, value in leaves(values, group):
            if name in case.expected:
                yield name, torch.tensor(value, dtype=torch.double)


def pose_values(case: Case) -> ExpectedGroups:
    """AP, AR, SAP, SAR and PCE of all images as one batch, of batches, and as a right program has them."""
    given = case.facts["inputs"]
    images = []
    for people, detections in zip(given["gt_pose"], given["detections"], strict=True):
        keypoints = np.array(people, float).reshape(-1, 17, 3)
        detected = np.array([d["keypoints"] for d in detections], float).reshape(-1, 17, 3)
        poses = Poses(detected, np.array([d["score"] for d in detections], float))
        # the people's areas follow from their joints
        images.append(Judged(str(len(images)), keypoints, np.full(len(keypoints), np.nan), poses))
    paper = pose_records(PaperPoseMetric(), images)
    corrected = corrected_row(pose_records(PoseMetric(similarities=["SAP_fixed"]), images))
    groups: ExpectedGroups = {"": paper_row(paper), "corrected": corrected}
    if wanted := case.facts.get("expected_per_batch_rows"):
        found = batch_rows(paper, wanted, case.facts["atol"])
        groups["per_batch_rows"] = found
        groups["mean_over_batches"] = {name: np.mean([r[name] for r in found]) for name in found[0]}
        defined = {name: [r[name] for r in found if r[name] != -1] or [-1.0] for name in found[0]}
        groups["mean_over_batches_without_minus_one"] = {name: np.mean(values) for name, values in defined.items()}
    return groups


def pose_records(metric: Metric, images: Iterable[Judged]) -> Records:
    facts = [metric.record(judged) for judged in images]
    return {name: [fact[name] for fact in facts] for name in facts[0]}


def paper_row(paper: Records) -> CaseRow:
    """What the published program writes for all images as one batch."""
    return {name: float(values[0]) for name, values in rows(paper, len(paper["paper_people"])).items()}


def corrected_row(facts: Records) -> CaseRow:
    """The values over the whole set, with areas of labelled joints, the true y and every image counted."""
    values: CaseRow = {}
    for prefix, similarity in (("", "oks"), ("S", "similarity_SAP_fixed")):
        found = summary(facts[similarity], facts["scores"], facts["areas"], facts["extents"], area_ranges=COCO_RANGES)
        values |= {prefix + name: float(np.nan_to_num(value[0], nan=-1.0)) for name, value in found.items()}
    return values | {"PCE": float(np.abs(np.subtract(facts["found"], facts["people"])).mean())}


def batch_rows(paper: Records, wanted: Sequence[Mapping[str, float]], atol: float) -> list[CaseRow]:
    """One row per batch of consecutive images, whose numbers no case tells: the most even ones that give its rows."""
    n = len(paper["paper_people"])
    even = -(-n // len(wanted))  # where no division gives them

    def row(start: int, end: int) -> CaseRow:
        return paper_row({name: values[start:end] for name, values in paper.items()})

    def as_expected(made: CaseRow, expected: Mapping[str, float]) -> bool:
        common = made.keys() & expected.keys()
        return all(np.isclose(made[k], float(expected[k]), METRIC_RTOL, atol, equal_nan=True) for k in common)

    ways: dict[int, list[CaseRow]] = {0: []}
    for expected in wanted:
        further: dict[int, list[CaseRow]] = {}
        for start, way in ways.items():
            for end in sorted(range(start + 1, n + 1), key=lambda end: abs(end - start - even)):
                if end not in further and as_expected(made := row(start, end), expected):
                    further[end] = [*way, made]
        ways = further
    return ways.get(n) or [row(i, i + even) for i in range(0, n, even)]


def feature_distances(case: Case) -> ExpectedGroups:
    given = case.facts["inputs"]
    real, fake = (np.array(given[name], float) for name in ("real", "fake"))
    about = given.get("kid", {})
    gamma = None if about.get("gamma", "1/dim") == "1/dim" else float(about["gamma"])
    kernel = Polynomial(about.get("degree", 3), gamma, about.get("coef", 1.0))
    frechet, distance = frechet_distance(real, fake), kernel_distance(real, fake, kernel)
    values = dict.fromkeys(("fid_torchmetrics", "fid_cleanfid"), frechet)
    values |= dict.fromkeys(("kid_whole_set_torchmetrics", "kid_whole_set_cleanfid"), distance)
    if subset := given.get("subset_rows"):
        values["kid_first_rows"] = kernel_distance(real[:subset], fake[:subset], kernel)
    for name in case.expected:
        what, _, size = name.rpartition("_over_blocks_of_")
        if what in ("kid_mean", "kid_std") and size.isdigit():
            starts = range(0, min(len(real), len(fake)), int(size))
            blocks = [kernel_distance(real[i : i + int(size)], fake[i : i + int(size)], kernel) for i in starts]
            values[name] = float(np.mean(blocks) if what == "kid_mean" else np.std(blocks))
    return {"": values}


def quality_preprocessing(case: Case) -> ExpectedGroups:
    """The bytes that the published program's network sees of single pixels."""
    pixels = np.array(case.facts["inputs"]["pixels_rgb"], np.uint8)
    real, generated = (wrapped_bytes(pixels, generated=generated).tolist() for generated in (False, True))
    return {"": {"real_bytes": real, "generated_bytes": generated, "corrected_bytes": pixels.tolist()}}


def quality_overall(case: Case) -> ExpectedGroups:
    """Values of scenarios to values of all, also times the factors that names end in: ``KID_x100``."""
    means = scenario_mean(case.facts["inputs"]["scenarios"])
    values = dict(means)
    for name in case.expected:
        metric, _, factor = name.rpartition("_x")
        if metric in means and factor.isdigit():
            values[name] = float(factor) * means[metric]
    return {"": values}


def clip_values(case: Case) -> ExpectedGroups:
    score, pairs = clip_score(*(np.array(case.facts["inputs"][name], float) for name in ("image", "text")))
    return {"": {"score": score, "per_pair": pairs.tolist()}}


#: Kind -> what computes its values.
METRIC_KINDS: dict[str, Callable[[Case], ExpectedGroups]] = {
    "pose": pose_values, "features": feature_distances, "quality_preprocessing": quality_preprocessing,
    "quality_overall": quality_overall, "clip_score": clip_values,
}  # fmt: skip
