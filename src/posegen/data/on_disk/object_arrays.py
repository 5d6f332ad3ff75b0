"""Numpy files of Python objects (HumanSD's pose files hold a dict per person), read without running their content.

Numpy stores such arrays as pickles, and a pickle is a program. This reader accepts only the names that numpy's arrays
need, answers each with a note of the call, and builds the arrays from the notes, out of plain numbers and strings.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from posegen.io.arrays import NPZ_ERRORS
from posegen.io.foreign_files import require_array_bytes

PLAIN_TYPES = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,6}")  # booleans, numbers, bytes and strings
UNREADABLE = (*NPZ_ERRORS, pickle.UnpicklingError)
CRAFTED = (TypeError, AttributeError, LookupError, OverflowError)  # of a crafted pickle in the notes below


def read_arrays(file: Path | BinaryIO, name: str = "") -> dict[str, np.ndarray]:
    """The arrays of an npz file by name; of an npy file one array, named ``arr_0``. Raises ValueError: the file is
    missing, damaged, no numpy file, or holds anything but arrays, numbers, strings, dicts, lists and tuples; names it.
    """
    name = name or str(file)
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        require_array_bytes(content)
        if content[:2] != b"PK":
            return {"arr_0": _read_array(io.BytesIO(content))}
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
            return {member: _read_array(content) for member, content in members.items()}
    except CRAFTED as error:
        raise ValueError(f"{name} cannot be read: its pickle is malformed ({type(error).__name__}: {error})") from error
    except UNREADABLE as error:
        raise ValueError(f"{name} cannot be read: {error or type(error).__name__}") from error


def _read_array(stream: io.BytesIO) -> np.ndarray:
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"numpy format {version} is not known here")
    shape, _, dtype = read_header(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return np.load(stream, allow_pickle=False)
    array = _made(_Notes(stream, encoding="latin1").load(), {})
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise ValueError("its pickle holds no array of the shape in its header")
    return array


class _Type:
    """A note of ``numpy.dtype(code)``."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    @property
    def plain(self) -> np.dtype:
        known = isinstance(self.code, str) and PLAIN_TYPES.fullmatch(self.code)
        if not known or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"it holds elements of type {self.code!r}; expected numbers or strings")
        return np.dtype(self.order + self.code)


class _Array:
    """A note of an array: its shape, type and elements."""

    shape: Any
    type: _Type
    fortran: bool
    elements: Any

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.type, self.fortran, self.elements = state

    def made(self, done: dict[int, Any]) -> np.ndarray:
        order: Any = "F" if self.fortran else "C"
        if self.type.code not in ("O", "O8", "O4"):
            elements = self.elements.encode("latin1") if isinstance(self.elements, str) else self.elements
            return np.frombuffer(elements, self.type.plain).reshape(self.shape, order=order).copy()
        if not isinstance(self.elements, list):
            raise ValueError("its pickle holds an array of objects that are no list")
        array = np.empty(len(self.elements), object)
        for i, element in enumerate(self.elements):
            array[i] = _made(element, done)
        return array.reshape(self.shape, order=order)


class _Scalar(_Array):
    """A note of a single number, or of an array that was written in one piece."""

    def __init__(self, elements: Any, type: _Type, shape: Any = (), order: str = "C") -> None:
        self.elements, self.type, self.shape, self.fortran = elements, type, shape, order == "F"


def _made(value: Any, done: dict[int, Any]) -> Any:
    """The noted value with arrays in place of notes; ``done`` holds earlier results, since pickles share objects."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, dict):
        made: Any = {_made(k, done): _made(v, done) for k, v in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(_made(v, done) for v in value)
    elif isinstance(value, _Array):
        array = value.made(done)
        made = array[()] if isinstance(value, _Scalar) and value.shape == () else array
    else:
        expected = "expected arrays, numbers, strings, dicts, lists and tuples"
        raise ValueError(f"its pickle holds a {type(value).__name__}; {expected}")
    done[id(value)] = value, made  # the value is kept, or another would get its id
    return made


class _Notes(pickle.Unpickler):
    """Refuses, by name, all that arrays do not need."""

    def find_class(self, module: str, name: str) -> Any:
        """A note's maker for a name that a file may use; a fresh object, since a pickle can set its attributes."""
        stand_ins: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": partial(_Array),
            "numpy.dtype": partial(_Type),
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy._core.multiarray.scalar": lambda type, elements=b"": _Scalar(elements, type),
            "numpy._core.numeric._frombuffer": lambda elements, *about: _Scalar(bytes(elements), *about),
            "_codecs.encode": lambda text, codec: text.encode("latin1"),
            "builtins.bytearray": lambda *content: content[0] if content and isinstance(content[0], bytes) else b"",
        }
        known = stand_ins.get(f"{module.replace('numpy.core', 'numpy._core', 1)}.{name}")
        if known is None:
            problem = f"it asks for {module}.{name}, which no array of numbers needs; nothing of it was run"
            raise pickle.UnpicklingError(problem)
        return known
