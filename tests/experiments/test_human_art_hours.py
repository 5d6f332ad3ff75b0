"""The arithmetic of the table of hours; its stages run only at full size."""

from __future__ import annotations

import pytest

from experiments.profile.human_art_hours import HOST, NETWORK, UNET, StageCost, table

STAGES = (StageCost("steps", UNET, 90.0, 40), StageCost("decoder", NETWORK, 9.0, 40), StageCost("png", HOST, 1.0, 40))


def test_hours_and_shares() -> None:
    rows = {row["stage"]: row for row in table(STAGES, speedup=10.0)}
    assert rows["steps"]["thread-hours"] == 1.0 and rows["steps"]["share of all, %"] == pytest.approx(90)
    assert rows["sum: all but U-Net"]["share of all, %"] == pytest.approx(10)
    assert rows["sum: other networks"]["share of all, %"] == pytest.approx(9)
    fast = rows["sum: not networks"]  # a GPU does not write pictures any faster
    assert fast["GPU: hours"] == fast["thread-hours"] and fast["GPU: share of all, %"] == pytest.approx(100 / 10.9)
