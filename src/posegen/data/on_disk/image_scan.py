"""Opens every picture of a data set once, in several processes, and remembers what it saw: an interruption loses a second, a second run opens what changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from posegen.data.on_disk import images as pictures
from posegen.data.on_disk.source import Place

CHUNK = 32  # pictures that are handed to a process at once
ALONE = 256  # so few are opened here, which is faster than starting processes
Size = tuple[int, int]


@dataclass(frozen=True)
class Look:
    """What opening a picture told.

    Attributes:
        place: where it lies.
        listed: (height, width) that the data set lists.
        stamp: size and time of change of its file; empty where there is none.
        size: (height, width).
        mode: colour mode.
        sha: hash of its bytes.
        problem: why it cannot be used; empty where it can.
    """

    place: Place
    listed: Size | None
    stamp: tuple[int, ...] = ()
    size: Size = (0, 0)
    mode: str = ""
    sha: str = ""
    problem: str = ""

    @property
    def key(self) -> tuple[Place, Size | None]:
        return self.place, self.listed

    @classmethod
    def of(cls, line: str) -> Look:
        row = json.loads(line)
        pairs: dict[str, Any] = {
            name: tuple(row[name]) if row[name] is not None else None for name in ("listed", "stamp", "size")
        }
        return cls(Place(*row["place"]), mode=row["mode"], sha=row["sha"], problem=row["problem"], **pairs)


def stamp(path: Path) -> tuple[int, ...]:
    """Size and time of change of a file, by which a later run knows that it is the same; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def look(root: Path, place: Place, listed: Size | None) -> Look:
    """Reads and decodes one picture."""
    seen = Look(place, listed, stamp(root / place.file))
    try:
        data = pictures.content(root, place)
        image, mode = pictures.opened(data, listed)
    except FileNotFoundError:
        return replace(seen, problem="missing")
    except (OSError, ValueError) as error:
        return replace(seen, problem=str(error))
    size = image.height, image.width
    wrong = f"is {size[1]} x {size[0]} pixels, listed as {listed[1]} x {listed[0]}" if listed and size != listed else ""
    return replace(seen, size=size, mode=mode, sha=hashlib.blake2b(data, digest_size=16).hexdigest(), problem=wrong)


def look_at(root: Path, chunk: Sequence[tuple[Place, Size | None]]) -> list[Look]:
    return [look(root, *wanted) for wanted in chunk]


class Looks:
    """What was seen so far, one json line per picture; the last line about a picture counts.

    Args:
        path: the file; it need not exist.
        root: of the data set.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        self.seen = {seen.key: seen for seen in self._lines()}

    def _lines(self) -> Iterator[Look]:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    yield Look.of(line)
                except (ValueError, KeyError, TypeError):  # an interruption cut it off
                    continue

    def missing(self, wanted: Iterable[tuple[Place, Size | None]]) -> list[tuple[Place, Size | None]]:
        """Those that were never looked at or whose file has changed since."""
        now = lru_cache(maxsize=None)(lambda file: stamp(self.root / file))  # a tar holds thousands of pictures
        return [key for key in wanted if key not in self.seen or self.seen[key].stamp != now(key[0].file)]

    def complete(self, wanted: Sequence[tuple[Place, Size | None]], workers: int, title: str) -> list[Look]:
        """Looks at what is missing, showing rate and remaining time, and returns what is known of all."""
        missing = self.missing(wanted)
        if missing:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
            bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=title, unit="img", smoothing=0.1)
            with bar, self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that was cut off
                for found in self._found(chunks, workers if len(missing) > ALONE else 1):
                    file.write("".join(json.dumps(asdict(seen)) + "\n" for seen in found))
                    file.flush()
                    self.seen |= {seen.key: seen for seen in found}
                    bar.update(len(found))
        return [self.seen[key] for key in wanted]

    def _found(self, chunks: Sequence[Sequence[tuple[Place, Size | None]]], workers: int) -> Iterator[list[Look]]:
        if workers <= 1:
            yield from (look_at(self.root, chunk) for chunk in chunks)
            return
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(look_at, self.root, chunk) for chunk in chunks]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def cores() -> int:
    return os.cpu_count() or 1
