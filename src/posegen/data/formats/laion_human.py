"""LAION-Human (HumanSD, Ju et al., ICCV 2023): about a million web pictures with detected poses, as files or in tars.

    <root>/mapping_file_training.json             key -> picture, prompt and file of poses
    <root>/pose/00033/000338717.npz               HumanSD's poses, unpacked
    <root>/images/00033/000338717.jpg             storage: files
    <root>/images/00033.tar, 00033.parquet        storage: tar, as img2dataset wrote them: pictures with their prompts,
                                                  and the table of the requested addresses

The first five of a key's nine digits are the shard. The authors hand out the index and the poses after a form; users
fetch the pictures, and many addresses are dead, so a part is always missing. The pictures belong to their sites, and
nobody has looked at all of them: see ``exclude``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, NamedTuple, get_args

from annotated_types import Interval
from tqdm import tqdm

from posegen.data.condition import Defect
from posegen.data.formats.human_art import stored_people
from posegen.data.on_disk.images import IMAGE_SUFFIXES
from posegen.data.on_disk.source import FileSpan, ReportDefect, Source, StoredImage, json_mapping, require_option
from posegen.data.on_disk.tar_members import TarMembers
from posegen.io.hashes import hash_fraction, joint_hash, text_hash

MAPPING_NAMES = ("mapping_file_training.json", "mapping_training.json", "mapping_train.json", "train.json")
TRIED_POSES = 20  # pose files that are looked for before a million are read
DEAD_LINK = "missing (dead link, or not fetched)"
Exclude = Callable[[str, str], bool]  # whether a picture is left out, by its key and its prompt
Storage = Literal["files", "tar"]
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

    strip: str | None = None  # their start that the disk lacks; None keeps them from ``images`` or ``pose`` on
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
    with suppress(ValueError, AttributeError):  # undecodable, or of another form
        if f"{stem}.txt" in members:
            return members.read(f"{stem}.txt").decode("utf-8").strip()
        if f"{stem}.json" in members:
            caption = json.loads(members.read(f"{stem}.json")).get("caption")
            return None if caption is None else str(caption)
    return None


class LaionHuman(Source):
    """LAION-Human has one list; ``validation`` and ``test`` are the pictures whose key's SHA-1 ``holdout`` divides.
    Raises ValueError: an option is invalid, or the root has no pictures.

    ``mapping`` is its name, relative to the root, or one per split, which are then taken whole; None finds it under its
    usual names. With tars it may be missing: the prompts then come from the tars. ``exclude`` names pictures to leave
    out for their content: a file with a key per line, relative to the root, or a function, also ``module:function``.
    """

    name = "laion_human"

    def __init__(
        self,
        root: str | Path,  # holds ``images``, ``pose`` and the mapping, usually called ``Aesthetics_Human``
        storage: Storage = "files",  # unpacked pictures; ``tar``: read inside the original, uncompressed tars
        mapping: str | Mapping[str, str] | None = None,
        strip_prefix: str | None = None,  # see `PathRule`
        add_prefix: str = "",
        shards: str | int | Sequence[int] | None = None,  # ``"0-79"``, ``"0-3,7"``, a number or a list; None for all
        holdout: Annotated[int, Interval(ge=2, le=10_000_000)] = 50,  # one picture in so many is validation
        exclude: str | Exclude | None = None,
        cache: str | Path | None = None,  # folder for the indices of tars; None keeps them beside the tars
    ) -> None:
        self.root, self.storage, self.mapping = Path(root).expanduser(), storage, mapping
        self.paths, self.holdout = PathRule(strip_prefix, add_prefix), holdout
        self.shards = chosen_shards(shards)
        self.exclude = named_function(exclude) if isinstance(exclude, str) and ":" in exclude else exclude
        self.cache = None if cache is None else Path(cache).expanduser() / "tars"
        self.images = self.root / add_prefix / IMAGES
        require_option("storage", storage, get_args(Storage))
        if holdout < 2:
            raise ValueError(f"data.holdout={holdout}: one picture in so many is validation; expected at least 2")
        if not self.images.is_dir():
            inner = next((path.parent for path in sorted(self.root.glob(f"*/{IMAGES}"))), None)
            usual = "give the folder of LAION-Human, usually called Aesthetics_Human"
            fix = f"did you mean {inner}?" if inner else usual
            raise ValueError(f"data.root={root}: there is no folder {add_prefix}{IMAGES} in it; {fix}")

    def identity(self, split: str) -> dict[str, Any]:
        parts: list[Path | str | None] = [self._mapping(split)]
        if self.storage == "tar":
            parts.append(json.dumps([(file.name, file.stat().st_size) for file in sorted(self.images.glob("*.tar"))]))
        shards, prefixes = sorted(self.shards) if self.shards else None, [self.paths.strip, self.paths.add]
        validation = None if isinstance(self.mapping, Mapping) else f"sha1(key) mod {self.holdout} == 0"
        excluded = None if self.exclude is None else text_hash("\n".join(sorted(self._excluded_keys)))
        if callable(self.exclude):
            function = getattr(self.exclude, "func", self.exclude)
            excluded = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        about = {"name": self.name, "storage": self.storage, "shards": shards, "prefixes": prefixes}
        return {**about, "validation": validation, "exclude": excluded, "lists": joint_hash(parts)}

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        """In the order of the mapping; with tars, shard by shard. Raises ValueError: a list or its paths are wrong."""
        if split not in ("train", "validation", "test"):
            raise FileNotFoundError(f"{self.name} has no split {split}; it has train, validation, test")
        places = self._in_tars(split, report) if self.storage == "tar" else self._in_files(split, report)
        for row, place, prompt in places:
            left_out = self.exclude(row.key, prompt) if callable(self.exclude) else row.key in self._excluded_keys
            if left_out:
                report(Defect(f"{place.file}: {row.key}" if place.length else place.file, "left out by data.exclude"))
                continue
            poses = row.poses or f"{self.paths.add}{POSES}/{row.shard:05d}/{row.key}.npz"
            file = self.root / poses
            try:
                keypoints, areas = stored_people(file)
            except ValueError as error:
                report(Defect(poses, str(error).removeprefix(f"{file} ") if file.is_file() else "missing"))
                continue
            attributes = {"shard": row.shard} | ({"url": row.url} if row.url else {})
            yield StoredImage(f"{self.name}/{row.key}", prompt, place, None, keypoints, areas, attributes)

    def _mapping(self, split: str) -> Path | None:
        """The list of a split; None where the tars serve without one."""
        names: Iterable[str] = MAPPING_NAMES
        if isinstance(self.mapping, Mapping) and split not in self.mapping:
            raise FileNotFoundError(f"data.mapping has no list for {split}; it has {', '.join(self.mapping)}")
        if self.mapping is not None:
            names = (self.mapping[split] if isinstance(self.mapping, Mapping) else self.mapping,)
        found = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if found is None and (self.mapping is not None or self.storage == "files"):
            other = "" if self.storage == "tar" else "; data.storage=tar can do without, where the pictures are in tars"
            whose = "which LAION-Human's authors hand out with the poses"
            fix = f"put it there, or name it with data.mapping=FILE{other}"
            raise FileNotFoundError(f"data.root={self.root} has no {' or '.join(names)}, {whose}; {fix}")
        return found

    def _rows(self, file: Path, split: str, report: ReportDefect) -> Iterator[LaionRow]:
        for name, value in json_mapping(file, "{key: {img_path, prompt, pose_path}}").items():
            key = laion_key(name)
            if key is None:
                problem = f"no key of LAION-Human; expected {KEY_DIGITS} digits, perhaps after those of the shard"
                report(Defect(f"{file.name}: {name}", problem))
                continue
            try:
                picture, poses = (self.paths.below_root(str(value[part])) for part in ("img_path", "pose_path"))
                row = LaionRow(key, str(value["prompt"]), picture, poses)
            except (KeyError, TypeError):
                report(Defect(f"{file.name}: {name}", "lacks img_path, pose_path or prompt"))
                continue
            if self._wanted(row, split):
                yield row

    def _wanted(self, row: LaionRow, split: str) -> bool:
        if self.shards is not None and row.shard not in self.shards:
            return False
        return isinstance(self.mapping, Mapping) or held_out(row.key, self.holdout) == (split != "train")

    def _in_files(self, split: str, report: ReportDefect) -> Iterator[tuple[LaionRow, FileSpan, str]]:
        file = self._mapping(split)
        rows = list(self._rows(file, split, report)) if file else []
        # Of pictures some may be missing; pose files should all be there.
        some = sorted(rows, key=lambda row: hash_fraction(row.key))[:TRIED_POSES]
        if some and not any((self.root / str(row.poses)).is_file() for row in some):
            raise ValueError(
                f"data.root={self.root}: of {len(some)} random entries none has its file of poses, such as "
                f"{self.root / str(some[0].poses)}; unpack the zips of poses there, choose the shards that you have "
                "with data.shards=0-79, or adapt the paths with data.strip_prefix and data.add_prefix"
            )
        there: dict[str, set[str]] = {}
        for row in rows:
            assert row.picture is not None and row.prompt is not None
            folder, _, name = row.picture.rpartition("/")
            if folder not in there:
                there[folder] = {file.name for file in (self.root / folder).glob("*")}
            if name in there[folder]:
                yield row, FileSpan(row.picture), row.prompt
            else:
                report(Defect(row.picture, DEAD_LINK))

    def _in_tars(self, split: str, report: ReportDefect) -> Iterator[tuple[LaionRow, FileSpan, str]]:
        mapping, listed = self._mapping(split), dict[int, list[LaionRow]]()
        for row in self._rows(mapping, split, report) if mapping else ():
            listed.setdefault(row.shard, []).append(row)
        tars = self._tars(report)
        for shard in sorted(listed.keys() - tars.keys()):
            problem = f"missing; {len(listed[shard])} pictures of {split} are in it"
            report(Defect(f"{self.paths.add}{IMAGES}/{shard:05d}.tar", problem))
        bar = tqdm(tars.items(), desc=f"tars of {split}", unit="tar", dynamic_ncols=True, disable=len(tars) < 3)
        for shard, file in bar:
            opened = self._open_tar(file, report)
            if opened is None:
                continue
            (members, fetched), where = opened, self._relative(file)
            names = [name for name in members if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            pictures = {key: name for name in names if (key := laion_key(Path(name).stem)) is not None}
            wanted: Iterable[LaionRow] = listed.get(shard, ())
            if mapping is None:
                every = fetched.values() or map(LaionRow, pictures)
                wanted = (row for row in every if self._wanted(row, split))
            for row in wanted:
                picture, prompt = pictures.get(row.key), row.prompt
                if picture is not None and prompt is None:
                    prompt = prompt_beside(members, picture)
                if picture is None or prompt is None:
                    problem = "no prompt: neither a mapping nor a .txt or .json beside it in the tar"
                    report(Defect(f"{where}: {row.key}", problem if picture else DEAD_LINK))
                else:
                    known = row._replace(url=fetched[row.key].url) if row.key in fetched else row
                    yield known, FileSpan(where, *members[picture]), prompt

    def _open_tar(self, file: Path, report: ReportDefect) -> tuple[TarMembers, dict[str, LaionRow]] | None:
        """The members of a tar, and the rows of its table by key; None where the tar cannot be read."""
        table = file.with_suffix(".parquet")
        try:
            members = TarMembers.of(file, self.cache)
        except ValueError as error:
            report(Defect(self._relative(file), str(error).removeprefix(f"{file} ")))
            return None
        if members.problem:
            report(Defect(self._relative(file), members.problem))
        try:
            return members, {row.key: row for row in fetched_rows(table)}
        except ValueError as error:
            report(Defect(self._relative(table), str(error).removeprefix(f"{table} "), fatal=False))
            return members, {}

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _tars(self, report: ReportDefect) -> dict[int, Path]:
        """The tars of the chosen shards that are there, by shard."""
        name = "[0-9]" * 5 + ".tar"
        found = {int(file.name[:5]): file for file in sorted(self.images.glob(name))}
        packed = [file for file in sorted(self.images.glob(f"{name}.*")) if not file.name.endswith(".index.npz")]
        for file in packed:
            if int(file.name[:5]) not in found:
                report(Defect(self._relative(file), "compressed; uncompress it once to a plain .tar"))
        if not found and not packed:
            fix = "with unpacked pictures choose data.storage=files"
            raise FileNotFoundError(f"{self.images} has no tars such as 00000.tar; {fix}")
        return {shard: file for shard, file in found.items() if self.shards is None or shard in self.shards}

    @cached_property
    def _excluded_keys(self) -> frozenset[str]:
        if self.exclude is None or callable(self.exclude):
            return frozenset()
        file = self.root / str(self.exclude)
        if not file.is_file():
            expected = "expected a file with a key per line, or null"
            raise ValueError(f"data.exclude={self.exclude}: there is no {file}; {expected}")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        keys = {line: laion_key(line) for line in lines if line and not line.startswith("#")}
        if wrong := [line for line, key in keys.items() if key is None]:
            raise ValueError(f"{file}: {wrong[0]!r} is no key; expected {KEY_DIGITS} digits per line")
        return frozenset(str(key) for key in keys.values())


def named_function(name: str) -> Exclude:
    """The function of ``module:function``. Raises ValueError: there is none of that name."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        expected = "expected module:function of a module that Python finds, or a file of keys"
        raise ValueError(f"data.exclude={name}: {error}; {expected}") from error
