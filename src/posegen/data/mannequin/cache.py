"""The mannequin world on disk: immutable shards of up to 1000 samples, rendered beside their place and then renamed.

A shard is a folder ``00012-1000`` (number and sample count) of numpy files, captions as json lines, and ``shard.json``
with the checksums of the others. A finished folder never changes and a rename is atomic. So an interruption loses only
unfinished shards, and of two processes that render the same shard the second drops its copy.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from posegen.data.mannequin.world import World
from posegen.data.processes import run_in_processes
from posegen.errors import UserError
from posegen.io.atomic import explained, read_json

MOST_PEOPLE = 3
SHARD_FILES = ("images.npy", "keypoints.npy", "areas.npy", "counts.npy", "captions.jsonl")
SUMS = "shard.json"  # the checksums of these files, and the place of the shard


class BrokenShard(UserError):
    """A shard that is incomplete or damaged; the message names the file and what to do."""


@dataclass(frozen=True)
class ShardContent:
    images: np.ndarray  # [n, size, size, 3] uint8, memory-mapped
    keypoints: np.ndarray  # [n, 3, 17, 3] float32, zero where there are fewer than three people
    areas: np.ndarray  # [n, 3] float32, padded alike
    counts: np.ndarray  # [n] int64 people
    records: list[dict[str, Any]]  # n dicts with prompt and attributes


@dataclass(frozen=True)
class Cache:
    root: Path  # the folder of all worlds
    split: str
    seed: int
    size: int
    per_shard: int = 1000  # other values are for tests
    world: type[World] = World

    @property
    def folder(self) -> Path:
        return self.root / f"{self.world.name}-v{self.world.version}-seed{self.seed}-{self.size}px" / self.split

    def parts(self, count: int) -> list[tuple[int, int]]:
        """The shards (number, samples) that hold the first ``count`` samples."""
        n = self.per_shard
        return [(start // n, min(n, count - start)) for start in range(0, count, n)]

    def find(self, number: int, needed: int) -> Path | None:
        """The folder of shard ``number`` with at least ``needed`` samples, if there is one."""
        found = sorted(self.folder.glob(f"{number:05d}-[0-9][0-9][0-9][0-9]"))
        return next((path for path in found if int(path.name[6:]) >= needed), None)

    def missing(self, count: int) -> list[tuple[int, int]]:
        """Absent shards (number, samples) of the first ``count`` samples; damaged ones are removed with a warning."""
        wanted = []
        for number, needed in self.parts(count):
            path = self.find(number, needed)
            if path is not None:
                try:
                    check_shard(path)
                    continue
                except UserError as error:
                    warnings.warn(f"{error}; it is rendered again now", stacklevel=2)
                    grave = path.with_name(f".{path.name}-damaged-{os.getpid()}")
                    with suppress(OSError):  # another process was faster
                        os.replace(path, grave)
                        shutil.rmtree(grave) if grave.is_dir() else grave.unlink()
            wanted.append((number, needed))
        return wanted

    def build(self, count: int, workers: int) -> None:
        """Renders what is missing with ``workers`` processes, showing rate and remaining time."""
        wanted = self.missing(count)
        if not wanted:
            return
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        total, title = sum(n for _, n in wanted), f"{self.world.name} {self.split} {self.size}px"
        with tqdm(total=total, desc=title, unit="img", smoothing=0.1) as bar:
            for done in run_in_processes(render_shard, [(self, *shard) for shard in wanted], workers):
                bar.update(done)

    def read(self, number: int, needed: int) -> ShardContent:
        """Opens a finished shard; raises `BrokenShard` where it is missing or cannot be read."""
        path = self.find(number, needed)
        if path is None:
            fix = f"call prepare() or run `posegen prepare data={self.world.name}`"
            raise BrokenShard(f"{self.folder / f'{number:05d}-*'} is missing: {fix}")
        try:
            images = np.load(path / "images.npy", mmap_mode="r")
            keypoints, areas, counts = (np.load(path / name) for name in SHARD_FILES[1:4])
            records = [json.loads(line) for line in (path / SHARD_FILES[4]).read_text("utf-8").splitlines()]
        except (OSError, ValueError, EOFError) as error:
            raise BrokenShard(f"{path} cannot be read ({error}): delete this folder and run again") from error
        if min(map(len, (images, keypoints, areas, counts, records))) < needed:
            raise BrokenShard(f"{path} is too short: delete this folder and run again")
        return ShardContent(images, keypoints, areas, counts, records)


def render_shard(cache: Cache, number: int, samples: int) -> int:
    """Renders shard ``number`` and puts it in its place; returns the number of samples."""
    cv2.setNumThreads(1)  # parallelism is one process per core
    place = cache.folder / f"{number:05d}-{samples:04d}"
    draft = cache.folder / f".{place.name}-{uuid.uuid4().hex}"  # not tempfile: a group may share the cache
    start = number * cache.per_shard
    try:
        with explained(place):
            draft.mkdir(parents=True)
            _write_shard(draft, cache.world(cache.seed, cache.size), cache.split, range(start, start + samples))
            (draft / SUMS).write_text(json.dumps({**checksums(draft), "place": place_of(place)}))
            try:
                os.replace(draft, place)
            except OSError:
                if not place.is_dir():
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return samples


def check_shard(path: Path) -> None:
    """Compares a shard's files with their checksums; raises `BrokenShard` where one is missing or differs."""
    sums = read_json(path / SUMS, f"delete the folder {path} and run again")
    try:
        found = checksums(path)
    except OSError as error:
        raise BrokenShard(f"{path} is incomplete ({error}): delete this folder and run again") from error
    known = sums if isinstance(sums, dict) else {}
    for name in SHARD_FILES:
        if found[name] != known.get(name):
            raise BrokenShard(f"{path} is damaged ({name}): delete this folder and run again")
    if known.get("place", place_of(path)) != place_of(path):  # earlier versions did not note it
        raise BrokenShard(f"{path} is a copy of {known['place']}: delete this folder and run again")


def checksums(folder: Path) -> dict[str, int]:
    return {name: zlib.crc32((folder / name).read_bytes()) for name in SHARD_FILES}


def place_of(path: Path) -> str:
    """World, split and shard of a shard's folder."""
    return "/".join(path.parts[-3:])


def _write_shard(folder: Path, world: World, split: str, indices: range) -> None:
    count = len(indices)
    images = np.zeros((count, world.size, world.size, 3), np.uint8)
    keypoints, areas = np.zeros((count, MOST_PEOPLE, 17, 3), np.float32), np.zeros((count, MOST_PEOPLE), np.float32)
    counts, lines = np.zeros(count, np.int64), []
    for row, index in enumerate(indices):
        sample = world.render(split, index)
        people = len(sample.keypoints)
        counts[row], images[row] = people, np.asarray(sample.image)
        keypoints[row, :people], areas[row, :people] = sample.keypoints, sample.areas
        lines.append(json.dumps({"prompt": sample.prompt, "attributes": dict(sample.attributes)}) + "\n")
    arrays: tuple[np.ndarray, ...] = (images, keypoints, areas, counts)
    for name, array in zip(SHARD_FILES, arrays, strict=False):
        np.save(folder / name, array)
    (folder / SHARD_FILES[4]).write_text("".join(lines))
