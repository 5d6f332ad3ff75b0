"""Known people, painted into maps, come back; what is missing is looked for; plain loops agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.profile.decoding import in_loops
from posegen.metrics.estimators.associative import (
    ORDER,
    PUBLISHED,
    Decoding,
    assigned,
    decode,
    group_people,
    highest_around,
)
from posegen.metrics.estimators.bottom_up import peak_gaussians

SIZE = (48, 64)


def people(count: int, seed: int = 0) -> Tensor:
    """``[count, 17, 2]`` joints in a column per person, some of them near the border."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.stack([torch.linspace(10, 53, count), torch.full((count,), 24.0)], -1)
    return centres[:, None] + (torch.rand(count, 17, 2, generator=generator) - 0.5) * torch.tensor([12.0, 42.0])


def maps(
    points: Tensor, heights: Tensor | float = 0.9, n: int = 2, size: tuple[int, int] = SIZE
) -> tuple[Tensor, Tensor]:
    """Heatmaps and tags of one image in which person i has the tags 3 i."""
    heat = peak_gaussians(points, size, 2.0) * torch.as_tensor(heights).expand(points.shape[:2])[..., None, None]
    tags = 3.0 * heat.argmax(0)[..., None].expand(-1, -1, -1, n)
    return heat.amax(0)[None], tags[None].contiguous()


def by_tag(found: np.ndarray) -> np.ndarray:
    """The people from left to right."""
    return found[found[..., 0].mean(1).argsort()]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("count", [1, 4])
def test_known_people(count: int, n: int) -> None:
    points = people(count)
    ((found, scores),) = decode(*maps(points, n=n))
    assert found.shape == (count, 17, 3) and found.dtype == scores.dtype == np.float32
    assert np.abs(by_tag(found)[..., :2] - points.numpy()).max() < 0.05
    assert found[..., 2].min() > 0.7 and np.allclose(scores, found[..., 2].mean(1))


def test_people_who_overlap_are_told_apart_by_their_tags() -> None:
    points = people(1).repeat(2, 1, 1)
    points[1, :, 0] += 7
    ((found, _),) = decode(*maps(points))
    assert len(found) == 2 and np.abs(by_tag(found)[..., :2] - points.numpy()).max() < 0.3
    heat, tags = maps(points)
    ((merged, _),) = decode(heat, torch.zeros_like(tags))
    assert len(merged) == 1


def test_a_missing_joint_is_where_its_heat_has_the_persons_tag() -> None:
    points, heights = people(2), torch.full((2, 17), 0.9)
    heights[0, 9] = 0.04
    heat, tags = maps(points, heights)
    ((found, scores),) = decode(heat, tags)
    ((bare, unfilled),) = decode(heat, tags, Decoding(fill=False))
    left = by_tag(found)[0]
    assert np.abs(left[9, :2] - points[0, 9].numpy()).max() <= 0.75 and 0.02 < left[9, 2] <= 0.04
    assert (left[9, :2] % 1).tolist() in [[a, b] for a in (0.25, 0.75) for b in (0.25, 0.75)], (
        "a quarter of a cell beside a whole one"
    )
    assert np.array_equal(scores, unfilled), "a person's score is that of what was seen at first"
    assert (bare[..., 2] == 0).sum() == 1 and np.array_equal(np.delete(by_tag(bare)[0], 9, 0), np.delete(left, 9, 0))


def test_no_heat_no_joint() -> None:
    heat, tags = maps(people(1))
    heat[:, 5] = 0
    ((found, scores),) = decode(heat, tags)
    assert found[0, 5, 2] == 0 and scores[0] == pytest.approx(found[0, :, 2].sum() / 17)


def test_nobody() -> None:
    heat, tags = maps(people(2), 0.09)
    for given in (heat, torch.zeros_like(heat), -heat):
        ((found, scores),) = decode(given, tags)
        assert found.shape == (0, 17, 3) and scores.shape == (0,)
    assert decode(heat[:0], tags[:0]) == []


def test_images_of_a_batch_do_not_know_of_each_other() -> None:
    heights = torch.full((17,), 0.9).index_fill(0, torch.tensor([3, 14]), 0.05)  # some joints have to be looked for
    heats, tags = zip(*(maps(people(count, seed=count), heights) for count in (3, 1, 2)), strict=True)
    heats = (heats[0], torch.zeros_like(heats[1]), heats[2] * 0.5)
    together = decode(torch.cat(heats), torch.cat(tags))
    assert [len(scores) for _, scores in together] == [3, 0, 2]
    for heat, tag, (found, scores) in zip(heats, tags, together, strict=True):
        ((alone, own),) = decode(heat, tag)
        assert np.array_equal(found, alone) and np.array_equal(scores, own)


def test_maps_stay_as_they_are() -> None:
    heat, tags = maps(people(3), torch.linspace(0.02, 0.9, 17))
    before = heat.clone(), tags.clone()
    for quirk in (False, True):
        decode(heat, tags, Decoding(cpu_quirk=quirk))
        assert torch.equal(heat, before[0]) and torch.equal(tags, before[1])


def test_the_quirk_leaves_missing_joints_missing() -> None:
    heights = torch.full((2, 17), 0.9)
    heights[:, 12:] = 0.05
    heat, tags = maps(people(2), heights)
    ((right, scores),), ((wrong, same),) = (decode(heat, tags, Decoding(cpu_quirk=quirk)) for quirk in (False, True))
    assert (right[..., 2] > 0).all() and (wrong[:, 12:, 2] == 0).all()
    assert np.array_equal(right[:, :12], wrong[:, :12]) and np.array_equal(scores, same)


@pytest.mark.parametrize("seed", range(3))
def test_loops_find_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heights = torch.rand(5, 17, generator=generator).sub(0.2).clamp_min(0)
    heat, tags = maps(people(5, seed) + torch.randn(5, 17, 2, generator=generator) * 6, heights)
    heat += torch.rand(heat.shape, generator=generator) * 0.15
    tags += torch.randn(tags.shape, generator=generator) * 0.4
    ((found, scores),) = decode(heat, tags)
    plain, plain_scores = in_loops(heat, tags)
    assert len(found) > 5 and found.shape == plain.shape
    assert np.abs(found - plain).max() < 1e-4 and np.abs(scores - plain_scores).max() < 1e-6


def test_damaged_maps_are_told_of() -> None:
    heat, tags = maps(people(1))
    heat[0, 3, 5, 5] = torch.nan
    with pytest.raises(ValueError, match="maps of the pose network are not finite"):
        decode(heat, tags)


# The parts.


@pytest.mark.parametrize("kernel", [3, 5])
def test_highest_around_is_max_pooling(kernel: int) -> None:
    values = torch.randn(2, 3, 7, 9)
    assert torch.equal(highest_around(values, kernel), torch.nn.functional.max_pool2d(values, kernel, 1, kernel // 2))


def test_every_joint_has_its_turn() -> None:
    assert sorted(ORDER) == list(range(17)) and ORDER[7:9] == (11, 12)


def test_assignment() -> None:
    one = np.zeros((1, 1), np.float32)
    peak = np.float32([[0.5], [0.4]])
    assert assigned(np.float32([0.9, 0.8]), peak, one, 1.0) == [0, -1], (
        "both distances round to 0, so the higher peak is chosen"
    )
    assert assigned(np.float32([0.9, 0.8]), np.float32([[0.6], [0.4]]), one, 1.0) == [-1, 0], (
        "the distance counts before the height"
    )
    assert assigned(np.float32([0.9]), np.float32([[1.0]]), one, 1.0) == [-1], "as far as the threshold is too far"
    assert assigned(np.float32([0.9, 0.8]), np.float32([[2.0], [0.0]]), np.float32([[0.0], [2.1]]), 1.0) == [1, 0]
    assert assigned(np.float32([0.9]), np.float32([[5.0]]), np.zeros((0, 1), np.float32), 1.0) == [-1]


def test_a_new_peak_with_the_key_of_a_person_replaces_its_joint() -> None:
    candidates, tags = np.zeros((17, 2, 3), np.float32), np.zeros((17, 2, 2), np.float32)
    candidates[0] = [[4, 4, 0.9], [8, 8, 0.8]]
    tags[0] = [[1, 1], [1, 7]]
    candidates[1, 0], tags[1, 0] = [5, 5, 0.7], [1.2, 6.9]
    (person,) = group_people(candidates, tags, PUBLISHED)
    assert person[0].tolist() == pytest.approx([8, 8, 0.8]) and person[1].tolist() == pytest.approx([5, 5, 0.7]), (
        "and the person's tag with it"
    )


def test_at_most_so_many_candidates() -> None:
    heat, tags = maps(people(6))
    heat[:, 1:] = 0
    assert [len(decode(heat, tags, Decoding(candidates=k))[0][1]) for k in (1, 4, 30)] == [1, 4, 6]
