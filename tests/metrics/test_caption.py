import numpy as np
import pytest
from invented_people import judged, person

from posegen.metrics.caption import CaptionMetric


def record(wanted, found, people):
    return CaptionMetric().record(
        judged("a", [], [person(9, 9)] * people, [0.5] * people, attributes=wanted, found_attributes=found)
    )


def test_agreement():
    wanted = {"style": "photo", "scene": "park", "count": 2}
    rows = [
        record(
            wanted, {"style": "photo", "scene": "park", "count": 1}, 2
        ),  # the number is that of the poses, not the attribute head's
        record(wanted, {"style": "sketch", "scene": "park", "count": 2}, 1),
    ]
    records = {name: [row[name] for row in rows] for name in rows[0]}
    values = CaptionMetric().compute(records)
    assert values == pytest.approx(
        {"style_agreement": 50, "scene_agreement": 100, "count_agreement": 50, "caption_agreement": 200 / 3}
    )
    assert CaptionMetric().compute(records, np.array([3.0, 1.0]))["style_agreement"] == 75


def test_unknown_attributes_are_empty():
    row = record({"count": 1}, {}, 1)
    values = CaptionMetric().compute({name: [value] for name, value in row.items()})
    assert np.isnan(values["style_agreement"]) and values["count_agreement"] == 100
