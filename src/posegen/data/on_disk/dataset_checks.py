"""The checks of ``posegen prepare`` on data that the user placed; all defects are found, none stops the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from posegen.data.condition import Defect
from posegen.data.on_disk.image_scan import ScannedImage
from posegen.data.on_disk.images import LOSSLESS_MODES
from posegen.data.on_disk.source import Source, StoredImage
from posegen.io.hashes import text_hash
from posegen.poses.reading import LEAST_INSIDE, MOST_UNLIKE, PEOPLE
from posegen.poses.topology import COCO_NAMES

NOSE, HIPS = COCO_NAMES.index("nose"), [COCO_NAMES.index("left_hip"), COCO_NAMES.index("right_hip")]


def usable_entries(entries: Iterable[StoredImage], report: Callable[[Defect], None]) -> Iterator[StoredImage]:
    ids: set[str] = set()
    for entry in entries:
        problem, shape = "", entry.keypoints.shape
        if len(shape) != 3 or shape[1:] != (17, 3):
            problem = f"keypoints of the shape {list(shape)}; expected [people, 17, 3]"
        elif not np.isfinite(entry.keypoints).all():
            problem = "a joint is not a number"
        elif entry.id in ids:
            problem = f"the id {entry.id} is used twice"
        if problem:
            report(Defect(entry.place.file, problem))
        else:
            ids.add(entry.id)
            yield entry


def image_remarks(entry: StoredImage, scanned: ScannedImage) -> Iterator[Defect]:
    """Oddities of an image that is kept."""
    file, people = entry.place.file, len(entry.keypoints)
    if scanned.mode not in LOSSLESS_MODES:
        yield Defect(file, f"colour mode {scanned.mode}, read as RGB", fatal=False)
    if not (entry.keypoints[..., 2] > 0).any():
        yield Defect(file, "nobody has a pose", fatal=False)
    if people > PEOPLE:
        yield Defect(file, f"{people} people, of whom published readers see the first {PEOPLE}", fatal=False)
    seen, inside = joints_inside(entry.keypoints, scanned.size)
    if inside < seen:
        yield Defect(file, f"{seen - inside} of {seen} joints lie outside the picture", fatal=False)


def canvas_remarks(entry: StoredImage, scanned: ScannedImage) -> Iterator[Defect]:
    """Whether the canvas of the poses has another shape than the image, so that the people are stretched."""
    (height, width), (tall, wide) = scanned.size, entry.frame or scanned.size
    if abs(np.log(height / width * wide / tall)) > MOST_UNLIKE:
        text = f"its poses lie on a canvas of {wide} x {tall} and are stretched to {width} x {height} pixels"
        yield Defect(entry.place.file, text, fatal=False)


def joints_inside(keypoints: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """(labelled joints, those of them inside the image)."""
    x, y, v = np.moveaxis(keypoints, -1, 0)
    seen = v > 0
    inside = seen & (x > -0.5) & (x < size[1] - 0.5) & (y > -0.5) & (y < size[0] - 0.5)
    return int(seen.sum()), int(inside.sum())


def split_facts(
    kept: Sequence[StoredImage], scans: Sequence[ScannedImage], listed: Sequence[StoredImage]
) -> dict[str, Any]:
    """Counts, sizes and hashes of the usable images, their scans, and all ``listed`` images."""
    people = [len(entry.keypoints) for entry in kept]
    sides = np.sort(np.array([scanned.size for scanned in scans]).reshape(-1, 2), 0)
    counts = [joints_inside(entry.keypoints, scanned.size) for entry, scanned in zip(kept, scans, strict=True)]
    seen, inside = np.array(counts).reshape(-1, 2).sum(0).tolist()
    scenarios = Counter(str(entry.attributes["scenario"]) for entry in kept if "scenario" in entry.attributes)
    heights = []  # of noses above hips, in heights of the image
    for entry, scanned in zip(kept, scans, strict=True):
        whole = entry.keypoints[(entry.keypoints[:, [NOSE, *HIPS], 2] > 0).all(1)]
        heights += ((whole[:, HIPS, 1].mean(1) - whole[:, NOSE, 1]) / scanned.size[0]).tolist()
    order = {"smallest": 0, "median": len(sides) // 2, "largest": -1} if len(sides) else {}
    return {
        "images": len(kept),
        "people": sum(people),
        "images_without_people": people.count(0),
        "most_people": max(people, default=0),
        "joints": seen,
        "joints_inside": round(inside / seen, 4) if seen else None,
        "nose_above_hips": round(float(np.mean(heights)), 4) if heights else None,
        "sizes": {name: [int(side) for side in sides[i]] for name, i in order.items()},
        "modes": dict(Counter(scanned.mode for scanned in scans).most_common()),
        "scenarios": dict(sorted(scenarios.items())),
        "sha256_of_paths": text_hash("\n".join(sorted(entry.place.file for entry in listed)), 64),
    }


def split_warnings(facts: Mapping[str, Any], source: Source, split: str) -> list[str]:
    """Suspicions, and differences from the published counts and hashes."""
    expected, found = source.expected(split), source.suspicions(split)
    if "entries" in expected and facts["images"] != expected["entries"]:
        found.append(f"{facts['images']:,} pictures can be used; the released list has {expected['entries']:,}")
    if "sha256" in expected and not facts["sha256_of_paths"].startswith(expected["sha256"]):
        now, then = facts["sha256_of_paths"][:16], expected["sha256"]
        found.append(f"the picture paths have the SHA-256 {now}; those of the released list have {then}")
    counts, published = facts["scenarios"], expected.get("scenarios", {})
    other = [f"{name} {counts.get(name, 0)} of {n}" for name, n in published.items() if counts.get(name, 0) != n]
    if other:
        found.append(f"scenarios that differ from the released list: {', '.join(other)}")
    if "shape" in expected and facts["sizes"]:
        (height, width), (tall, wide) = facts["sizes"]["median"], expected["shape"]
        if abs(np.log(height / width * wide / tall)) > MOST_UNLIKE:
            median = f"the median picture is {width} x {height} pixels"
            found.append(f"{median}, of another shape than {(wide, tall)}: {expected['otherwise']}")
    if facts["joints_inside"] is not None and facts["joints_inside"] < LEAST_INSIDE:
        why = "the poses belong to pictures of another size, or x and y are swapped"
        found.append(f"only {facts['joints_inside']:.1%} of the joints lie on their pictures: {why}")
    if facts["nose_above_hips"] is not None and facts["nose_above_hips"] <= 0:
        found.append("noses lie below hips on average: y is counted upwards, or x and y are swapped")
    return found
