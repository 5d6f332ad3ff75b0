"""A pickle reader for official checkpoints: rebuilds tensors, replaces foreign classes by placeholders, runs nothing.

Published checkpoints often hold training callbacks or configuration objects beside the weights, which
``torch.load(weights_only=True)`` refuses. torch takes this module as its ``pickle_module``. It imports nothing that a
file names. torch's own ``get_unsafe_globals_in_checkpoint`` with ``safe_globals`` would do, but not for files from
before its zip format, which many official checkpoints are.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

UnpicklingError = pickle.UnpicklingError
loads = None  # torch looks for these names, and calls `Unpickler` and `load` alone


class Inert:
    """Stands for an object of a class that is not imported: takes any arguments and any state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def __setstate__(self, *_: Any) -> None: ...

    __setitem__ = append = extend = add = __setstate__


def _placeholder(*_: Any, **__: Any) -> Inert:
    return Inert()


KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, list, dict, tuple, int, float, bool, str)},
    ("builtins", "object"): Inert,
    ("copyreg", "_reconstructor"): _placeholder,
    ("copyreg", "__newobj__"): _placeholder,
    ("_codecs", "encode"): _placeholder,
    ("numpy", "dtype"): Inert,
    ("numpy", "ndarray"): Inert,
    ("numpy.core.multiarray", "scalar"): _placeholder,
    ("numpy.core.multiarray", "_reconstruct"): _placeholder,
    ("numpy._core.multiarray", "scalar"): _placeholder,
    ("numpy._core.multiarray", "_reconstruct"): _placeholder,
}
"""All that a file may call, by module and name; only torch's own rebuild functions use their arguments."""

OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: Packages whose classes act when they are created; a file that names one is refused.
SUSPECT = frozenset((
    "builtins", "code", "codecs", "ctypes", "importlib", "io", "multiprocessing", "nt", "os", "pathlib", "pickle",
    "_pickle", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys", "threading", "webbrowser",
))  # fmt: skip


class Unpickler(pickle.Unpickler):
    """Refuses, by name, every function that is not in `KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        module = OLD_NAMES.get(module, module)
        if (known := KNOWN.get((module, name))) is not None:
            return known if isinstance(known, type) else partial(known)  # a copy: a pickle can set its attributes
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage") and name.isidentifier():
            return getattr(torch.storage if module == "torch.storage" else torch, name)
        if module == "torch._utils":
            raise UnpicklingError(f"it holds tensors of another kind ({name}) beside other objects; save them dense")
        last = name.rpartition(".")[2]
        if module.partition(".")[0] in SUSPECT or not last.lstrip("_")[:1].isupper():
            raise UnpicklingError(f"it asks to run {module}.{name}, which no weights need")
        return type(last, (Inert,), {})


def load(stream: Any, **options: Any) -> Any:
    """torch calls it for files from before its zip format."""
    return Unpickler(stream, **options).load()
