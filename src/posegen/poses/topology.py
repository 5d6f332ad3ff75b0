"""Skeletons as data: COCO-17, which every metric reads, and the others that files and drawings have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property

import numpy as np

COCO_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_JOINTS = len(COCO_NAMES)
# Limbs as HumanSD and its successors draw them: ears join the shoulders, no neck, no bar across shoulders or hips.
COCO_LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10), (5, 11), (6, 12), (11, 13),
    (12, 14), (13, 15), (14, 16),
)  # fmt: skip
COCO_BARS = ((5, 6), (11, 12))
# The skeleton of GUNet and of COCO's annotations: with the bars, without the lines from the ears to the shoulders.
COCO_BONES = tuple(sorted({*COCO_LIMBS, *COCO_BARS} - {(3, 5), (4, 6)}))
# Per-joint spread of the object keypoint similarity: OKS = exp(-d^2 / (2 area (2 sigma)^2)).
COCO_SIGMAS = np.array(
    [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089]
)  # fmt: skip
COCO_LEFT = (1, 3, 5, 7, 9, 11, 13, 15)
COCO_RIGHT = (2, 4, 6, 8, 10, 12, 14, 16)
# The joint that takes each place in a mirrored image.
COCO_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

OPENPOSE_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip
BODY_25_NAMES = (*OPENPOSE_NAMES[:8], "mid_hip", *OPENPOSE_NAMES[8:])  # its feet come last; COCO has no such joints
OPENPOSE_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FEET_NAMES = (
    "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
FACE_POINTS, PUPILS = 68, 2  # OpenPose adds the pupils to the 68 points that COCO-WholeBody has, too
FACE_NAMES = tuple(f"face_{i}" for i in range(FACE_POINTS + PUPILS))
FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
#: (first, last, sum): the face points from first to last and their mirror images add up to the sum.
_FACE_MIRROR = (
    (0, 16, 16), (17, 26, 43), (27, 30, 0), (31, 35, 66), (36, 39, 81), (40, 41, 87), (42, 45, 81), (46, 47, 87),
    (48, 54, 102), (55, 59, 114), (60, 64, 124), (65, 67, 132), (68, 69, 137),
)  # fmt: skip
#: From the root of a hand along each finger.
HAND_LIMBS = tuple((0 if j == 0 else 4 * f + j, 4 * f + j + 1) for f in range(len(FINGERS)) for j in range(4))
_OPENPOSE_FROM_COCO = [0, 5, *(COCO_NAMES.index(name) for name in OPENPOSE_NAMES[2:])]


def coco_to_openpose18(keypoints: np.ndarray) -> np.ndarray:
    """COCO-17 ``[P, 17, 3]`` to OpenPose-18 ``[P, 18, 3]``.

    The neck lies midway between the shoulders and takes the lower of their scores: without either, it is missing.
    """
    keypoints = np.asarray(keypoints)
    points = keypoints[:, _OPENPOSE_FROM_COCO].copy()
    shoulders = keypoints[:, 5:7]
    points[:, 1, :2] = shoulders[..., :2].mean(1)
    points[:, 1, 2] = shoulders[..., 2].min(1)
    points[points[:, 1, 2] <= 0, 1] = 0
    return points


def hand_names(side: str) -> tuple[str, ...]:
    """The 21 joints of a hand, in the order of OpenPose and COCO-WholeBody."""
    return (f"{side}_hand_root", *(f"{side}_{finger}_{joint}" for finger in FINGERS for joint in range(1, 5)))


def joint_name(text: str) -> str:
    """A joint's name as COCO spells it: ``LShoulder``, ``l_shoulder``, ``shoulder left`` are ``left_shoulder``."""
    words = [word.lower() for word in re.findall(r"[A-Z](?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", text)]
    words = [{"l": "left", "r": "right"}.get(word, word) for word in words]
    return "_".join(reversed(words) if len(words) == 2 and words[1] in ("left", "right") else words)


def part_of(name: str) -> str:
    """The part of a person that a joint belongs to: ``body``, ``feet``, ``face`` or ``hands``."""
    if name in FEET_NAMES:
        return "feet"
    if name in FACE_NAMES:
        return "face"
    return "hands" if name in _HANDS else "body"


@dataclass(frozen=True, eq=False)
class Topology:
    """A skeleton: the joints in their order, the limbs that join them, and their spread in the similarity of poses."""

    title: str  # for sentences
    names: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...] = ()
    sigmas: np.ndarray | None = None  # ``[joints]``, see `COCO_SIGMAS`; None where none are published

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def parts(self) -> dict[str, list[int]]:
        """The joints of each part that the skeleton has."""
        found: dict[str, list[int]] = {}
        for joint, name in enumerate(self.names):
            found.setdefault(part_of(name), []).append(joint)
        return found

    @cached_property
    def flip(self) -> tuple[int, ...]:
        """The joint that takes each place in a mirrored image."""
        return tuple(self.names.index(_mirrored(name)) for name in self.names)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Left and right joints of the same name; of the face, both halves."""
        return tuple((joint, other) for joint, other in enumerate(self.flip) if joint < other)

    @staticmethod
    @cache
    def of(names: tuple[str, ...], title: str = "its skeleton") -> Topology:
        """The known skeleton of these joints in this order, or one that only a file has."""
        return next((known for known in TOPOLOGIES.values() if known.names == names), None) or Topology(title, names)


def _mirrored(name: str) -> str:
    if name in FACE_NAMES:
        point = FACE_NAMES.index(name)
        total = next(total for first, last, total in _FACE_MIRROR if first <= point <= last)
        return FACE_NAMES[total - point] if total else name
    side, _, rest = name.partition("_")
    return f"{other}_{rest}" if (other := {"left": "right", "right": "left"}.get(side)) else name


_HALPE_26 = (
    *COCO_NAMES, "head", "neck", "mid_hip", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe",
    "left_heel", "right_heel",
)  # fmt: skip
_HANDS = (*hand_names("left"), *hand_names("right"))
_FEET_SIGMAS = (0.068, 0.066, 0.066, 0.092, 0.094, 0.094)
_FACE_SIGMAS = (
    .042, .043, .044, .043, .040, .035, .031, .025, .020, .023, .029, .032, .037, .038, .043, .041, .045, .013, .012,
    .011, .011, .012, .012, .011, .011, .013, .015, .009, .007, .007, .007, .012, .009, .008, .016, .010, .017, .011,
    .009, .011, .009, .007, .013, .008, .011, .012, .010, .034, .008, .008, .009, .008, .008, .007, .010, .008, .009,
    .009, .009, .007, .007, .008, .011, .008, .008, .008, .010, .008,
)  # fmt: skip
_HAND_SIGMAS = (
    .029, .022, .035, .037, .047, .026, .025, .024, .035, .018, .024, .022, .026, .017, .021, .021, .032, .020, .019,
    .022, .031,
)  # fmt: skip

COCO_17 = Topology("COCO-17", COCO_NAMES, COCO_LIMBS, COCO_SIGMAS)
OPENPOSE_18 = Topology("OpenPose-18", OPENPOSE_NAMES, OPENPOSE_LIMBS)
BODY_25 = Topology(
    "BODY_25",
    (*BODY_25_NAMES, *FEET_NAMES),
    (
        (1, 8), (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13), (13, 14),
        (1, 0), (0, 15), (15, 17), (0, 16), (16, 18), (14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24),
    ),
)  # fmt: skip
#: Jin et al. 2020; the sigmas are those of the authors' evaluation.
WHOLE_BODY_133 = Topology(
    "COCO-WholeBody-133",
    (*COCO_NAMES, *FEET_NAMES, *FACE_NAMES[:FACE_POINTS], *_HANDS),
    (
        *COCO_BONES, *((15, toe) for toe in (17, 18, 19)), *((16, toe) for toe in (20, 21, 22)),
        *((start + a, start + b) for start in (91, 112) for a, b in HAND_LIMBS),
    ),
    np.array([*COCO_SIGMAS, *_FEET_SIGMAS, *_FACE_SIGMAS, *_HAND_SIGMAS, *_HAND_SIGMAS]),
)  # fmt: skip
#: Andriluka et al. 2014, who measure shares of the head's size and publish no sigmas.
MPII_16 = Topology(
    "MPII-16",
    (
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
        "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist",
    ),
    (
        (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (8, 12), (12, 11), (11, 10), (8, 13),
        (13, 14), (14, 15),
    ),
)  # fmt: skip
#: Ju et al. 2023: COCO's joints, then the tips of a finger and a toe.
HUMAN_ART_21 = Topology(
    "Human-Art-21",
    (*COCO_NAMES, "left_finger", "right_finger", "left_toe", "right_toe"),
    (*COCO_BONES, (9, 17), (10, 18), (15, 19), (16, 20)),
    np.array([*COCO_SIGMAS, *[.089] * 4]),
)  # fmt: skip
#: Li et al. 2019, with COCO's sigmas and those of shoulders for head and neck, as xtcocotools evaluates it.
CROWDPOSE_14 = Topology(
    "CrowdPose-14",
    (*COCO_NAMES[5:], "head", "neck"),
    ((12, 13), (13, 0), (13, 1), (0, 2), (1, 3), (2, 4), (3, 5), (0, 6), (1, 7), (6, 8), (7, 9), (8, 10), (9, 11)),
    np.array([*COCO_SIGMAS[5:], .079, .079]),
)  # fmt: skip
#: By the names that configurations have for them.
TOPOLOGIES = {
    "coco17": COCO_17, "openpose18": OPENPOSE_18, "body25": BODY_25, "wholebody133": WHOLE_BODY_133, "mpii16": MPII_16,
    "humanart21": HUMAN_ART_21, "crowdpose14": CROWDPOSE_14,
}  # fmt: skip
#: Further skeletons that begin with COCO's joints, by their number of joints: with feet, and Halpe's two.
BEGIN_AS_COCO = {
    23: Topology("COCO-17 with feet", (*COCO_NAMES, *FEET_NAMES)),
    26: Topology("Halpe-26", _HALPE_26),
    136: Topology("Halpe-136", (*_HALPE_26, *FACE_NAMES[:FACE_POINTS], *_HANDS)),
}


def topology_named(key: str) -> Topology:
    """A skeleton by the name that configurations have for it. Raises ValueError: there is none of that name."""
    if key not in TOPOLOGIES:
        near = get_close_matches(str(key), TOPOLOGIES, 1, 0)[0]
        raise ValueError(f"topology={key}; did you mean {near}? Known are {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[key]
