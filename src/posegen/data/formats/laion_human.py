"""LAION-Human (HumanSD, Ju et al., ICCV 2023): about a million pictures from the web with detected poses, as files or in the tars they were fetched in.

    <root>/mapping_file_training.json                key -> picture, prompt and file of poses
    <root>/pose/00033/000338717.npz                  HumanSD's poses, unpacked
    <root>/images/00033/000338717.jpg                storage: files
    <root>/images/00033.tar, 00033.parquet           storage: tar, as img2dataset wrote them: pictures with their prompts, and the list of what was asked for

The first five of a key's nine digits are the shard. The index and the poses are handed out after a form; the pictures are fetched by their users, from
addresses of which many are dead, so a part is always missing. They belong to their sites, and nobody has looked at all of them: see ``exclude``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from posegen.data.formats.human_art import stored_people
from posegen.data.formats.laion_lists import (
    DIGITS,
    IMAGES,
    POSES,
    Paths,
    Row,
    asked_for,
    chosen_shards,
    held_out,
    key_of,
    mapping_of,
    prompt_beside,
)
from posegen.data.on_disk.source import Defect, Entry, Place, Report, Source, share
from posegen.data.on_disk.tar_members import TarMembers

MAPPINGS = ("mapping_file_training.json", "mapping_training.json", "mapping_train.json", "train.json")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TRIED = 20  # entries whose pose files are looked for before a million are read
SPLITS = ("train", "validation", "test")
DEAD = "missing (dead link, or not fetched)"

#: Says of a key and its prompt whether the picture is left out.
Exclude = Callable[[str, str], bool]


class LaionHuman(Source):
    """LAION-Human has one list; a picture is of the ``validation`` where the SHA-1 of its nine digits is divisible by ``holdout``. ``test`` is the same part.

    Args:
        root: the folder with ``images``, ``pose`` and the mapping, usually called ``Aesthetics_Human``.
        storage: ``files`` for unpacked pictures, ``tar`` to read them inside the original, uncompressed tars.
        mapping: its name, relative to the root, or one for each split, which are taken as they are; None finds it under its usual names. With tars it may be
            missing: prompts are those of the tars then.
        strip_prefix, add_prefix: see `Paths`.
        shards: those that are used: ``"0-79"``, ``"0-3,7"``, a number or a list; None for all.
        holdout: one picture in so many is validation.
        exclude: pictures that are left out for their content: a file with a key per line (relative to the root), or a function of key and prompt, which may be
            named as ``module:function``.
        cache: folder for the indices of tars; None keeps them beside the tars.

    Raises:
        ValueError: an option cannot be, or the root has no pictures.
    """

    name = "laion_human"

    def __init__(
        self,
        root: str | Path,
        storage: Literal["files", "tar"] = "files",
        mapping: str | Mapping[str, str] | None = None,
        strip_prefix: str | None = None,
        add_prefix: str = "",
        shards: str | int | Sequence[int] | None = None,
        holdout: int = 50,
        exclude: str | Exclude | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.root, self.storage, self.mapping, self.paths = (
            Path(root).expanduser(),
            storage,
            mapping,
            Paths(strip_prefix, add_prefix),
        )
        self.shards, self.holdout, self.exclude = (
            chosen_shards(shards),
            holdout,
            function_of(exclude) if isinstance(exclude, str) and ":" in exclude else exclude,
        )
        self.cache = None if cache is None else Path(cache).expanduser() / "tars"
        if storage not in ("files", "tar"):
            raise ValueError(f"data.storage={storage}: expected files or tar")
        if holdout < 2:
            raise ValueError(f"data.holdout={holdout}: one picture in so many is validation; expected at least 2")
        if not (self.root / self.paths.add / IMAGES).is_dir():
            inner = next((path.parent for path in sorted(self.root.glob(f"*/{IMAGES}"))), None)
            fix = (
                f"did you mean {inner}?" if inner else "give the folder of LAION-Human, usually called Aesthetics_Human"
            )
            raise ValueError(f"data.root={root}: there is no folder {self.paths.add}{IMAGES} in it; {fix}")

    def identity(self, split: str) -> dict[str, Any]:
        sha = hashlib.sha256()
        if (mapping := self._mapping(split)) is not None:
            sha.update(mapping.read_bytes())
        if self.storage == "tar":
            sha.update(
                json.dumps(
                    [
                        (file.name, file.stat().st_size)
                        for file in sorted((self.root / self.paths.add / IMAGES).glob("*.tar"))
                    ]
                ).encode()
            )
        rule = None if isinstance(self.mapping, Mapping) else f"sha1(key) mod {self.holdout} == 0"
        options = {
            "storage": self.storage,
            "shards": sorted(self.shards) if self.shards else None,
            "prefixes": [self.paths.strip, self.paths.add],
        }
        return {
            "name": self.name,
            **options,
            "validation": rule,
            "exclude": self._exclude_identity,
            "lists": sha.hexdigest()[:16],
        }

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        """In the order of the mapping; with tars, shard by shard.

        Raises:
            FileNotFoundError: there is neither a mapping nor a tar.
            ValueError: a list is damaged, or the paths of the mapping lead nowhere.
        """
        if split not in SPLITS:
            raise FileNotFoundError(f"{self.name} has no split {split}; it has {', '.join(SPLITS)}")
        places = self._in_tars(split, report) if self.storage == "tar" else self._in_files(split, report)
        for row, place, prompt in places:
            if self._excluded(row.key, prompt):
                report(Defect(f"{place.file}: {row.key}" if place.length else place.file, "left out by data.exclude"))
                continue
            poses = row.poses or f"{self.paths.add}{POSES}/{row.shard:05d}/{row.key}.npz"
            try:
                keypoints, areas = stored_people(self.root / poses)
            except ValueError as error:
                report(
                    Defect(
                        poses,
                        str(error).removeprefix(f"{self.root / poses} ")
                        if (self.root / poses).is_file()
                        else "missing",
                    )
                )
                continue
            attributes = {"shard": row.shard} | ({"url": row.url} if row.url else {})
            yield Entry(f"{self.name}/{row.key}", prompt, place, None, keypoints, areas, attributes)

    # What is listed.

    def _mapping(self, split: str) -> Path | None:
        """The list of a split.

        Raises:
            FileNotFoundError: it is missing, and nothing can stand in for it.
        """
        if isinstance(self.mapping, Mapping) and split not in self.mapping:
            raise FileNotFoundError(f"data.mapping has no list for {split}; it has {', '.join(self.mapping)}")
        names = (
            MAPPINGS
            if self.mapping is None
            else (self.mapping[split] if isinstance(self.mapping, Mapping) else self.mapping,)
        )
        found = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if found is None and (self.mapping is not None or self.storage == "files"):
            raise FileNotFoundError(
                f"data.root={self.root} has no {' or '.join(names)}, which LAION-Human's authors hand out with the poses; put it there, or name it with "
                f"data.mapping=FILE{'' if self.storage == 'tar' else '; data.storage=tar can do without, where the pictures are in tars'}"
            )
        return found

    def _rows(self, split: str, report: Report) -> Iterator[Row] | None:
        """The rows of the split's mapping in the chosen shards; None without a mapping."""
        file = self._mapping(split)
        return None if file is None else (row for row in self._mapped(file, report) if self._wanted(row, split))

    def _mapped(self, file: Path, report: Report) -> Iterator[Row]:
        for name, value in mapping_of(file).items():
            key = key_of(name)
            if key is None:
                report(
                    Defect(
                        f"{file.name}: {name}",
                        f"no key of LAION-Human; expected {DIGITS} digits, perhaps after those of the shard",
                    )
                )
                continue
            try:
                yield Row(
                    key,
                    str(value["prompt"]),
                    self.paths.below(str(value["img_path"])),
                    self.paths.below(str(value["pose_path"])),
                )
            except (KeyError, TypeError):
                report(Defect(f"{file.name}: {name}", "lacks img_path, pose_path or prompt"))

    def _wanted(self, row: Row, split: str) -> bool:
        if self.shards is not None and row.shard not in self.shards:
            return False
        return isinstance(self.mapping, Mapping) or held_out(row.key, self.holdout) == (split != "train")

    # Where the pictures are.

    def _in_files(self, split: str, report: Report) -> Iterator[tuple[Row, Place, str]]:
        rows = list(self._rows(split, report) or ())
        self._try_paths(rows)
        there: dict[str, set[str]] = {}
        for row in rows:
            assert row.picture is not None and row.prompt is not None
            folder, _, name = row.picture.rpartition("/")
            if folder not in there:
                there[folder] = _names(self.root / folder)
            if name in there[folder]:
                yield row, Place(row.picture), row.prompt
            else:
                report(Defect(row.picture, DEAD))

    def _try_paths(self, rows: Sequence[Row]) -> None:
        """Looks for the pose files of a few entries, which unlike pictures should all be there.

        Raises:
            ValueError: none is there.
        """
        some = sorted(rows, key=lambda row: share(row.key))[:TRIED]
        if some and not any((self.root / str(row.poses)).is_file() for row in some):
            raise ValueError(
                f"data.root={self.root}: of {len(some)} random entries none has its file of poses, such as {self.root / str(some[0].poses)}; unpack the "
                "zips of poses there, choose the shards that you have with data.shards=0-79, or adapt the paths with data.strip_prefix and data.add_prefix"
            )

    def _in_tars(self, split: str, report: Report) -> Iterator[tuple[Row, Place, str]]:
        listed: dict[int, list[Row]] | None = None
        if (rows := self._rows(split, report)) is not None:
            listed = {}
            for row in rows:
                listed.setdefault(row.shard, []).append(row)
        tars = self._tars(report)
        for shard in sorted((listed or {}).keys() - tars.keys()):
            report(
                Defect(
                    f"{self.paths.add}{IMAGES}/{shard:05d}.tar",
                    f"missing; {len((listed or {})[shard])} pictures of {split} are in it",
                )
            )
        for shard, file in tqdm(
            tars.items(), desc=f"tars of {split}", unit="tar", dynamic_ncols=True, disable=len(tars) < 3
        ):
            opened = self._opened(file, report)
            if opened is None:
                continue
            members, asked = opened
            pictures = {
                key: m
                for m in members
                if Path(m).suffix.lower() in PICTURES and (key := key_of(Path(m).stem)) is not None
            }
            wanted = (
                (row for row in asked.values() or map(Row, pictures) if self._wanted(row, split))
                if listed is None
                else listed.get(shard, ())
            )
            for row in wanted:
                known = row if row.key not in asked else row._replace(url=asked[row.key].url)
                yield from self._in_tar(known, members, pictures.get(row.key), report)

    def _opened(self, file: Path, report: Report) -> tuple[TarMembers, dict[str, Row]] | None:
        """What is in a tar, and what was asked for by key; None where the tar cannot be read."""
        table = file.with_suffix(".parquet")
        try:
            members = TarMembers.of(file, self.cache)
            if members.problem:
                report(Defect(self._name(file), members.problem))
        except ValueError as error:
            report(Defect(self._name(file), str(error).removeprefix(f"{file} ")))
            return None
        try:
            return members, {row.key: row for row in asked_for(table)}
        except ValueError as error:
            report(Defect(self._name(table), str(error).removeprefix(f"{table} "), fatal=False))
            return members, {}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _in_tar(
        self, row: Row, members: TarMembers, picture: str | None, report: Report
    ) -> Iterator[tuple[Row, Place, str]]:
        """A picture and its prompt, where both are there."""
        name = self._name(members.file)
        if picture is None:
            report(Defect(f"{name}: {row.key}", DEAD))
            return
        prompt = row.prompt if row.prompt is not None else prompt_beside(members, picture)
        if prompt is None:
            report(
                Defect(f"{name}: {row.key}", "no prompt: neither a mapping nor a .txt or .json beside it in the tar")
            )
            return
        yield row, Place(name, *members[picture]), prompt

    def _tars(self, report: Report) -> dict[int, Path]:
        """The chosen tars that are there, by shard.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = self.root / self.paths.add / IMAGES
        found = {int(file.name[:5]): file for file in sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].tar"))}
        packed = [
            file
            for file in sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].tar.*"))
            if not file.name.endswith(".index.npz")
        ]
        for file in packed:
            if int(file.name[:5]) not in found:
                report(Defect(self._name(file), "compressed; uncompress it once to a plain .tar"))
        if not found and not packed:
            raise FileNotFoundError(
                f"{folder} has no tars such as 00000.tar; with unpacked pictures choose data.storage=files"
            )
        return {shard: file for shard, file in found.items() if self.shards is None or shard in self.shards}

    # What is left out.

    @cached_property
    def _unwanted(self) -> frozenset[str]:
        """The keys of the file ``exclude``.

        Raises:
            ValueError: it is missing, or a line is no key.
        """
        file = self.root / str(self.exclude)
        if not file.is_file():
            raise ValueError(
                f"data.exclude={self.exclude}: there is no {file}; expected a file with a key per line, or null"
            )
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        keys = {line: key_of(line) for line in lines if line and not line.startswith("#")}
        if wrong := [line for line, key in keys.items() if key is None]:
            raise ValueError(f"{file}: {wrong[0]!r} is no key; expected {DIGITS} digits per line")
        return frozenset(str(key) for key in keys.values())

    def _excluded(self, key: str, prompt: str) -> bool:
        if callable(self.exclude):
            return bool(self.exclude(key, prompt))
        return self.exclude is not None and key in self._unwanted

    @property
    def _exclude_identity(self) -> str | None:
        if callable(self.exclude):
            function = getattr(self.exclude, "func", self.exclude)
            return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        return (
            None
            if self.exclude is None
            else hashlib.sha256("\n".join(sorted(self._unwanted)).encode()).hexdigest()[:16]
        )


def function_of(name: str) -> Exclude:
    """The function of ``module:function``.

    Raises:
        ValueError: there is none of that name.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"data.exclude={name}: {error}; expected module:function of a module that Python finds, or a file of keys"
        ) from error


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError:
        return set()
