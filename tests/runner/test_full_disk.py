"""A full disk in the middle of each kind of file: one error with the place and the way out, and nothing half-written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.joint_vectors import write_joint_vectors
from posegen.data.mannequin.dataset import MannequinData
from posegen.data.on_disk.image_scan import ImageScan
from posegen.data.on_disk.source import FileSpan
from posegen.errors import UserError
from posegen.io.arrays import write_arrays
from posegen.metrics.records import write_records
from posegen.runner.encodings import Encoded
from posegen.runner.images import write_png
from posegen.train.loggers import CellCSVLogger


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a disk")
    except FileNotFoundError:
        pytest.skip("no mount command")
    yield place
    subprocess.run(["umount", str(place)], check=True)


NOISE = np.random.default_rng(0).normal(size=(2, 100, 100))


def log(place: Path) -> None:
    logger = CellCSVLogger(place)
    logger.log_metrics({f"a_long_name_of_a_value_{i}": 1 / 3 for i in range(3000)}, step=0)
    logger.save()


def scan(place: Path) -> None:
    wanted = [(FileSpan(f"{i:0200d}.png"), None) for i in range(400)]
    ImageScan(place / "looks.jsonl", place).complete(wanted, 1, "scan")


WRITERS: dict[str, Callable[[Path], object]] = {
    "records": lambda place: write_records(place, {"id": ["a", "b"], "features": list(NOISE)}),
    "arrays": lambda place: write_arrays(place / "index.npz", noise=NOISE),
    "encodings": lambda place: Encoded(place, 2).fill(lambda rows: {"": NOISE}, "latents", "none"),
    "picture": lambda place: write_png(
        place / "a.png", np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    ),
    "world": lambda place: MannequinData("test", 8, cache=place, workers=1).prepare(),
    "joint vectors": lambda place: write_joint_vectors(place, [(NOISE[:, :34].repeat(17, 0)[:17, :, :34], "a")]),
    "curves": log,
    "scan": scan,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_with_the_way_out(small_disk: Path, kind: str) -> None:
    with pytest.raises(UserError, match=rf"{small_disk}.* the disk is full. Free space there and run the same command"):
        WRITERS[kind](small_disk)
    # what grows file by file keeps what it has; the list of joint vectors comes last
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    assert [path.name for path in left if path.name not in ("looks.jsonl", "metrics.csv", "0.npy")] == []
