"""Arrays of objects are read as numpy would, and nothing that a file says is run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.data.on_disk.object_arrays import read_arrays
from tests.data.trees import malicious_array

DICE = np.random.default_rng(0)
PEOPLE = [
    {
        "keypoints": DICE.random((17, 3)).astype(np.float32),
        "score": np.float32(i),
        "area": np.float64(3),
        "n": 3,
        "text": "é",
        "more": (1, [2.5, None]),
    }
    for i in range(4)
]


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b) and getattr(a, "dtype", None) == getattr(b, "dtype", None)


def npy(content: bytes, shape: tuple[int, ...] = (4,)) -> io.BytesIO:
    """An npy file of objects with that pickle."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": shape})
    return io.BytesIO(stream.getvalue() + content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_people_of_an_npz_file(tmp_path: Path, save: Any) -> None:
    file = tmp_path / "people.npz"
    save(file, PEOPLE, square=np.array(PEOPLE, object).reshape(2, 2), plain=np.arange(3))
    arrays = read_arrays(file)
    assert arrays["arr_0"].shape == (4,) and all(map(same, arrays["arr_0"], PEOPLE))
    assert arrays["square"].shape == (2, 2) and same(arrays["square"][1, 0], PEOPLE[2])
    assert arrays["plain"].tolist() == [0, 1, 2]


def test_nobody_is_an_empty_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "nobody.npz", [])
    assert len(read_arrays(tmp_path / "nobody.npz")["arr_0"]) == 0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy", [1, 2])
def test_every_protocol_of_both_numpys(protocol: int, numpy: int) -> None:
    content = pickle.dumps(np.array(PEOPLE, object), protocol=protocol)
    if numpy == 1 and protocol < 4:
        content = content.replace(b"numpy._core", b"numpy.core")
    elif numpy == 1:  # names carry their lengths, and the frame that they are in carries its own
        content = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        content = content.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric").replace(
            content[2:11], b""
        )
    assert (b"_core" in content) == (numpy == 2)
    assert all(map(same, read_arrays(npy(content))["arr_0"], PEOPLE))


def test_nothing_is_run(tmp_path: Path) -> None:
    file, trap = tmp_path / "pose.npz", tmp_path / "trap"
    file.write_bytes(malicious_array(trap))
    with pytest.raises(
        ValueError,
        match=r"pose\.npz cannot be read: it asks for posix\.system, which no array .* needs; nothing of it was run",
    ):
        read_arrays(file)
    np.savez(tmp_path / "zipped.npz", np.array([Attack(trap)], object))
    with pytest.raises(ValueError, match="system"):
        read_arrays(tmp_path / "zipped.npz")
    assert not trap.exists()
    np.load(tmp_path / "zipped.npz", allow_pickle=True)["arr_0"]
    assert trap.exists()  # the trap works


class Attack:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.trap}'",)


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.fromfile, np.dtype.newbyteorder, pickle.loads, Path.unlink]
)
def test_only_what_arrays_need_may_be_named(function: Any) -> None:
    with pytest.raises(ValueError, match=r"people\.npy cannot be read"):
        read_arrays(npy(pickle.dumps(Asks(function, "x"))), "people.npy")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps(np.array(PEOPLE, object))[:-300],
        pickle.dumps(["no array"]),
        pickle.dumps(np.array(PEOPLE[:2], object)),
        pickle.dumps(np.array([1 + 2j] * 4, object)).replace(b"c16", b"O08"),
        pickle.dumps(Asks(np._core.multiarray._reconstruct, np.ndarray, (4,), b"b")),
        pickle.dumps(Asks(np._core.multiarray.scalar, np.dtype("f4"), b"12")),
        pickle.dumps(Asks(bytearray, 10**15)),
        pickle.dumps(Asks(np.dtype, "f4")),
        pickle.dumps(np.array([np.zeros(2, [("a", "f4"), ("b", "f4")])] * 4 + [0], object)[:4]),
    ],
    ids=["empty", "cut", "list", "shape", "complex", "unfinished", "short", "huge", "type", "record"],
)
def test_malformed_pickles_are_named(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"people\.npy cannot be read"):
        read_arrays(npy(content), "people.npy")


def test_a_pickle_cannot_spoil_the_next_file(tmp_path: Path) -> None:
    spoil = b"cnumpy\ndtype\n}X\x0b\x00\x00\x00__setstate__K\x01sb."  # sets an attribute of what it names
    with pytest.raises(ValueError, match="cannot be read"):
        read_arrays(npy(spoil), "spoiler")
    assert all(map(same, read_arrays(npy(pickle.dumps(np.array(PEOPLE, object))))["arr_0"], PEOPLE))


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda data: data[:-200],
        lambda data: data[:150] + b"x" * 60 + data[210:],
        lambda data: b"nonsense",
        lambda data: b"",
    ],
)
def test_damaged_files_are_named(tmp_path: Path, spoilt: Any) -> None:
    file = tmp_path / "people.npz"
    np.savez_compressed(file, PEOPLE)
    file.write_bytes(spoilt(file.read_bytes()))
    with pytest.raises(ValueError, match=r"people\.npz cannot be read"):
        read_arrays(file)
    with pytest.raises(ValueError, match=r"nowhere\.npz cannot be read"):
        read_arrays(tmp_path / "nowhere.npz")
