"""The mannequin world as a data set: rendered once, then read from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from posegen.data.base import PoseData, Sample, generator
from posegen.data.mannequin.cache import Cache, ShardContent, check_shard
from posegen.data.mannequin.soft_world import SoftWorld
from posegen.data.mannequin.world import SPLIT_STREAMS, WORLD_VERSION, World
from posegen.io.cores import cores
from posegen.ranges import AtLeastOne, NotNegative, Seed, Width, Workers


class MannequinData(PoseData):
    """The first ``count`` samples of a split of a mannequin world.

    A smaller ``count`` is a prefix of a larger one and reuses its shards. Reading prepares whatever is missing.
    ``keypoint_noise`` imitates a detector: the standard deviation of an error of all keypoints, relative to the root of
    the person's area; the error is the same on every visit.
    """

    name = "mannequin"
    version: ClassVar[int | str] = WORLD_VERSION
    checkable = True  # the constructor loads nothing, see `posegen.config.checking.check.refused`
    renders: ClassVar[type[World]] = World

    def __init__(
        self,
        split: str = "train",
        count: AtLeastOne = 30000,
        size: Width = 64,  # image side in pixels, 64 or 128
        seed: Seed = 0,  # of the world
        cache: str | Path = "~/.cache/posegen",  # folder of the shards; 0.4 GB for 30,000 images of 64 pixels
        workers: Workers | None = None,  # rendering processes; None takes one per core
        keypoint_noise: NotNegative = 0.0,
    ):
        if split not in SPLIT_STREAMS:
            raise ValueError(f"split '{split}' is not one of {', '.join(SPLIT_STREAMS)}")
        if count < 1:
            raise ValueError(f"count is {count}: at least one sample is needed")
        if not keypoint_noise >= 0:
            expected = "expected a share of the person's size, 0 or more, for instance 0.05"
            raise ValueError(f"data.{split}.keypoint_noise is {keypoint_noise}; {expected}")
        self.split, self.count, self.seed, self.size = split, count, seed, (size, size)
        self.keypoint_noise, self.world = keypoint_noise, self.renders(seed, size)
        self.cache = Cache(Path(cache).expanduser(), split, seed, size, world=self.renders)
        self.workers = workers or cores()
        self._shards: list[ShardContent] = []
        self._checked = False  # whether the shards have been compared with their checksums

    @property
    def identity(self) -> dict[str, Any]:
        about = {"name": self.name, "version": self.version, "split": self.split, "count": self.count}
        noise = {"keypoint_noise": self.keypoint_noise} if self.keypoint_noise else {}
        return {**about, "size": self.size[0], "seed": self.seed, **noise}

    def prepare(self) -> None:
        """Renders missing and damaged shards; the checksums tell which are damaged."""
        self.cache.build(self.count, self.workers)
        self._shards, self._checked = [], True

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        index = self.checked(index)
        shard, row = self.shards[index // self.cache.per_shard], index % self.cache.per_shard
        people, record = int(shard.counts[row]), shard.records[row]
        keypoints, areas = shard.keypoints[row, :people].copy(), shard.areas[row, :people].copy()
        name = self.world.sample_id(self.split, index)
        if self.keypoint_noise:
            error = torch.randn(people, 17, 2, generator=generator(name, "keypoint noise")).numpy()
            keypoints[..., :2] += self.keypoint_noise * np.sqrt(areas)[:, None, None] * error
        image, attributes = np.array(shard.images[row]), _tuples(record["attributes"])
        return Sample(name, record["prompt"], keypoints, areas, image, self.size, attributes)

    def twin(self, index: int) -> Sample:
        return self.world.render_caption_twin(self.split, self.checked(index))

    @property
    def prompts(self) -> list[str]:
        every = [record["prompt"] for shard in self.shards for record in shard.records]
        return every[: self.count]  # the last shard may be longer

    @property
    def shards(self) -> list[ShardContent]:
        """The open shards; missing ones are rendered first."""
        if not self._shards:
            parts = self.cache.parts(self.count)
            found = [self.cache.find(*part) for part in parts]
            if None in found:
                self.prepare()
            for path in () if self._checked else filter(None, found):
                check_shard(path)
            self._checked = True
            self._shards = [self.cache.read(*part) for part in parts]
        return self._shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": []}  # memory maps are opened again in the other process


class SoftMannequinData(MannequinData):
    """The second rendering of the same captions and people, for 128 pixels."""

    name = SoftWorld.name
    version: ClassVar[int | str] = SoftWorld.version
    renders: ClassVar[type[World]] = SoftWorld


def _tuples(value: Any) -> Any:
    """Tuples in place of the lists of json."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
