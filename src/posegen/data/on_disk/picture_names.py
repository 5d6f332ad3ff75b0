"""Which picture a name in a list means: its path, else its name, else its name without suffix, else its number."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from posegen.poses.pose_files import number_of


def plain_path(name: str) -> PurePosixPath:
    """A path as text may spell it: accents as one character or two, the separators of Windows, any case."""
    return PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/").casefold())


class NamedPictures:
    """Pictures by the names that lists have for them.

    A name that fits several pictures equally well (``1.jpg`` in two folders) means none of them.

    Attributes:
        names: picture -> its names, as the lists spell them.
        unclear: picture -> a name that may mean it or another one.
        absent: names that mean no picture.
    """

    def __init__(self, names: Iterable[str], pictures: Sequence[str]) -> None:
        ways: tuple[dict[object, list[str]], ...] = ({}, {}, {}, {})
        for picture in pictures:
            path = plain_path(picture)
            for way, key in zip(ways, (picture, path.name, path.stem, number_of(path.stem)), strict=True):
                way.setdefault(key, []).append(picture)
        claims: dict[str, list[tuple[int, str]]] = {}
        doubtful: list[tuple[str, list[str]]] = []
        self.absent: list[str] = []
        for name in names:
            path = plain_path(name)
            keys = (name, path.name, path.name, number_of(path.name))
            pairs = [way.get(key, []) if key is not None else [] for way, key in zip(ways, keys, strict=True)]
            near = [[picture for picture in there if plain_path(picture).parent == path.parent] for there in pairs]
            far = [[picture for picture in there if _fit(plain_path(picture).parent, path.parent)] for there in pairs]
            fitting = [found for level in zip(near, far, strict=True) for found in level]
            rank, found = next(((rank, found) for rank, found in enumerate(fitting) if found), (0, []))
            if len(found) == 1:
                claims.setdefault(found[0], []).append((rank, name))
            elif found:
                doubtful.append((name, found))
            else:
                self.absent.append(name)
        best = {picture: min(rank for rank, _ in found) for picture, found in claims.items()}
        self.names = {picture: [name for rank, name in claims[picture] if rank == best[picture]] for picture in claims}
        self.absent += [name for picture, found in claims.items() for rank, name in found if rank > best[picture]]
        self.unclear = {picture: name for name, found in doubtful for picture in found if picture not in claims}

    def require_clear(self, picture: str) -> Sequence[str]:
        """The names of a picture, none where no list has one. Raises ValueError: it and others fit the same name."""
        if picture in self.unclear:
            raise ValueError(f"{self.unclear[picture]} may mean it or another picture of that name; give its path")
        return self.names.get(picture, ())


def _fit(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether the shorter of two folders is the end of the longer one."""
    shorter, longer = sorted((one.parts, other.parts), key=len)
    return longer[len(longer) - len(shorter) :] == shorter


def by_stem(files: Mapping[str, object]) -> dict[str, str]:
    """Files beside pictures under the names that these share: ``a_keypoints.json`` and ``a.json`` are ``a``."""
    short = {str(PurePosixPath(file).with_suffix("")): file for file in files}
    return {**short, **{name.removesuffix("_keypoints"): file for name, file in short.items() if "_keypoints" in name}}
