"""The start method that new processes are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_start_method, set_start_method


@contextmanager
def known_start_method() -> Iterator[None]:
    """A worker of joblib has a default of its own (``loky``), which a process started from it would not know."""
    before = get_start_method(allow_none=True)
    foreign = before is not None and before not in get_all_start_methods()
    if foreign:
        set_start_method("spawn", force=True)
    try:
        yield
    finally:
        if foreign:
            set_start_method(before, force=True)
