"""Batches are functions of (seed, epoch, position) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posegen.data.base import PoseBatch, PoseData, Sample, generator
from posegen.errors import UserError
from posegen.runner.batches import Needs, fixed_batches
from posegen.train.training_batches import EpochBatches, training_loader


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


def epochs(
    size: int, seed: int, count: int, start: tuple[int, int] = (0, 0), workers: int = 0
) -> list[list[PoseBatch]]:
    """The batches of some epochs, from ``start`` on, as Lightning asks for them."""
    batches = EpochBatches(10, size, seed, start=start)
    loader = training_loader(Numbers(), Needs(frozenset({"images"})), batches, workers)
    found = []
    for epoch in range(start[0], count):
        batches.set_epoch(epoch)
        found.append(list(loader))
    return found


def ids(found: list[list[PoseBatch]]) -> list[list[tuple[str, ...]]]:
    return [[tuple(batch.ids) for batch in epoch] for epoch in found]


def test_every_epoch_sees_every_image_once_in_another_order() -> None:
    seen = [sum(epoch, ()) for epoch in ids(epochs(5, 0, 3))]
    assert all(len(set(epoch)) == 10 for epoch in seen)
    assert len(set(seen)) == 3


def test_a_resumed_run_continues_where_it_was() -> None:
    whole = ids(epochs(3, 1, 3))
    assert ids(epochs(3, 1, 3, start=(1, 2))) == [whole[1][2:], whole[2]]


def test_the_batches_of_a_step_stay_in_an_epoch() -> None:
    assert len(EpochBatches(10, 3, seed=0)) == 3 and len(EpochBatches(10, 3, seed=0, multiple=2)) == 2


def test_workers_do_not_change_the_order() -> None:
    assert ids(epochs(3, 1, 1, workers=2)) == ids(epochs(3, 1, 1))


def test_noise_belongs_to_the_image_not_to_the_batch() -> None:
    batch = epochs(5, 0, 1)[0][0]
    alone = torch.randn((2, 2), generator=generator(0, 0, batch.ids[3], "noise"))
    assert torch.equal(batch.randn("noise", (2, 2))[3], alone)
    assert not torch.equal(batch.randn("noise", (2, 2))[3], batch.randn("latents", (2, 2))[3])
    assert float(batch.images[3, 0, 0, 0]) == pytest.approx(int(batch.ids[3].split("/")[1]) / 127.5 - 1)


def test_the_visit_is_the_epoch_and_changes_the_noise() -> None:
    first, second = epochs(5, 0, 2)
    assert [batch.visit for batch in (*first, *second)] == [0, 0, 1, 1]
    image = first[0].ids[0]
    again = next(b for b in second if image in b.ids)
    assert not torch.equal(first[0].randn("noise", (3,))[0], again.randn("noise", (3,))[list(again.ids).index(image)])


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.batch=11.*data\.count=10"):
        epochs(11, 0, 1)


def test_fixed_batches_cover_the_split() -> None:
    assert [list(rows) for rows in fixed_batches(5, 2)] == [[0, 1], [2, 3], [4]]
