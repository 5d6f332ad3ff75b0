"""Where the members of a tar lie, to read them in any order without extraction or copies.

One pass over the headers makes an index. It is kept beside the tar, or in a cache folder, and belongs to the tar's size
and time of change. Only uncompressed tars can be indexed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from posegen.errors import UserError
from posegen.io.arrays import read_arrays_or_none, write_arrays
from posegen.io.hashes import text_hash

TAR_BLOCK = 512  # bytes of a tar's blocks; a block of zeros ends it
TAR_INDEX_VERSION = 1
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"), b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}  # fmt: skip


class TarMembers(dict[str, tuple[int, int]]):
    """The regular files in a tar: name -> (offset of the first byte, size in bytes), in the tar's order.

    ``problem`` says why the tar ends early; it is empty for a whole one. The members before the break are all there.
    """

    def __init__(self, file: Path, places: Mapping[str, tuple[int, int]], problem: str = "") -> None:
        super().__init__(places)
        self.file, self.problem = file, problem

    def read(self, name: str) -> bytes:
        """The content of a member. Raises KeyError: there is none of this name."""
        offset, size = self[name]
        with self.file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    @classmethod
    def of(cls, file: Path, cache: Path | None = None) -> TarMembers:
        """The index of a tar, read from its file in ``cache`` (None: the tar's folder) or built.
        Raises FileNotFoundError: there is no such tar; ValueError: it is compressed, or no tar.
        """
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected an uncompressed tar")
        status, index = file.stat(), tar_index_file(file, cache)
        stamp = [TAR_INDEX_VERSION, status.st_size, status.st_mtime_ns]
        stored = read_arrays_or_none(index)
        if stored is not None and stored["stamp"].tolist() == stamp:
            places = zip(stored["offsets"].tolist(), stored["sizes"].tolist(), strict=True)
            return cls(file, dict(zip(stored["names"].tolist(), places, strict=True)), str(stored["problem"]))
        members = cls(file, *scan_tar(file))
        offsets, sizes = np.array(list(members.values()), np.int64).reshape(-1, 2).T
        names = np.array(list(members), dtype=np.str_)
        try:
            write_arrays(index, stamp=stamp, names=names, offsets=offsets, sizes=sizes, problem=members.problem)
        except (OSError, UserError) as error:
            fix = "name a folder for indices with data.cache=FOLDER"
            raise ValueError(f"{index}, the index of a tar, cannot be written ({error}); {fix}") from error
        return members


def tar_index_file(file: Path, cache: Path | None = None) -> Path:
    if cache is None:
        return file.with_name(f"{file.name}.index.npz")
    return cache / f"{file.stem}-{text_hash(str(file.resolve()), 12)}.index.npz"


def scan_tar(file: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """The members of a tar and, where it ends early, the problem. Raises ValueError: it is compressed, or no tar."""
    with file.open("rb") as stream:
        begin = stream.read(8)
    for mark, (name, program) in COMPRESSED.items():
        if begin.startswith(mark):
            fix = f"uncompress it once (`{program}` makes a plain .tar of it)"
            raise ValueError(f"{file} is compressed with {name}, so its members cannot be read where they lie; {fix}")
    length, places, problem = file.stat().st_size, {}, ""
    with file.open("rb") as stream:
        try:
            tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - it owns nothing but the stream
        except tarfile.TarError as error:
            raise ValueError(f"{file} is no tar ({error}); fetch or make it again") from error
        try:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isreg() and not member.issparse():
                    places[member.name.removeprefix("./")] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            problem = str(error)
        stream.seek(tar.offset)
        # tarfile ends quietly at a damaged header, and without the closing block
        if not problem and stream.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            problem = "no end mark"
    return places, f"truncated or damaged ({problem}); {len(places)} members before the break" if problem else ""
