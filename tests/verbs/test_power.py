"""How many images and seeds a difference needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from posegen.cli import main
from posegen.io.atomic import write_json
from posegen.metrics.base import Judged, Metric, Poses, Records
from posegen.metrics.protocol import Protocol


class Score(Metric):
    """The mean of a number per image."""

    columns = ("score", "other")

    def record(self, judged: Judged) -> dict[str, Any]:
        return {"score": judged.features[0]}

    def resampled(
        self, records: Records, weights: np.ndarray, reference: Records | None = None
    ) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.columns, weights @ np.asarray(records["score"]) / weights.sum(1))


def cells(folder: Path, values: np.ndarray, name: str = "", **identity: Any) -> str:
    """Judged cells of one method, ``values [seeds, images]``."""
    protocol = Protocol([Score()])
    for seed, row in enumerate(values):
        cell = folder / f"seed{seed}"
        empty = np.zeros((0, 17, 3)), np.zeros(0)
        images = [Judged(f"{name}{i}", *empty, Poses(*empty), features=np.array([x])) for i, x in enumerate(row)]
        for place in (cell, cell / "reference"):
            protocol.write(place, protocol.records(images))
        write_json(cell / "status.json", {"state": "finished", "identity": identity})
        node = {
            "_target_": "posegen.metrics.protocol.Protocol",
            "resamples": 400,
            "metrics": [{"_target_": f"{__name__}.Score"}],
        }
        (cell / "config.yaml").write_text(
            yaml.safe_dump({"method": folder.name, "seed": seed, "study": "s", "protocol": node})
        )
    return str(folder)


@pytest.fixture
def methods(tmp_path: Path) -> tuple[str, str]:
    """Two methods with three seeds on 200 images; the difference is 2, of which images vary by 10 and seeds by 1."""
    dice = np.random.default_rng(0)
    difference = 2 + 10 * dice.normal(size=200) + np.array([-1.0, 0.0, 1.0])[:, None]
    base = dice.normal(0, 30, (3, 200))
    return cells(tmp_path / "a", base + difference), cells(tmp_path / "b", base)


def answers(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["power", *words]) == 0
    return capsys.readouterr().out


def test_the_detectable_difference_falls_with_images_and_seeds(
    methods: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = answers(capsys, *methods, "column=score", "images=100,10000", "seeds=1,4", "difference=2,1")
    rows = {
        line.split()[0]: [float(x) for x in line.split()[1:]]
        for line in out.splitlines()
        if re.fullmatch(r"\s+\d+(\s+[\d.]+)+", line)
    }
    assert rows["100"] == pytest.approx([2.8 * np.sqrt(1 + 1), 2.8 * np.sqrt(1 + 1 / 4)], rel=0.15)
    assert rows["10000"] == pytest.approx([2.8 * np.sqrt(0.01 + 1), 2.8 * np.sqrt(0.01 + 1 / 4)], rel=0.15)
    few, needed = re.search(r"\n +2 +(\S+) +(\S+)\n", out).groups()  # type: ignore[union-attr]
    assert few == "-", "one seed varies too much to find a difference of 2, with any number of images"
    assert int(needed) == pytest.approx(100 / (4 / 7.85 - 1 / 4), rel=0.3)
    assert "3 seeds, which are few" in out


def test_with_one_seed_the_answer_says_what_it_does_not_know(
    methods: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = answers(capsys, f"{methods[0]}/seed1", f"{methods[1]}/seed1", "column=score")
    assert (
        "how much trainings differ is unknown" in out
        and "these trainings" in out
        and "1 seed" in out
        and "3 seeds" not in out
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["column=scor"], "did you mean score?"),
        (["colum=score"], "colum=score: no such group or key; did you mean column?"),
        (["column=score", "power=1.5"], "power=1.5: expected a number above 0 and below 1"),
        (["column=score", "seeds=few"], "seeds=few: expected a list of at least 1 integer"),
        (["column=score", "seeds="], "seeds=: expected a list of at least 1 integer"),
        (["column=score", "more"], "3 folders are named; expected two"),
    ],
)
def test_bad_input_is_one_error(
    methods: tuple[str, str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["power", *methods, *words]) == 1
    assert message in capsys.readouterr().err


def test_cells_that_do_not_belong_together_are_refused(
    methods: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "differ in estimator": cells(tmp_path / "judged", np.zeros((1, 200)), estimator={"id": "another"}),
        "judge both alike, on the same data.test": cells(tmp_path / "seen", np.zeros((1, 200)), name="y"),
        "is no judged cell": str(tmp_path / "nothing"),
    }
    for message, other in others.items():
        assert main(["power", methods[0], other, "column=score"]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "b/seed0").rename(tmp_path / "b/seed7")
    assert main(["power", f"{methods[0]}/seed0", f"{methods[1]}/seed7", "column=score"]) == 1
    assert "no seed in common" in capsys.readouterr().err
