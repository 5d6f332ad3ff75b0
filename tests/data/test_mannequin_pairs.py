"""Pairs: the same person twice; only the pose and where they stand may differ."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from posegen.data.base import PoseData
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.pairs import MEMBERS, PAIRS_VERSION, SOURCE, TARGET, MannequinPairs, Sources, Targets
from posegen.data.mannequin.world import REALISATION, WORLD_VERSION
from posegen.runner.batches import Needs, collate

GOLDEN = {(1, 1): "ca97f4122d0026ae"}  # versions of the world and the pairs -> digest of the first test pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MannequinPairs:
    return MannequinPairs("test", 60, cache=tmp_path_factory.mktemp("cache"), workers=1)


def test_the_pairs_have_not_changed_without_a_new_version(data: MannequinPairs) -> None:
    total = hashlib.sha256()
    for index in range(20):
        for sample in (data[index], data.source_of(index)):
            for part in (sample.image, sample.keypoints, sample.areas):
                total.update(np.ascontiguousarray(part).tobytes())
            total.update(f"{sample.id} {sample.prompt}".encode())
    assert total.hexdigest()[:16] == GOLDEN[WORLD_VERSION, PAIRS_VERSION], (
        "pixels, keypoints or captions changed: raise PAIRS_VERSION and add its digest here"
    )


def test_a_pair_is_one_person_before_one_scene(data: MannequinPairs) -> None:
    agree = []
    for index in range(len(data)):
        target, source = data[index], data.source_of(index)
        assert target.keypoints.shape == source.keypoints.shape == (1, 17, 3)
        for fact in ("style", "scene", "count", "colours"):
            assert target.attributes[fact] == source.attributes[fact]
        agree.append(_background(target, source))
    assert np.mean(agree) > 0.97 and np.min(agree) > 0.85  # shadows and stools move with the person
    strangers = [_background(data[i], data.source_of(i + 1)) for i in range(len(data) - 1)]
    assert np.mean(strangers) < 0.4


def _background(target, source) -> float:
    """Share of equal pixels where neither person is near."""
    free = np.ones(target.size, bool)
    for sample in (target, source):
        shown = sample.keypoints[0][sample.keypoints[0, :, 2] > 0, :2]
        (left, top), (right, bottom) = shown.min(0) - 10, shown.max(0) + 10
        free[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = False
    return float((np.abs(target.image.astype(int) - source.image) < 6).all(-1)[free].mean()) if free.any() else 1.0


def test_bones_are_of_equal_length_and_poses_are_not(data: MannequinPairs) -> None:
    """In three dimensions: images show them foreshortened."""
    from posegen.data.mannequin.body import Build, J, random_bones, random_roundness

    moved = 0
    for index in range(20):
        world = Targets()
        dice = world._stream("test", index, REALISATION, 1)
        build = Build(random_bones(dice), *random_roundness(dice))
        bodies = [MEMBERS[member]().body("test", index, REALISATION, build) for member in (TARGET, SOURCE)]
        for first, second in (("shoulder_l", "elbow_l"), ("knee_r", "ankle_r"), ("hip_l", "knee_l")):
            lengths = [np.linalg.norm(body.joints[J[first]] - body.joints[J[second]]) for body in bodies]
            assert lengths[0] == pytest.approx(lengths[1])
        assert bodies[0].girth == bodies[1].girth and bodies[0].head_radius == bodies[1].head_radius
        moved += not np.allclose(bodies[0].joints, bodies[1].joints, atol=0.05)
    assert moved == 20


def test_splits_seeds_and_the_plain_world_share_nothing(tmp_path: Path) -> None:
    every = [
        MannequinPairs(split, 3, seed=seed, cache=tmp_path, workers=1)
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    plain = MannequinData("test", 3, cache=tmp_path, workers=1)
    images = [
        part(i).image.tobytes() for d in every for i in range(3) for part in (d.__getitem__, d.source_of, d.twin)
    ] + [plain[i].image.tobytes() for i in range(3)]
    assert len(set(images)) == len(images)
    assert len({sample.id for d in every for i in range(3) for sample in (d[i], d.source_of(i), d.twin(i))}) == 54


def test_they_are_read_from_disk_as_they_were_rendered_also_by_other_processes(data: MannequinPairs) -> None:
    again = pickle.loads(pickle.dumps(data))
    for index in (0, 59, -1):
        for read, world, number in (
            (again[index], Targets(), index % 60),
            (again.source_of(index), Sources(), index % 60),
        ):
            fresh = world.render("test", number)
            assert (read.id, read.prompt, read.attributes) == (fresh.id, fresh.prompt, fresh.attributes)
            np.testing.assert_array_equal(read.image, fresh.image)
            np.testing.assert_array_equal(read.keypoints, fresh.keypoints)
    with pytest.raises(IndexError, match="sample 60 of 60"):
        data.source_of(60)


def test_one_prompt_for_all_is_part_of_the_identity(data: MannequinPairs, tmp_path: Path) -> None:
    worded = MannequinPairs("test", 4, cache=tmp_path, workers=1, prompt="a person")
    assert {*worded.prompts, worded[1].prompt, worded.source_of(1).prompt, worded.twin(1).prompt} == {"a person"}
    assert (
        worded.identity != MannequinPairs("test", 4, cache=tmp_path, workers=1).identity
        and data.prompts[3] == data[3].prompt
    )
    assert worded[0].attributes == data[0].attributes


def test_a_batch_brings_the_source_where_it_is_needed(data: MannequinPairs) -> None:
    batch = collate(data, [4, 2], Needs(frozenset({"source"})), seed=0)
    assert batch.source is not None and np.array_equal(batch.source[1], data.source_of(2).tensor)
    np.testing.assert_array_equal(batch.source_keypoints[0], data.source_of(4).keypoints)
    assert collate(data, [4, 2], Needs(), seed=0).source is None


def test_data_without_pairs_say_so(tmp_path: Path) -> None:
    class Lonely(PoseData):
        name = "lonely"

    Lonely.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="data 'lonely' has one image of each person; choose data with pairs"):
        Lonely().source_of(0)
