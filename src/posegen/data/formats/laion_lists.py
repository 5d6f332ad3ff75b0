"""Lists of LAION-Human's pictures: HumanSD's mappings, img2dataset's tables, and prompts beside pictures in tars."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from posegen.data.on_disk.tar_members import TarMembers

IMAGES, POSES = "images", "pose"
KEY_DIGITS, PER_SHARD = 9, 10_000


class LaionRow(NamedTuple):
    """A picture in a list: its key, and its prompt, picture, file of poses and address where they are known."""

    key: str
    prompt: str | None = None
    picture: str | None = None
    poses: str | None = None
    url: str | None = None

    @property
    def shard(self) -> int:
        return int(self.key) // PER_SHARD


@dataclass(frozen=True)
class PathRule:
    """How the paths of a mapping become paths below the root."""

    #: their start that the disk lacks; None keeps them from the folder ``images`` or ``pose`` on
    strip: str | None = None
    add: str = ""  # the start to add

    def below_root(self, path: str) -> str:
        path = path.lstrip("/")
        if self.strip is None:
            parts = path.split("/")
            path = "/".join(parts[next((i for i, part in enumerate(parts) if part in (IMAGES, POSES)), 0) :])
        return f"{self.add}{path.removeprefix(self.strip.lstrip('/') if self.strip else '')}".lstrip("/")


def laion_key(name: str | int) -> str | None:
    """The nine digits of a key in any spelling: ``338717``, ``000338717``, ``00033_000338717``; None for other text."""
    match = re.fullmatch(rf"(?:\d+[_/])?(\d{{1,{KEY_DIGITS}}})", str(name).strip())
    return match[1].zfill(KEY_DIGITS) if match else None


def held_out(key: str, one_in: int) -> bool:
    """Whether the SHA-1 of a key, read as a number, is divisible by ``one_in``."""
    return int(hashlib.sha1(key.encode()).hexdigest(), 16) % one_in == 0


def chosen_shards(given: str | int | Iterable[int] | None) -> frozenset[int] | None:
    """The numbers of ``"0-79"``, ``"0-3,7"``, 7 or [0, 1]; None for all. Raises ValueError: it is none of these."""
    if given is None:
        return None
    parts = str(given).split(",") if isinstance(given, str | int) else [str(part) for part in given]
    ranges = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in parts]
    if not ranges or not all(ranges):
        raise ValueError(f"data.shards={given}: expected numbers and ranges such as 0-79 or 0-3,7")
    return frozenset(n for match in ranges if match for n in range(int(match[1]), int(match[2] or match[1]) + 1))


def fetched_rows(file: Path) -> Iterator[LaionRow]:
    """The rows of img2dataset's table; none without the file. Raises ImportError: no pyarrow; ValueError: damaged."""
    if not file.is_file():
        return
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(f"{file} can only be read with pyarrow: pip install 'posegen[data]'") from error
    try:
        names = [name for name in ("key", "url") if name in parquet.read_schema(file).names]
        columns = parquet.read_table(file, columns=names).to_pydict()
        keys = [laion_key(key) for key in columns["key"]]
    except (ArrowException, OSError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} cannot be read ({reason}); expected the columns key and url") from error
    urls = columns.get("url", [None] * len(keys))
    yield from (LaionRow(key, url=url) for key, url in zip(keys, urls, strict=True) if key is not None)


def prompt_beside(members: TarMembers, picture: str) -> str | None:
    stem = picture.removesuffix(Path(picture).suffix)
    try:
        if f"{stem}.txt" in members:
            return members.read(f"{stem}.txt").decode("utf-8").strip()
        if f"{stem}.json" in members:
            caption = json.loads(members.read(f"{stem}.json")).get("caption")
            return None if caption is None else str(caption)
    except (UnicodeDecodeError, ValueError, AttributeError):
        pass
    return None
