"""Batches are functions of (seed, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posegen.data.base import PoseData, Sample, generator
from posegen.errors import UserError
from posegen.runner.batches import Needs, StepBatches, fixed_batches, training_loader


class Numbers(PoseData):
    """Ten images, image i filled with i."""

    name, split, size = "numbers", "train", (8, 8)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        image = np.full((8, 8, 3), index, np.uint8)
        return Sample(
            f"numbers/{index}",
            f"number {index}",
            np.zeros((1, 17, 3), np.float32),
            np.ones(1, np.float32),
            image,
            self.size,
        )

    @property
    def identity(self) -> dict:
        return {"name": self.name}


def ids(batches: StepBatches, count: int, workers: int = 0) -> list[tuple[str, ...]]:
    iterator = iter(training_loader(batches, workers))
    return [tuple(next(iterator).ids) for _ in range(count)]


def test_every_epoch_sees_every_image_once_in_another_order() -> None:
    seen = ids(StepBatches(Numbers(), Needs(), 5, seed=0), 6)
    epochs = [sum(seen[i : i + 2], ()) for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len(set(epochs)) == 3


def test_a_resumed_run_continues_where_it_was() -> None:
    whole = ids(StepBatches(Numbers(), Needs(), 3, seed=1), 8)
    assert ids(StepBatches(Numbers(), Needs(), 3, seed=1, start=5), 3) == whole[5:]


def test_workers_do_not_change_the_order() -> None:
    whole = ids(StepBatches(Numbers(), Needs(), 3, seed=1), 6)
    assert ids(StepBatches(Numbers(), Needs(), 3, seed=1), 6, workers=2) == whole


def test_noise_belongs_to_the_image_not_to_the_batch() -> None:
    batches = StepBatches(Numbers(), Needs(frozenset({"images"})), 5, seed=0)
    batch = next(iter(batches))
    alone = torch.randn((2, 2), generator=generator(0, 0, batch.ids[3], "noise"))
    assert torch.equal(batch.randn("noise", (2, 2))[3], alone)
    assert not torch.equal(batch.randn("noise", (2, 2))[3], batch.randn("latents", (2, 2))[3])
    assert float(batch.images[3, 0, 0, 0]) == pytest.approx(int(batch.ids[3].split("/")[1]) / 127.5 - 1)


def test_the_visit_is_the_epoch_and_changes_the_noise() -> None:
    iterator = iter(StepBatches(Numbers(), Needs(), 5, seed=0))
    first = [next(iterator) for _ in range(4)]
    assert [batch.visit for batch in first] == [0, 0, 1, 1]
    image = first[0].ids[0]
    again = next(b for b in first[2:] if image in b.ids)
    assert not torch.equal(first[0].randn("noise", (3,))[0], again.randn("noise", (3,))[list(again.ids).index(image)])


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.batch=11.*data\.count=10"):
        StepBatches(Numbers(), Needs(), 11, seed=0)


def test_fixed_batches_cover_the_split() -> None:
    assert [list(rows) for rows in fixed_batches(5, 2)] == [[0, 1], [2, 3], [4]]
