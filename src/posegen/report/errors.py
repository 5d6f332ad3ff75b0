"""Why a pose is wrong: joints by part, kinds of errors, what repairing each would bring, and where people fail."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posegen.metrics.base import Column, Records
from posegen.metrics.math import keypoint_errors as ke
from posegen.poses.topology import COCO_FLIP, COCO_NAMES
from posegen.report.rows import Group, Row

ALL = "all"  # the slice of everybody
BODY = range(5, 17)  # shoulders to ankles
SIZES = "smallest third", "middle third", "largest third"
OCCLUSION = "none hidden", "up to a quarter hidden", "more hidden"
FACINGS = {ke.FRONT: "front", ke.BACK: "back", ke.SIDE: "side"}
#: Parts of the body -> their joints; ``left_knee`` and ``right_knee`` are the knees.
PARTS = {n.removeprefix("left_"): sorted({i, COCO_FLIP[i]}) for i, n in enumerate(COCO_NAMES) if i <= COCO_FLIP[i]}
JOINT_COLUMNS = [Column(f"PCK {name}", unit="%") for name in COCO_NAMES]
PART_COLUMNS = [Column(name, unit="%") for name in PARTS]
REPAIR_COLUMNS = [Column(f"AP gain {name}", None, unit="%") for name in ke.REPAIRS]
KIND_COLUMNS = [Column(name, "higher" if name == "good" else "lower", unit="%") for name in ke.KINDS]
PEOPLE_COLUMNS = [Column(name, "lower", unit="%") for name in ("unseen", "left-right", "front-back")]
SURPLUS = Column("surplus", "lower", unit="people per image")
#: Heading -> the columns of one table of methods.
SHEETS: Mapping[str, Sequence[Column]] = {
    "AP, and what repairing one kind of error would add to it": [Column("AP", unit="%"), *REPAIR_COLUMNS],
    "Labelled joints of people who were found, and people, in percent": [*KIND_COLUMNS, *PEOPLE_COLUMNS, SURPLUS],
    "PCK by part of the body": PART_COLUMNS,
}
PCK = Column("PCK@0.1", unit="%")
CAPTION = (
    "Kinds of errors as in Ronchi and Perona (2017). unseen: people without a detection; surplus: detections without a "
    "person. left-right: people with most left and right joints inverted; front-back: people seen from the front or "
    "the back whose shoulders and hips were found the other way round. Means over seeds, without intervals."
)


@dataclass
class ErrorTable:
    """A row per method and slice of the people: the slice under ``by`` and ``slice``, `ALL` first."""

    judge: str  # whose detections these are
    rows: list[Row]

    @property
    def everybody(self) -> list[Row]:
        """A row per method, over all people."""
        return [row for row in self.rows if row["by"] == ALL]

    @property
    def slices(self) -> list[tuple[str, str]]:
        """What the people are divided by, and the parts, but for `ALL`."""
        return list(dict.fromkeys((row["by"], row["slice"]) for row in self.rows if row["by"] != ALL))


def error_table(judge: str, groups: Sequence[Group], rows: Sequence[Row], protocol: Any) -> ErrorTable | None:
    """Of the finished rows; None where their records have no poses."""
    found: list[Row] = []
    for group, row in zip(groups, rows, strict=True):
        seeds = [Errors.of(protocol.read(folder)) for folder in group.finished]
        known = [each for each in seeds if each is not None]
        if not seeds or len(known) < len(seeds):
            continue
        about = {"method": group.name, "ranked": row.get("ranked", group.ranked), "state": "finished"}
        for by, part in dict.fromkeys(place for each in known for place in each.slices):
            each_seed = [each.values(by, part) for each in known]
            values = {name: float(np.mean([v[name] for v in each_seed])) for name in each_seed[0]}
            found.append({**about, "by": by, "slice": part, **values})
    return ErrorTable(judge, found) if found else None


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors of one set of images, with n images and N people in all."""

    records: Records
    images: Sequence[ke.ImageErrors]
    kinds: np.ndarray  # [N, 17] of each person's detection, -1 where not labelled or nobody was found
    correct: np.ndarray  # [N, 17] bool, as in PCK
    labelled: np.ndarray  # [N, 17] bool
    people: Mapping[str, np.ndarray]  # [N] bool: unseen, left-right, front-back
    known: Mapping[str, np.ndarray]  # [N] bool: people of whom these can be said
    labels: Mapping[str, np.ndarray]  # what people are divided by -> [N] the part of each

    @classmethod
    def of(cls, records: Records) -> Errors | None:
        """Of the records of a `PoseMetric` with its poses; None without them, or without people."""
        if "detections" not in records or not any(map(len, records["keypoints"])):
            return None
        found, keypoints, areas = records["detections"], records["keypoints"], records["areas"]
        images = [ke.image_errors(*each) for each in zip(found, keypoints, areas, strict=True)]
        kinds, turned, mirrored = [], [], []
        for each, poses, people in zip(images, found, keypoints, strict=True):
            who = {int(p): d for d, p in enumerate(each.person) if p >= 0}
            for p, person in enumerate(people):
                d = who.get(p)
                kinds.append(np.full(17, -1) if d is None else each.kind[d])
                turned.append(d is not None and bool(ke.turned_round(poses[d], person)))
                mirrored.append(d is not None and bool(ke.mirrored_people(each)[d]))
        correct = [ke.correct_joints(*each) for each in zip(found, keypoints, areas, strict=True)]
        everybody = np.concatenate([k.reshape(-1, 17, 3) for k in keypoints])
        unseen = np.concatenate([~ke.seen(e, len(k)) for e, k in zip(images, keypoints, strict=True)])
        faces = ke.facing(everybody, np.concatenate(areas))
        facts = {"unseen": unseen, "left-right": np.array(mirrored), "front-back": np.array(turned)}
        known = {"unseen": np.ones_like(unseen), "left-right": ~unseen, "front-back": ~unseen & (faces != ke.SIDE)}
        labels = dict(people_labels(records, everybody, faces))
        labelled = everybody[..., 2] > 0
        return cls(records, images, np.array(kinds), np.concatenate(correct), labelled, facts, known, labels)

    @property
    def slices(self) -> list[tuple[str, str]]:
        parts = [(by, part) for by, each in self.labels.items() for part in in_order(set(each)) if len(set(each)) > 1]
        return [(ALL, ALL), *parts]

    def values(self, by: str, part: str) -> dict[str, float]:
        """PCK, kinds of errors and confusions of one slice; of `ALL` also the AP after repairs and each joint's PCK."""
        chosen = np.ones(len(self.labelled), bool) if by == ALL else self.labels[by] == part
        kinds, correct, labelled = self.kinds[chosen], self.correct[chosen], self.labelled[chosen]
        found = {"n_people": float(chosen.sum()), "PCK@0.1": percent(correct.sum(), labelled.sum())}
        found |= {name: percent((kinds == k).sum(), (kinds >= 0).sum()) for k, name in enumerate(ke.KINDS)}
        found |= {
            n: percent((v & self.known[n])[chosen].sum(), self.known[n][chosen].sum()) for n, v in self.people.items()
        }
        return found | (self._of_everybody() if by == ALL else {})

    def _of_everybody(self) -> dict[str, float]:
        found, scores, keypoints, areas = (self.records[n] for n in ("detections", "scores", "keypoints", "areas"))

        def average_precision(repair: str = "") -> float:
            return 100 * ke.repaired_ap(found, scores, keypoints, areas, self.images, repair)

        values = {"AP": average_precision()}
        values |= {f"AP gain {name}": average_precision(name) - values["AP"] for name in ke.REPAIRS}
        values["surplus"] = float(np.mean([(each.person < 0).sum() for each in self.images]))
        joints = {f"PCK {name}": [i] for i, name in enumerate(COCO_NAMES)} | PARTS
        return values | {n: percent(self.correct[:, j].sum(), self.labelled[:, j].sum()) for n, j in joints.items()}


def people_labels(records: Records, people: np.ndarray, faces: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What people ``[N, 17, 3]`` are divided by, with the part of each ``[N]``.

    Without the face: occlusion is the share of labelled joints that are hidden, exact in the mannequin world, and a
    person is cut off where a joint has no label. Thirds of sizes are those of these people."""
    counts = [len(each) for each in records["areas"]]
    body = people[:, BODY, 2]
    hidden = (body == 1).sum(1) / np.maximum((body > 0).sum(1), 1)
    yield "occlusion", np.array(OCCLUSION)[np.digitize(hidden, (1e-9, 0.25 + 1e-9))]
    yield "truncation", np.where((body > 0).all(1), "whole", "cut off")
    areas = np.concatenate(records["areas"])
    yield "size", np.array(SIZES)[np.digitize(areas, np.quantile(areas, (1 / 3, 2 / 3)))]
    yield "people", np.repeat([f"{n} in the image" for n in counts], counts)
    if "action" in records:
        yield "action", np.repeat(np.array([str(a) for a in records["action"]]), counts)
    if (faces != ke.SIDE).any():
        yield "facing", np.array([FACINGS[int(face)] for face in faces])


def in_order(parts: Collection[str]) -> list[str]:
    """Names of parts from little to much, others by the alphabet."""
    known = [*OCCLUSION, *SIZES]
    return sorted(parts, key=lambda part: (known.index(part) if part in known else len(known), part))


def percent(count: float, of: float) -> float:
    return float(100 * count / of) if of else float("nan")
