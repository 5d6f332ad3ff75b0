"""Kinds of numbers and names that settings take, as annotations of signatures.

`posegen check`, the documentation and the tests read them with pydantic. Upper ends refuse what no machine finishes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

AtLeastOne = Annotated[int, Interval(ge=1, le=10_000_000)]  # steps, images, pictures
AtLeastZero = Annotated[int, Interval(ge=0, le=10_000_000)]
Width = Annotated[int, Interval(ge=1, le=65_536)]  # channels, heads, pixels of a side
Workers = Annotated[int, Interval(ge=1, le=128)]  # processes
JointCount = Annotated[int, Interval(ge=1, le=17)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # as numpy and Lightning take it
ZeroToOne = Annotated[float, Interval(ge=0, le=1)]  # shares, probabilities
BelowOne = Annotated[float, Interval(ge=0, lt=1)]  # decays
Probability = Annotated[float, Interval(gt=0, lt=1)]  # levels of confidence
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
SomeOf = Annotated[float, Interval(gt=0, le=1)]  # shares, not nothing
#: Skeletons, as in `posegen.poses.topology.TOPOLOGIES`.
TopologyName = Literal["coco17", "openpose18", "body25", "wholebody133", "mpii16", "humanart21", "crowdpose14"]
