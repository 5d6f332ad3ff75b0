"""The comparison compares the same thing, and the vectorised form is the faster one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.profile import decoding as timing
from experiments.profile.timing import Timing


def test_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SIZE", 128)
    found = timing.measure_decoding(2)
    assert [timing.name for timing in found] == [
        "decoding 5 people on maps of 128 x 128",
        "decoding 8 people on maps of 128 x 128",
    ]
    assert all(t.agreement < 1e-4 and t.ratio > 1.5 and t.target == 5 for t in found)


def test_ratio_and_disagreement() -> None:
    assert Timing("x", 0.5, 2.0, 5.0, 0.0).ratio == 4
    assert timing.largest(np.zeros(2), np.array([1.0, -3.0])) == 3
    assert timing.largest(np.zeros(2), np.zeros(3)) == float("inf")


def test_the_invented_maps_have_hidden_joints() -> None:
    heat, tags = timing.invented_maps(4, hidden=0.5)
    assert heat.shape == (1, 17, 256, 256) and tags.shape == (1, 17, 256, 256, 2)
    counts = torch.tensor([len(joint) for joint in timing.listed(heat, tags, timing.PUBLISHED)])
    assert 0 < counts.sum() < 0.75 * 4 * 17
