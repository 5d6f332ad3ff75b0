import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posegen.data.mannequin.cache import BrokenShard, render_shard
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.world import World


def make(folder: Path, count: int = 20, workers: int = 1, **kwargs) -> MannequinData:
    """A dataset with shards of eight samples."""
    data = MannequinData("test", count, cache=folder, workers=workers, **kwargs)
    data.cache = replace(data.cache, per_shard=8)
    return data


def shard_names(data: MannequinData) -> list[str]:
    return sorted(path.name for path in data.cache.folder.iterdir())


def stamps(data: MannequinData) -> dict[str, int]:
    return {path.name: (path / "images.npy").stat().st_mtime_ns for path in data.cache.folder.iterdir()}


def test_samples_come_back_from_disk_as_they_were_rendered(tmp_path):
    data, world = make(tmp_path), World()
    for index in (0, 7, 8, 19, -1):
        sample, fresh = data[index], world.render("test", index % 20)
        assert (sample.id, sample.prompt, sample.size, sample.attributes) == (
            fresh.id,
            fresh.prompt,
            fresh.size,
            fresh.attributes,
        )
        for name in ("image", "keypoints", "areas"):
            np.testing.assert_array_equal(getattr(sample, name), getattr(fresh, name))
            assert getattr(sample, name).dtype == getattr(fresh, name).dtype


def test_batches_and_captions(tmp_path):
    data = make(tmp_path)
    order = [19, 0, 8, 7, 0]
    np.testing.assert_array_equal(data.images(order), np.stack([data[index].image for index in order]))
    assert data.prompts == [data[index].prompt for index in range(20)] and len(data) == 20
    with pytest.raises(IndexError, match="sample 20 of 20"):
        data[20]


def test_twin_shares_the_caption(tmp_path):
    data = make(tmp_path, 8)
    assert data.twin(3).prompt == data[3].prompt and (data.twin(3).image != data[3].image).any()


def test_only_missing_shards_are_rendered(tmp_path):
    data = make(tmp_path)
    data.prepare()
    before = stamps(data)
    removed = data.cache.folder / "00001-0008"
    for path in removed.iterdir():
        path.unlink()
    removed.rmdir()
    make(tmp_path).prepare()
    after = stamps(data)
    assert {name for name in after if after[name] != before[name]} == {"00001-0008"}


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_damaged_shards_are_noticed_and_rendered_again(tmp_path, harm):
    data = make(tmp_path)
    data.prepare()
    expected = data.images(range(20))
    victim = data.cache.folder / "00001-0008" / "images.npy"
    content = bytearray(victim.read_bytes())
    if harm == "delete":
        victim.unlink()
    else:
        content[-100] ^= 255
        victim.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    again = make(tmp_path)
    with pytest.warns(UserWarning, match=r"00001-0008.*rendered again"):
        again.prepare()
    np.testing.assert_array_equal(again.images(range(20)), expected)
    assert shard_names(data) == ["00000-0008", "00001-0008", "00002-0004"]


def test_reading_a_truncated_shard_names_the_folder_and_the_fix(tmp_path):
    data = make(tmp_path)
    data.prepare()
    victim = data.cache.folder / "00002-0004" / "images.npy"
    victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(BrokenShard, match=r"00002-0004.*delete this folder and run again"):
        make(tmp_path)[0]


def test_a_smaller_count_reuses_the_shards_of_a_larger_one(tmp_path):
    large = make(tmp_path)
    large.prepare()
    before = stamps(large)
    small = make(tmp_path, 10)
    assert small.prompts == large.prompts[:10] and stamps(large) == before
    larger = make(tmp_path, 22)
    np.testing.assert_array_equal(larger.images(range(20)), large.images(range(20)))
    assert set(stamps(large)) - set(before) == {"00002-0006"}


def test_two_processes_may_render_the_same_shard(tmp_path):
    data = make(tmp_path)
    data.prepare()
    before = stamps(data)
    assert render_shard(data.cache, 1, 8) == 8  # the slower one finds the place taken
    assert stamps(data) == before and shard_names(data) == ["00000-0008", "00001-0008", "00002-0004"]


def test_an_interruption_leaves_no_half_shard(tmp_path, monkeypatch):
    data, render = make(tmp_path), World.render

    def interrupted(world, split, index):
        if index == 11:
            raise KeyboardInterrupt
        return render(world, split, index)

    monkeypatch.setattr(World, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    assert shard_names(data) == ["00000-0008"]
    monkeypatch.undo()
    before = stamps(data)
    data.prepare()
    assert stamps(data)["00000-0008"] == before["00000-0008"] and len(shard_names(data)) == 3


def test_several_processes_render_the_same_as_one(tmp_path):
    """The workers are fresh interpreters: nothing may depend on the process."""
    one, two = make(tmp_path / "one", 12), make(tmp_path / "two", 12, workers=2)
    two.prepare()
    np.testing.assert_array_equal(one.images(range(12)), two.images(range(12)))
    assert one.prompts == two.prompts


def test_worlds_do_not_mix(tmp_path):
    folders = {make(tmp_path, seed=seed, size=size).cache.folder for seed in (0, 1) for size in (64, 128)}
    assert len(folders) == 4
    identities = [make(tmp_path, count, seed=seed).identity for count in (5, 6) for seed in (0, 1)]
    assert len({str(identity) for identity in identities}) == 4
    assert "workers" not in identities[0] and "cache" not in identities[0]


def test_data_can_travel_to_loader_processes(tmp_path):
    data = make(tmp_path, 8)
    data.prepare()
    data[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[5].image, data[5].image)


def test_errors_name_the_options(tmp_path):
    with pytest.raises(ValueError, match="train, validation, test"):
        MannequinData("val", cache=tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        MannequinData(count=0, cache=tmp_path)


def test_inexact_keypoints_belong_to_the_sample_and_scale_with_the_person(tmp_path):
    exact, inexact, worse = (
        make(tmp_path, 40),
        make(tmp_path, 40, keypoint_noise=0.05),
        make(tmp_path, 40, keypoint_noise=0.1),
    )
    assert exact.identity != inexact.identity and "keypoint_noise" not in exact.identity
    shares = []
    for index in range(40):
        true, seen = exact[index], inexact[index]
        np.testing.assert_array_equal(seen.keypoints, inexact[index].keypoints)
        np.testing.assert_array_equal(seen.image, true.image)
        np.testing.assert_array_equal(seen.keypoints[..., 2], true.keypoints[..., 2])
        error = (seen.keypoints - true.keypoints)[..., :2]
        np.testing.assert_allclose((worse[index].keypoints - true.keypoints)[..., :2], 2 * error, atol=1e-4)
        shares.append((error / np.sqrt(true.areas)[:, None, None]).ravel())
    assert np.concatenate(shares).std() == pytest.approx(0.05, rel=0.05)
    with pytest.raises(ValueError, match="keypoint_noise is -1"):
        make(tmp_path, keypoint_noise=-1)
