"""Weight files, read without running anything they contain."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from posegen.io import inert_pickle

#: Keys under which checkpoints keep the weights.
STATE_DICT_KEYS = ("state_dict", "model")


class WeightsError(ValueError):
    """A weight file or folder that cannot be used; the message names it, what was expected, and the fix."""


class UnknownKeys(WeightsError):
    """Keys of a foreign file that a method does not know; all are in ``keys``."""

    def __init__(self, keys: Iterable[str], method: str) -> None:
        self.keys = tuple(sorted(keys))
        shown = ", ".join(self.keys[:5]) + (", ..." if len(self.keys) > 5 else "")
        found = f"{len(self.keys)} keys that {method} has no place for: {shown}"
        super().__init__(f"{found}; the file holds another method or another model")


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file, or of all files of a model's folder, on the CPU.

    A file is ``.safetensors``, or torch's: ``.ckpt``, ``.pth``, ``.pt``, ``.bin``. torch's files are pickles. torch's
    restricted loader reads them; where other objects lie beside the weights, `inert_pickle` puts placeholders in their
    place. Code in the file is never run. Of a checkpoint, the dictionary ``state_dict`` or ``model`` is returned. A
    WeightsError names a file that is missing, truncated, no weight file, or asks to run code.
    """
    file = Path(file)
    if file.is_dir():
        return {key: value for part in weight_files(file) for key, value in read_tensors(part).items()}
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; expected weights (.safetensors, .ckpt, .pth, .pt or .bin)")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except Exception as error:  # SafetensorError, RuntimeError, EOFError, OSError and others, by version
        fix = "It is truncated, damaged or no weight file: fetch it again"
        reason = f"cannot be read as weights ({first_line(error)}); nothing in it was run"
        raise WeightsError(f"{file}: {reason}. {fix}") from error
    known: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    known = next((known[key] for key in STATE_DICT_KEYS if isinstance(known.get(key), Mapping)), known)
    tensors = {str(key): value.detach() for key, value in known.items() if isinstance(value, Tensor)}
    if not tensors:
        expected = "expected a state dict, or a checkpoint with one under 'state_dict' or 'model'"
        raise WeightsError(f"{file}: it holds no named tensors; {expected}")
    return tensors


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a model's folder: safetensors and full precision where there is a choice; or WeightsError."""
    for pattern in ("*.safetensors", "*.bin"):
        found = sorted(f for f in folder.glob(pattern) if "non_ema" not in f.name)
        full = [f for f in found if ".fp16." not in f.name]
        if found:
            return tuple(full or found)
    raise WeightsError(f"{folder}: no weights (*.safetensors or *.bin) beside config.json; the download is incomplete")


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return sorted(key for key, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all()))


def _read_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # asks to report pickles that torch did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # objects beside the tensors; read once more without their classes
        # Not torch's permissive loader: inert_pickle imports nothing that the file names and refuses what could run.
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert_pickle)


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
