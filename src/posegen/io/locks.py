"""One lock for all that only one process may do at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from posegen.io.atomic import explained

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file ``path``, alone or with others that share it, until the block or the process ends.

    Prints a line while it has to wait; without ``wait`` the block runs at once, with False where others hold the lock.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            path.open("a").close()
    with (_flock if fcntl is not None else _database_lock)(path, shared, wait) as held:
        yield held


def _say_waiting(path: Path) -> None:
    print(f"waiting: another process works on {path.parent}", flush=True)


@contextmanager
def _flock(path: Path, shared: bool, wait: bool) -> Iterator[bool]:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait:
                _say_waiting(path)
                fcntl.flock(file, kind)
            else:
                yield False
                return
        yield True


@contextmanager
def _database_lock(path: Path, shared: bool, wait: bool) -> Iterator[bool]:
    """The same with filelock's lock on a file of SQLite, which every system has."""
    from filelock import ReadWriteLock, Timeout

    lock = ReadWriteLock(path, is_singleton=False)

    def held(timeout: float) -> AbstractContextManager[Any]:
        return lock.acquire_read(timeout) if shared else lock.acquire_write(timeout)

    free = True
    try:
        holding = held(0)
    except Timeout:
        if wait:
            _say_waiting(path)
        holding, free = (held(-1), True) if wait else (nullcontext(), False)
    try:
        with holding:
            yield free
    finally:
        lock.close()
