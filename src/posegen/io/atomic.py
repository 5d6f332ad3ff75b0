"""Files and folders that are whole or absent: an interrupted program leaves nothing half-written behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.io.json_text import MAX_BYTES, parse_json

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)(\.(?P<machine>[0-9a-f]{8}))?\.tmp")
FOREIGN_S = 86400.0  # age at which a temporary of another machine, or of an older posegen, counts as left behind
NEARLY_FULL = 1 << 20  # free bytes below which an error without a number is one of a full disk
MANY = 200  # files above which one flush of all disks is faster
FULL, FORBIDDEN = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP)


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path; the file or folder written there replaces ``path`` if the block succeeds.

    Removes what processes that are dead left beside ``path``. A full, read-only or forbidden disk is a `UserError`
    that names the place and the way out.

    Args:
        durable: the content is on the disk before it gets its name, and so it outlasts a power failure. Whoever writes
            thousands of small files calls `flush` once for many.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{machine()}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            _remove(temporary)
            yield temporary
            if durable:
                flush(*(temporary.rglob("*") if temporary.is_dir() else ()), temporary)
            if path.is_dir():
                _remove(path)
            os.replace(temporary, path)
            if durable:
                flush(path.parent)
    finally:
        with suppress(OSError):
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(*paths: Path) -> None:
    """Waits until files, and the names in folders, are on the disk; passes over what a disk cannot tell."""
    if len(paths) > MANY and hasattr(os, "sync"):
        return os.sync()
    for path in paths:
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


@cache
def machine() -> str:
    """Eight hex digits for this boot of this machine, or this container: where the numbers of processes are valid."""
    facts = [socket.gethostname()]
    for read in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            facts.append(read())
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


@cache
def remove_leftovers(folder: Path) -> None:
    """Removes the temporaries of dead processes from a folder, once per process."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _TEMPORARY.fullmatch(entry.name)
            with suppress(OSError):
                if found and _left_behind(found["pid"], found["machine"], entry.stat(follow_symlinks=False).st_mtime):
                    _remove(Path(entry.path))


def _left_behind(pid: str, where: str | None, changed: float) -> bool:
    if where != machine():
        return time.time() - changed > FOREIGN_S
    return not process_lives(int(pid))


def process_lives(pid: int) -> bool:
    """Whether there is a process of this number, perhaps of somebody else; true where nobody can tell."""
    if os.name == "nt":  # there os.kill would interrupt it
        from psutil import pid_exists

        return pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk that is met on writing ``path`` into a `UserError` with a way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        name = os.fsdecode(getattr(error, "filename", None) or path)
        here = name.startswith(str(path.parent)) or str(path).startswith(name)  # in the folder, or one above it
        reason = _reason(_system_number(error, path), path) if here else None
        if reason is None:
            raise
        raise UserError(reason) from error


def _system_number(error: Exception, path: Path) -> int | None:
    """The system's number of an error of writing; safetensors gives it in words, torch and numpy not at all."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := re.search(r"os error (\d+)", str(error)):
        return int(found[1])
    if isinstance(error, (OSError, RuntimeError)):
        return errno.ENOSPC if shutil.disk_usage(_existing(path)).free < NEARLY_FULL else None
    return None


def _existing(path: Path) -> Path:
    return next((folder for folder in (path.parent, *path.parent.parents) if folder.is_dir()), Path("/"))


def _reason(number: int | None, path: Path) -> str | None:
    other = "choose another place: paths.output=FOLDER for results, XDG_CACHE_HOME for caches"
    if number in FULL:
        what = "the disk is full" if number == errno.ENOSPC else "your quota of the disk is used up"
        return f"{path} cannot be written: {what}. Free space there and run the same command again, or {other}"
    if number == errno.EROFS:
        return f"{path} cannot be written: its file system is read-only. Mount it to be written to, or {other}"
    if number in FORBIDDEN:
        folder = _existing(path)
        text = f"you may not write to {folder}. Run chmod u+rwx {folder} if it is yours"
        return f"{path} cannot be written: {text}, or {other}"
    if number == errno.ENAMETOOLONG:
        return f"{path} cannot be written: its name is too long. Shorten study= or the names in the command, or {other}"
    folder = next(folder for folder in path.parents if os.path.lexists(folder) or folder == folder.parent)
    if number in NO_FOLDER and not folder.is_dir():
        return f"{path} cannot be written: {folder} is no folder. Move it away, or {other}"
    return None


def write_text(path: Path, text: str, durable: bool = True) -> None:
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n", durable)


def read_json(path: Path, fix: str = "delete it and run the command again", limit: int = MAX_BYTES) -> Any:
    """The content of a json file (`parse_json`); a UserError names one that is missing or not json, and the fix."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} is not a readable json file ({error.strerror}); {fix}") from error
    return parse_json(content, str(path), fix, limit)


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """The object in a json file that can be rebuilt; empty where it is missing or damaged."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def set_aside(folder: Path, names: Iterable[str], why: Exception, then: str) -> None:
    """Renames damaged files, and says so and what is done ``then``: nothing that was computed is deleted."""
    there = [folder / name for name in names if (folder / name).exists()]
    for path in there:
        number = len(list(folder.glob(f"{path.name}.damaged*"))) or ""
        path.rename(path.with_name(f"{path.name}.damaged{number}"))
    moved = ", ".join(path.name for path in there)
    print(f"{why}\nset aside in {folder} as *.damaged: {moved}; {then}", flush=True)
