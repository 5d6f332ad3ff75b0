"""Weight files, read without running anything they contain."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from posegen.io import inert_pickle

#: Keys under which checkpoints keep the weights.
STATE_DICT_KEYS = ("state_dict", "model")
#: How files begin that are saved under the names of weights, and what they are.
NO_WEIGHTS = {
    b"version https://git-lfs": "a pointer of git-lfs, not the weights: run git lfs pull where it was cloned",
    **dict.fromkeys(
        (b"<!doctype", b"<html", b"<?xml"),
        "a web page, not weights: its address asks for a login or a "
        "licence; open it in a browser and save the file itself",
    ),
    b"{": "a json file, not weights; name the weights beside it, or their folder",
    b"gguf": "a GGUF file, which holds quantised weights; fetch them in safetensors",
    b"\x89hdf": "an HDF5 file of Keras; fetch the weights for torch",
    **dict.fromkeys((b"\x1f\x8b", b"7z\xbc\xaf", b"rar!"), "a packed archive; unpack it, and name the weights in it"),
}
LARGEST_HEADER = 100_000_000  # bytes, safetensors' limit
LARGEST_FILLED = 1 << 30  # bytes of one tensor that a small file may stand for
ADVICE = re.compile(r"weights_only|allow_pickle|torch\.load|trust|[Rr]e-?run", re.ASCII)


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

    A file is of safetensors or of torch, whatever its suffix. torch's files are pickles. torch's restricted loader
    reads them; where other objects lie beside the weights, `inert_pickle` puts placeholders in their place. Code in the
    file is never run. Of a checkpoint, the dictionary ``state_dict`` or ``model`` is returned. Sparse tensors become
    dense, and numbers of 8 bits single precision. A WeightsError names a file that is missing, truncated, no weight
    file, or asks to run code, and weights that are quantised or not a number.
    """
    file = Path(file)
    if file.is_dir():
        return {key: value for part in weight_files(file) for key, value in read_tensors(part).items()}
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; expected weights (.safetensors, .ckpt, .pth, .pt or .bin)")
    try:
        content = load_file(file) if weights_format(file) == "safetensors" else _read_torch(file)
    except WeightsError:
        raise
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
    return {key: _plain(value, f"{file}: {key}") for key, value in tensors.items()}


def weights_format(file: Path) -> str:
    """``safetensors`` or ``torch``, by the first bytes; a WeightsError names what else is often saved as weights."""
    with file.open("rb") as stream:
        head = stream.read(512)
    start, length = head.lstrip().lower(), int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < LARGEST_HEADER:
        return "safetensors"
    for sign, what in NO_WEIGHTS.items():
        if start.startswith(sign):
            raise WeightsError(f"{file}: it is {what}")
    if head.startswith(b"PK") and zipfile.is_zipfile(file):
        names = zipfile.ZipFile(file).namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            fix = "Fetch the state dict of the model, or the file in safetensors"
            raise WeightsError(f"{file}: it is a TorchScript program, not weights; nothing in it was run. {fix}")
        if not any(name.endswith("data.pkl") for name in names):
            shown = ", ".join(names[:3])
            raise WeightsError(f"{file}: it is a zip archive with {shown}; unpack it, and name the weights in it")
    return "torch"


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, which are not read; empty for any other file."""
    try:
        with safe_open(file, framework="pt") as content:
            return {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}


def _plain(tensor: Tensor, name: str) -> Tensor:
    """The same numbers as a dense tensor; a WeightsError where it has none, or none that a network computes with."""
    size = tensor.numel() * tensor.element_size()
    learned = name.endswith((".weight", ".bias"))
    if tensor.is_meta:
        raise WeightsError(f"{name} has a shape and no values; fetch or save the file again with its weights")
    if tensor.is_quantized or (learned and not tensor.is_floating_point()):
        fix = "fetch the weights in full or half precision"
        raise WeightsError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, it is quantised; {fix}")
    if size > LARGEST_FILLED and (tensor.layout != torch.strided or size > tensor.untyped_storage().nbytes()):
        raise WeightsError(f"{name} would fill {size >> 30} GiB from a small file; no weights are like that")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.float()
    if learned and bool(tensor.isnan().any()):
        fix = "Its training diverged, or it overflowed in half precision; take another file"
        raise WeightsError(f"{name} holds NaN. {fix}")
    return tensor


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
    with file.open("rb") as stream, warnings.catch_warnings():  # a stream: of a path torch looks at the suffix
        warnings.simplefilter("ignore", UserWarning)  # asks to report pickles that torch did not write
        try:
            return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # objects beside the tensors; read once more without their classes
            # Not torch's permissive loader: inert_pickle imports nothing that a file names, refuses what could run. A
            # TorchScript program, which torch would run, has ended in the RuntimeError of the load above.
            stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=False, pickle_module=inert_pickle)


def first_line(error: Exception) -> str:
    """The first line of an error's message that does not advise to load unsafely; its type where there is none."""
    if isinstance(error, UnicodeDecodeError):
        return "names in it are no text in UTF-8"
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not ADVICE.search(line)), type(error).__name__)
