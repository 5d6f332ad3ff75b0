"""One lock for all that only one process may do at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posegen.io.atomic import explained


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Holds the lock file ``path``, alone or with others that share it, until the block or the process ends.

    Prints a line while it has to wait.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    with opened as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: another process works on {path.parent}", flush=True)
            fcntl.flock(file, kind)
        yield
