"""Hashes of texts, values and files. Caches and recorded identities hold them: their values must not change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty, replacing
from posegen.io.cache_folder import cache_folder

OUTLINE = 4 << 20  # bytes at the start and at the end of a large file


def text_hash(text: str, digits: int = 16) -> str:
    """The first hex digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def value_hash(value: Any, digits: int = 16) -> str:
    """The `text_hash` of plain values as json, whatever the order of their keys."""
    return text_hash(json.dumps(value, sort_keys=True, default=str), digits)


def file_hash(file: Path, digits: int = 64) -> str:
    """The first hex digits of the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:digits]


def joint_hash(parts: Iterable[bytes | str | Path | None], digits: int = 16) -> str:
    """The SHA-256 of bytes, texts and contents of files, one after the other; None counts as empty."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes()
        sha.update(part.encode() if isinstance(part, str) else part or b"")
    return sha.hexdigest()[:digits]


def content_hash(path: Path) -> str:
    """SHA-256 over the files at ``path``, by relative name and content; 16 hex digits."""
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name != "card.json":  # a card describes weights, it is not one of them
            sha.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    sha.update(chunk)
    return sha.hexdigest()[:16]


def outline_hash(place: Path, digits: int) -> str:
    """A hash that tells files or folders apart without reading gigabytes; the first hex digits.

    It counts the names and sizes of up to 64 files and their content, of files beyond 8 MB the first and the last. Of a
    folder with more files it is the hash of the path.
    """
    found = place.rglob("*") if place.is_dir() else iter([place])
    first, sha = list(islice(found, 65)), hashlib.sha256()
    if len(first) == 65:
        return text_hash(str(place.resolve()), digits)
    files = sorted(file for file in first if file.is_file())
    for file in files:
        size = file.stat().st_size
        sha.update(f"{file.relative_to(place).as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        with file.open("rb") as stream:
            sha.update(stream.read(OUTLINE))
            stream.seek(max(stream.tell(), size - OUTLINE))
            sha.update(stream.read(OUTLINE))
    return sha.hexdigest()[:digits]


def hash_fraction(key: str) -> float:
    """The SHA-1 of a key as a number in [0, 1): divides data sets that come without a split."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], "big") / 2**64


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the contents of ``files``, in their order; their names do not matter."""
    total = hashlib.sha256()
    for sha256 in file_hashes(files):
        total.update(bytes.fromhex(sha256))
    return total.hexdigest()


def file_hashes(files: Iterable[Path]) -> list[str]:
    """The SHA-256 of each file.

    They are kept in `cache_folder`, by path, size and time of change, so that gigabytes are read once. What is kept has
    a checksum; damaged, it does not count.
    """
    cache = None
    with suppress(UserError):  # nobody says where caches lie
        cache = cache_folder() / "sha256.json"
    stored, found, hashes = {} if cache is None else read_json_or_empty(cache), {}, []
    known = stored.get("files", {}) if stored.get("checksum") == value_hash(stored.get("files")) else {}
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        found[key] = known.get(key) or file_hash(file)
        hashes.append(found[key])
    if cache is not None and not found.keys() <= known.keys():
        with suppress(OSError, UserError), replacing(cache) as temporary:  # where it cannot be kept, it is hashed again
            every = known | found
            temporary.write_text(json.dumps({"files": every, "checksum": value_hash(every)}))
    return hashes
