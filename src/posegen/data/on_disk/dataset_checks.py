"""What `posegen prepare` looks for in a data set that its user placed by hand; one defect never hides another, and none stops the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from posegen.data.on_disk.image_scan import Look
from posegen.data.on_disk.images import COLOUR
from posegen.data.on_disk.source import Defect, Entry, Source
from posegen.poses.reading import PEOPLE
from posegen.poses.topology import COCO_NAMES

#: Least share of the joints that lie on the picture; less, and the numbers belong to pictures of another size, or x is y.
INSIDE = 0.95
#: Largest difference between two shapes that are called the same, as the logarithm of the ratio of their aspects.
UNLIKE = 0.1
NOSE, HIPS = COCO_NAMES.index("nose"), [COCO_NAMES.index("left_hip"), COCO_NAMES.index("right_hip")]


# Single entries.


def sound(entries: Iterable[Entry], report: Callable[[Defect], None]) -> Iterator[Entry]:
    """The entries whose poses can be used and whose ids are their own."""
    ids: set[str] = set()
    for entry in entries:
        problem = _fault(entry.keypoints) or (f"the id {entry.id} is used twice" if entry.id in ids else "")
        if problem:
            report(Defect(entry.place.file, problem))
            continue
        ids.add(entry.id)
        yield entry


def _fault(keypoints: np.ndarray) -> str:
    if keypoints.ndim != 3 or keypoints.shape[1:] != (17, 3):
        return f"keypoints of the shape {list(keypoints.shape)}; expected [people, 17, 3]"
    return "" if np.isfinite(keypoints).all() else "a joint is not a number"


def remarks(entry: Entry, look: Look) -> Iterator[Defect]:
    """What is odd about a picture that is kept."""
    file, people = entry.place.file, len(entry.keypoints)
    if look.mode not in COLOUR:
        yield Defect(file, f"colour mode {look.mode}, read as RGB", fatal=False)
    if not (entry.keypoints[..., 2] > 0).any():
        yield Defect(file, "nobody has a pose", fatal=False)
    if people > PEOPLE:
        yield Defect(file, f"{people} people, of whom published readers see the first {PEOPLE}", fatal=False)
    seen, inside = joints_inside(entry.keypoints, look.size)
    if inside < seen:
        yield Defect(file, f"{seen - inside} of {seen} joints lie outside the picture", fatal=False)


def joints_inside(keypoints: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """(labelled joints, those of them on the picture)."""
    x, y, v = np.moveaxis(keypoints, -1, 0)
    seen = v > 0
    inside = seen & (x > -0.5) & (x < size[1] - 0.5) & (y > -0.5) & (y < size[0] - 0.5)
    return int(seen.sum()), int(inside.sum())


# The split as a whole.


def facts(kept: Sequence[Entry], looks: Sequence[Look], listed: Sequence[Entry]) -> dict[str, Any]:
    """Counts, sizes and hashes.

    Args:
        kept: the entries that can be used.
        looks: what was seen of their pictures.
        listed: all entries, also those whose pictures cannot be used.
    """
    people = [len(entry.keypoints) for entry in kept]
    sides = np.sort(np.array([look.size for look in looks]).reshape(-1, 2), 0)
    seen, inside = (
        np.array([joints_inside(e.keypoints, look.size) for e, look in zip(kept, looks, strict=True)])
        .reshape(-1, 2)
        .sum(0)
        .tolist()
    )
    scenarios = Counter(str(entry.attributes["scenario"]) for entry in kept if "scenario" in entry.attributes)
    return {
        "images": len(kept),
        "people": sum(people),
        "images_without_people": people.count(0),
        "most_people": max(people, default=0),
        "joints": seen,
        "joints_inside": round(inside / seen, 4) if seen else None,
        "nose_above_hips": _nose_above_hips(kept, looks),
        "sizes": {
            name: [int(v) for v in sides[i]]
            for name, i in (("smallest", 0), ("median", len(sides) // 2), ("largest", -1))
        }
        if len(sides)
        else {},
        "modes": dict(Counter(look.mode for look in looks).most_common()),
        "scenarios": dict(sorted(scenarios.items())),
        "sha256_of_paths": sha256("\n".join(sorted(entry.place.file for entry in listed)).encode()).hexdigest(),
    }


def _nose_above_hips(kept: Sequence[Entry], looks: Sequence[Look]) -> float | None:
    """How far noses are above hips on average, in heights of the picture."""
    heights = []
    for entry, look in zip(kept, looks, strict=True):
        whole = entry.keypoints[(entry.keypoints[:, [NOSE, *HIPS], 2] > 0).all(1)]
        heights += ((whole[:, HIPS, 1].mean(1) - whole[:, NOSE, 1]) / look.size[0]).tolist()
    return round(float(np.mean(heights)), 4) if heights else None


def warnings(facts: Mapping[str, Any], source: Source, split: str) -> list[str]:
    """What is suspicious about the whole, and what differs from what is known of the data set."""
    expected, found = source.expected(split), source.suspicions(split)
    if "entries" in expected and facts["images"] != expected["entries"]:
        found.append(f"{facts['images']:,} pictures can be used; the released list has {expected['entries']:,}")
    if "sha256" in expected and not facts["sha256_of_paths"].startswith(expected["sha256"]):
        found.append(
            f"the picture paths have the SHA-256 {facts['sha256_of_paths'][:16]}; those of the released list have {expected['sha256']}"
        )
    here = facts["scenarios"]
    if other := [
        f"{name} {here.get(name, 0)} of {count}"
        for name, count in expected.get("scenarios", {}).items()
        if here.get(name, 0) != count
    ]:
        found.append(f"scenarios that differ from the released list: {', '.join(other)}")
    if "shape" in expected and facts["sizes"]:
        height, width = facts["sizes"]["median"]
        if abs(np.log(height / width * expected["shape"][1] / expected["shape"][0])) > UNLIKE:
            found.append(
                f"the median picture is {width} x {height} pixels, of another shape than {expected['shape'][::-1]}: {expected['otherwise']}"
            )
    if facts["joints_inside"] is not None and facts["joints_inside"] < INSIDE:
        found.append(
            f"only {facts['joints_inside']:.1%} of the joints lie on their pictures: the poses belong to pictures of another size, or x and y are swapped"
        )
    if facts["nose_above_hips"] is not None and facts["nose_above_hips"] <= 0:
        found.append("noses lie below hips on average: y is counted upwards, or x and y are swapped")
    return found
