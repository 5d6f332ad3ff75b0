"""Opens every image of a data set once, in several processes, and keeps the results for files that do not change."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from zlib import crc32

from tqdm import tqdm

from posegen.data.on_disk.images import read_span
from posegen.data.on_disk.source import FileSpan, ImageSize
from posegen.data.processes import run_in_processes
from posegen.io.atomic import explained
from posegen.io.pictures import decode_with_mode

CHUNK_IMAGES = 32  # images that a process opens at once
FEW_IMAGES = 256  # so few are opened in this process, which is faster than starting others
ImageKey = tuple[FileSpan, ImageSize | None]  # of an image: its place, and the (height, width) that the data set lists


@dataclass(frozen=True)
class ScannedImage:
    place: FileSpan  # where its bytes are
    listed: ImageSize | None  # (height, width) that the data set lists
    stamp: tuple[int, ...] = ()  # size and time of change of the file; empty where it is missing
    size: ImageSize = (0, 0)  # (height, width)
    mode: str = ""  # colour mode
    sha: str = ""  # hash of its bytes
    problem: str = ""  # why it cannot be used; empty where it can

    @property
    def key(self) -> ImageKey:
        return self.place, self.listed

    @classmethod
    def from_line(cls, line: str) -> ScannedImage:
        """What `line` wrote. Raises ValueError, KeyError or TypeError: it is damaged."""
        text, _, seal = line.partition("\t")  # json has no tabs
        if seal not in ("", checksum(text)):  # empty in lines of earlier versions
            raise ValueError("damaged")
        row = json.loads(text)
        row |= {name: tuple(row[name]) for name in ("listed", "stamp", "size") if row[name] is not None}
        return cls(**{**row, "place": FileSpan(*row["place"])})

    def line(self) -> str:
        """A line of json, and behind a tab its checksum."""
        text = json.dumps(asdict(self))
        return f"{text}\t{checksum(text)}\n"


def checksum(text: str) -> str:
    return f"{crc32(text.encode()):08x}"


def file_stamp(path: Path) -> tuple[int, ...]:
    """Size and time of change of a file; empty where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def scan_image(root: Path, place: FileSpan, listed: ImageSize | None) -> ScannedImage:
    seen = ScannedImage(place, listed, file_stamp(root / place.file))
    try:
        data = read_span(root, place)
        image, mode = decode_with_mode(data, listed)
    except FileNotFoundError:
        return replace(seen, problem="missing")
    except (OSError, ValueError) as error:
        return replace(seen, problem=str(error))
    size = image.height, image.width
    wrong = f"is {size[1]} x {size[0]} pixels, listed as {listed[1]} x {listed[0]}" if listed and size != listed else ""
    return replace(seen, size=size, mode=mode, sha=hashlib.blake2b(data, digest_size=16).hexdigest(), problem=wrong)


def scan_chunk(root: Path, chunk: Sequence[ImageKey]) -> list[ScannedImage]:
    return [scan_image(root, *wanted) for wanted in chunk]


class ImageScan:
    """The scanned images of a data set in one file, a json line each; the last line about an image counts."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root, self.seen = path, root, dict[ImageKey, ScannedImage]()
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # an interruption cut it off
                seen = ScannedImage.from_line(line)
                self.seen[seen.key] = seen

    def missing(self, wanted: Iterable[ImageKey]) -> list[ImageKey]:
        """Images that were never scanned, or whose file has changed since."""
        now = lru_cache(maxsize=None)(lambda file: file_stamp(self.root / file))  # a tar holds thousands of images
        return [key for key in wanted if key not in self.seen or self.seen[key].stamp != now(key[0].file)]

    def complete(self, wanted: Sequence[ImageKey], workers: int, title: str) -> list[ScannedImage]:
        """Scans the missing images, with a progress bar, and returns the results of all."""
        missing = self.missing(wanted)
        if missing:
            if self.path.is_dir():
                shutil.rmtree(self.path)
            chunks = [(self.root, missing[i : i + CHUNK_IMAGES]) for i in range(0, len(missing), CHUNK_IMAGES)]
            bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=title, unit="img", smoothing=0.1)
            with bar, explained(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that was cut off
                for found in run_in_processes(scan_chunk, chunks, workers if len(missing) > FEW_IMAGES else 1):
                    file.write("".join(seen.line() for seen in found))
                    file.flush()
                    self.seen |= {seen.key: seen for seen in found}
                    bar.update(len(found))
        return [self.seen[key] for key in wanted]
