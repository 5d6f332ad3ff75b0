"""``trainer=smoke`` renders what twenty steps train on."""

from __future__ import annotations

import pytest

from posegen.config.compose import composed
from posegen.runner.cell import identity


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 20000),
        (["trainer=smoke"], 640),
        (["trainer=smoke", "data.train.count=128"], 128),
        (["trainer=smoke", "data=mannequin_pairs", "adapter=dnaf"], 640),
    ],
)
def test_the_offline_worlds_render_what_a_smoke_run_trains_on(words: list[str], count: int) -> None:
    with composed("train", words) as cfg:
        assert cfg.data.train.count == count
        assert "train_images" not in identity(cfg)["budget"]  # data.train.count says it
