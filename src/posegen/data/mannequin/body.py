"""The 3-D mannequin: bones, ten actions, and the turn towards the viewer.

Body frame: x to the person's left, y up, z forward. A turned body is seen along -z: image x = x, image y = -y.
Lengths are in body heights (about 1 from sole to crown).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np

from posegen.data.mannequin.rng import Dice

BODY_JOINTS = (
    "pelvis", "waist", "neck", "head", "side_l", "side_r",
    "shoulder_l", "elbow_l", "wrist_l", "hand_l", "hip_l", "knee_l", "ankle_l", "toe_l",
    "shoulder_r", "elbow_r", "wrist_r", "hand_r", "hip_r", "knee_r", "ankle_r", "toe_r",
)  # fmt: skip
J = {name: i for i, name in enumerate(BODY_JOINTS)}
BONE_LENGTHS = {
    "spine": 0.118, "chest": 0.152, "neck": 0.122, "shoulder": 0.108, "side": 0.026, "hip": 0.062,
    "upper_arm": 0.152, "forearm": 0.138, "hand": 0.036, "thigh": 0.222, "shin": 0.212, "foot": 0.082,
}  # fmt: skip
HEAD_RADIUS = 0.083
# Face features in head radii, on or just above the unit sphere (x left, y up, z forward).
EYE = (0.37, 0.06, 0.927)
NOSE = (0.0, -0.17, 1.08)
EAR = (1.0, -0.04, -0.05)

Angles = tuple[float, float]  # swing forward, spread outward, in degrees; (0, 0) hangs straight down
Limb = tuple[Angles, Angles]  # upper and lower segment, both relative to the trunk


@dataclass(frozen=True)
class Action:
    """One way to do something: arms and legs of the leading and the other side, and how the body is turned."""

    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]
    lean: float = 0.0
    jitter: float = 10.0
    yaw: tuple[float, float] = (0.0, 80.0)
    lift: tuple[float, float] = (0.0, 0.0)


REST: Limb = ((2, 9), (12, 6))
HIP: Limb = ((-18, 42), (22, -38))
LEG: Limb = ((2, 5), (-2, 4))
WIDE_LEG: Limb = ((2, 13), (-2, 11))

ACTION_FORMS: dict[str, tuple[Action, ...]] = {
    "standing": (
        Action((REST, REST), (LEG, LEG), jitter=7),
        Action((HIP, REST), (LEG, WIDE_LEG), jitter=7),
        Action((HIP, HIP), (WIDE_LEG, WIDE_LEG), jitter=7),
    ),
    "waving": (
        Action((((0, 108), (0, 168)), REST), (LEG, LEG), jitter=12),
        Action((((10, 142), (0, 188)), REST), (LEG, WIDE_LEG), jitter=12),
        Action((((5, 118), (0, 170)), HIP), (LEG, WIDE_LEG), jitter=10),
    ),
    "running": (
        Action((((-48, 12), (32, 4)), ((42, 8), (118, -8))),
               (((62, 3), (-14, 3)), ((-22, 3), (-84, 3))), 13, 11, (35, 90), (0, 0.03)),
        Action((((-38, 12), (40, 4)), ((30, 8), (105, -8))),
               (((38, 3), (8, 3)), ((-32, 3), (-58, 3))), 11, 10, (35, 90), (0, 0.02)),
    ),
    "sitting": (
        Action((((28, 10), (72, 2)), ((28, 10), (72, 2))), (((84, 9), (-2, 6)), ((84, 9), (-2, 6))), 2, 8, (0, 85)),
        Action((((-12, 14), (10, 10)), ((28, 10), (74, 2))),
               (((84, 14), (12, 8)), ((84, 9), (-8, 6))), -4, 8, (10, 85)),
    ),
    "tpose": (Action((((0, 90), (0, 90)), ((0, 90), (0, 90))), (LEG, LEG), jitter=4, yaw=(0, 55)),),
    "kicking": (
        Action((((-28, 30), (5, 25)), ((45, 30), (75, 20))),
               (((82, 6), (76, 6)), ((-6, 5), (-10, 5))), -9, 10, (30, 90)),
        Action((((0, 55), (15, 50)), ((20, 55), (40, 50))),
               (((62, 10), (58, 10)), ((-4, 5), (-8, 5))), -7, 10, (25, 90)),
        Action((((0, 40), (15, 40)), ((0, 60), (15, 70))), (((8, 68), (4, 68)), ((0, 2), (0, 2))), 0, 9, (0, 40)),
    ),
    "dancing": (
        Action((((5, 135), (0, 195)), ((10, 62), (20, -25))),
               (((22, 26), (-22, -6)), ((0, 8), (-6, 6))), 0, 16, (0, 60)),
        Action((((0, 78), (10, 165)), ((0, 72), (10, 10))), (((48, 38), (-8, -22)), ((0, 4), (-4, 2))), 0, 14, (0, 60)),
        Action((((20, 100), (60, 130)), ((-15, 70), (-10, 95))),
               (((12, 34), (-6, 30)), ((24, 22), (-30, -4))), 4, 16, (0, 60)),
    ),
    "lying": (
        Action((((5, 14), (14, 8)), ((5, 14), (14, 8))), (((4, 8), (2, 8)), ((4, 8), (2, 8))), 0, 12, (0, 85)),
        Action((((20, 150), (10, 165)), ((5, 18), (30, 0))), (((6, 8), (2, 8)), ((52, 8), (-42, 6))), 0, 12, (0, 85)),
        Action((((8, 55), (30, 60)), ((8, 40), (20, 35))), (((36, 12), (-30, 8)), ((4, 14), (2, 12))), 0, 12, (0, 85)),
    ),
    "jumping": (
        Action((((5, 148), (0, 158)), ((5, 148), (0, 158))),
               (((8, 30), (-10, 26)), ((8, 30), (-10, 26))), 0, 11, (0, 60), (0.06, 0.15)),
        Action((((5, 140), (0, 165)), ((5, 140), (0, 165))),
               (((48, 18), (-52, 8)), ((30, 18), (-62, 8))), 0, 11, (0, 75), (0.08, 0.17)),
        Action((((15, 120), (10, 135)), ((15, 120), (10, 135))),
               (((45, 10), (-20, 8)), ((-20, 10), (-66, 8))), 4, 11, (15, 80), (0.06, 0.15)),
    ),
    "pointing": (
        Action((((0, 88), (0, 88)), REST), (LEG, LEG), jitter=8, yaw=(0, 45)),
        Action((((82, 5), (84, 2)), REST), (LEG, WIDE_LEG), jitter=8, yaw=(40, 90)),
        Action((((20, 112), (15, 116)), HIP), (LEG, WIDE_LEG), jitter=8, yaw=(0, 50)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    """A posed body, turned towards the viewer; lengths in body heights."""

    joints: np.ndarray  # [22, 3] in BODY_JOINTS order, pelvis at the origin
    head: np.ndarray  # [3, 3] head frame; its columns are the head's left, up and forward
    head_radius: float
    girth: float  # factor on all limb radii
    lift: float  # height of the lowest point above the ground
    seated: bool  # wants something to sit on

    def face(self, feature: tuple[float, float, float], side: int = 1) -> np.ndarray:
        """A face feature ``[3]`` relative to the centre of the head; side -1 mirrors it to the right."""
        x, y, z = feature
        return self.head @ (self.head_radius * np.array((side * x, y, z)))


@dataclass(frozen=True)
class Build:
    """The part of a body that no pose changes: lengths of the bones, radius of the head, factor on all limb radii."""

    bones: dict[str, float]
    head_radius: float
    girth: float


def random_bones(dice: Dice) -> dict[str, float]:
    return {name: length * dice.about(1, 0.05) for name, length in BONE_LENGTHS.items()}


def random_roundness(dice: Dice) -> tuple[float, float]:
    """Radius of the head, and the factor on all limb radii."""
    return HEAD_RADIUS * dice.about(1, 0.05), dice.about(1, 0.12)


def random_body(action: str, dice: Dice, build: Build | None = None) -> Body:
    """A body that does ``action``; all else is drawn from ``dice``, except for the ``build`` where it is known."""
    form = dice.choice(ACTION_FORMS[action])
    lead = dice.choice((0, 1))  # which side plays the leading part
    bone = random_bones(dice) if build is None else build.bones
    trunk = turn("x", dice.about(form.lean, 6)) @ turn("z", dice.about(0, 5)) @ turn("y", dice.about(0, 8))
    head = trunk @ turn("y", dice.about(0, 32)) @ turn("x", dice.about(2, 10))
    joints = np.zeros((len(BODY_JOINTS), 3))
    joints[J["waist"]] = trunk @ (0, bone["spine"], 0)
    joints[J["neck"]] = joints[J["waist"]] + trunk @ (0, bone["chest"], 0)
    joints[J["head"]] = joints[J["neck"]] + 0.5 * (trunk + head) @ (0, bone["neck"], 0.012)
    for side, tag in ((0, "l"), (1, "r")):
        sign = 1 - 2 * side
        joints[J[f"side_{tag}"]] = joints[J["waist"]] + trunk @ (sign * bone["side"], 0, 0)
        upper, lower = (trunk @ _direction(*a, sign) for a in _jittered(form.arms[side ^ lead], form.jitter, dice))
        joints[J[f"shoulder_{tag}"]] = shoulder = joints[J["neck"]] + trunk @ (sign * bone["shoulder"], -0.012, 0)
        joints[J[f"elbow_{tag}"]] = elbow = shoulder + bone["upper_arm"] * upper
        joints[J[f"wrist_{tag}"]] = wrist = elbow + bone["forearm"] * lower
        joints[J[f"hand_{tag}"]] = wrist + bone["hand"] * lower
        thigh, shin = _jittered(form.legs[side ^ lead], form.jitter * 0.7, dice)
        joints[J[f"hip_{tag}"]] = hip = np.array((sign * bone["hip"], 0, 0))
        joints[J[f"knee_{tag}"]] = knee = hip + bone["thigh"] * _direction(*thigh, sign)
        joints[J[f"ankle_{tag}"]] = ankle = knee + bone["shin"] * _direction(*shin, sign)
        # The foot stands at right angles to the shin, the toe a little down and out.
        joints[J[f"toe_{tag}"]] = ankle + bone["foot"] * _direction(shin[0] + 76, shin[1] + 12, sign)
    # The turn of the body: yaw over the full circle (12 % from behind), a camera slightly above, a little roll.
    yaw = dice.choice((-1, 1)) * dice.uniform(*form.yaw) + (180 if dice.chance(0.12) else 0)
    if action == "lying":
        view = turn("z", dice.choice((-90, 90)) + dice.about(0, 9)) @ turn("x", dice.about(0, 8)) @ turn("y", yaw)
    else:
        view = turn("z", dice.about(0, 5)) @ turn("x", dice.about(6, 8)) @ turn("y", yaw)
    radius, girth = random_roundness(dice) if build is None else (build.head_radius, build.girth)
    return Body(joints @ view.T, view @ head, radius, girth, dice.uniform(*form.lift), action == "sitting")


def turn(axis: str, degrees: float) -> np.ndarray:
    """Rotation ``[3, 3]``: about x leans forward, about y turns to the person's left, about z tips to the right."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    if axis == "x":
        return np.array(((1, 0, 0), (0, c, -s), (0, s, c)))
    if axis == "y":
        return np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    return np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)))


def _jittered(limb: Limb, spread: float, dice: Dice) -> Limb:
    (a, b), (c, d) = limb
    return (dice.about(a, spread), dice.about(b, spread)), (dice.about(c, spread), dice.about(d, spread))


def _direction(swing: float, spread: float, sign: int) -> np.ndarray:
    f, a = radians(swing), radians(spread)
    return np.array((sign * cos(f) * sin(a), -cos(f) * cos(a), sin(f)))
