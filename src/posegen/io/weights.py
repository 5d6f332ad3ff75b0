"""Weight files: read without running anything they contain, and recognised by their content."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from posegen.io import inert_pickle

#: Where checkpoints keep the weights beside other things.
INNER = ("state_dict", "model")


class WeightsError(ValueError):
    """A weight file or folder that cannot be used; the message names it, what was expected there and what to do."""


class UnknownKeys(WeightsError):
    """Keys of a foreign file that a method has no place for.

    Attributes:
        keys: all of them.
    """

    def __init__(self, keys: Iterable[str], method: str) -> None:
        self.keys = tuple(sorted(keys))
        shown = ", ".join(self.keys[:5]) + (", ..." if len(self.keys) > 5 else "")
        super().__init__(
            f"{len(self.keys)} keys that {method} has no place for: {shown}; the file holds another method or another model"
        )


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a torch file (``.ckpt``, ``.pth``, ``.pt``, ``.bin``), on the CPU; of a model's folder, those of its files.

    A torch file is a pickle. It is read by torch's restricted loader and, where objects other than tensors lie beside the weights, by one that
    makes inert placeholders of them; code in the file is never run. The dictionary ``state_dict`` or ``model`` is taken where there is one.

    Raises:
        WeightsError: the file is missing, truncated, no weight file, or asks to run code.
    """
    file = Path(file)
    if file.is_dir():
        return {key: value for part in weight_files(file) for key, value in read_tensors(part).items()}
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; expected weights (.safetensors, .ckpt, .pth, .pt or .bin)")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[key] for key in INNER if isinstance(content.get(key), Mapping)), content)
    tensors = (
        {str(key): value.detach() for key, value in inner.items() if isinstance(value, Tensor)}
        if isinstance(inner, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{file}: it holds no named tensors; expected a state dict, or a checkpoint with one under 'state_dict' or 'model'"
        )
    return tensors


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files that are read from a model's folder: safetensors where there are any, full precision where there is a choice.

    Raises:
        WeightsError: there are none.
    """
    for pattern in ("*.safetensors", "*.bin"):
        found = sorted(f for f in folder.glob(pattern) if "non_ema" not in f.name)
        full = [f for f in found if ".fp16." not in f.name]
        if found:
            return tuple(full or found)
    raise WeightsError(f"{folder}: no weights (*.safetensors or *.bin) beside config.json; the download is incomplete")


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return sorted(
        key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # SafetensorError, OSError and others, by version
        raise _damaged(file, error) from error


def _read_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # asks to report pickles that torch did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # objects beside the tensors; read once more without their classes
    except Exception as error:  # truncated archives raise RuntimeError, EOFError, OSError and others
        raise _damaged(file, error) from error
    try:
        # Not torch's permissive loader: every name in the file goes through inert_pickle, which imports nothing and refuses what could run.
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert_pickle)
    except Exception as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{file}: cannot be read as weights ({first_line(error)}); nothing in it was run. It is truncated, damaged or no weight file: fetch it again"
    )


def first_line(error: Exception) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the content of ``files``, in their order; names and places do not matter.

    The hash of each file is remembered under ``$XDG_CACHE_HOME/posegen`` by its path, size and time of change, so that gigabytes are read once.
    """
    total = hashlib.sha256()
    known = _known_hashes()
    fresh = {}
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        fresh[key] = known.get(key) or _hash_file(file)
        total.update(bytes.fromhex(fresh[key]))
    if not fresh.keys() <= known.keys():
        _remember(known | fresh)
    return total.hexdigest()


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posegen" / "sha256.json"


def _known_hashes() -> dict[str, str]:
    try:
        return dict(json.loads(_cache_file().read_text()))
    except (OSError, ValueError):
        return {}


def _remember(hashes: Mapping[str, str]) -> None:
    """Replaces the cache in one step; a machine where it cannot be written just hashes again."""
    cache = _cache_file()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as stream:
            json.dump(hashes, stream)
        os.replace(stream.name, cache)
    except OSError:
        return
