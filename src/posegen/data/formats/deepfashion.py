"""DeepFashion's In-shop Clothes Retrieval (Liu et al., CVPR 2016) with the lists, pairs and joints that everyone who paints people in new poses shares.

    <root>/.../<MEN or WOMEN>/<category>/id_<8 digits>/<2 digits>_<view>.jpg     the pictures, usually below img or img_highres; or flat names in one folder
    <root>/.../{train,test}.lst                                                  a flat name per line
    <root>/.../fasion-resize-pairs-{train,test}.csv                              pairs as PATN, GFLA, DPTN and CFLD have them (the files spell it "fasion")
    <root>/.../fasion-resize-annotation-{train,test}.csv                         joints of the same, y before x, on pictures of 256 x 176
    <root>/.../{train,test}_pairs.txt                                            pairs as NTED, PIDM and DNAF have them, the target first
    <root>/.../pose/<as the pictures>.txt                                        joints of the same, x before y, on pictures of 256 x 256 with bars
    <root>/.../{train,test}_data.json                                            pairs as PCDMs has them

A flat name is the path without its slashes: ``fashionWOMENBlouses_Shirtsid0000069302_3back.jpg`` is ``WOMEN/Blouses_Shirts/id_00000693/02_3_back.jpg``.
The lists are divided by outfit, not by garment: 503 of the 930 garments of the test list are in the training list in another colour or outfit.
DeepFashion is handed out by its authors after a form, for research that is not commercial; lists and joints are in the folders that GFLA and NTED link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from posegen.data.formats.pair_files import (
    Pair,
    as_coco,
    folders,
    found,
    joints_in,
    joints_of,
    needed,
    pairs_in,
    sha256,
)
from posegen.data.formats.pairs import LISTS, PairSource, shared
from posegen.data.on_disk.source import Defect, Entry, Place, Report

Poses = Literal["csv", "txt"]
Kind = Literal["auto", "csv", "txt", "json"]
#: The released lists: pictures, how the SHA-256 of the file begins, and pairs.
RELEASED: Mapping[str, tuple[int, str, int]] = {
    "train": (48674, "50f41143dc61c730", 101966),
    "test": (4038, "336650cb7febac6e", 8570),
}
FLAT = re.compile(r"(?:.*/)?fashion(MEN|WOMEN)(.+)id(\d{8})(\d{2})_(\d)([a-z]+)")
TREE = re.compile(r"(?:.*/)?(MEN|WOMEN)/([^/]+)/id_(\d{8})/(\d{2})_(\d)_([a-z]+)")
SUFFIX = re.compile(r"\.(jpe?g|png|txt)$", re.IGNORECASE)
PICTURES = (".jpg", ".png", ".jpeg")
SIZE, PADDED, BAR = (
    (256, 176),
    (256, 256),
    40,
)  # height and width of the pictures that joints are on, and of those with bars, each so wide
HOW = "put the lists, pairs and joints that GFLA or NTED link (fashion_data) into the root"


class Name(NamedTuple):
    """The parts of a picture's name: gender, category, item, outfit of the item, number and word of the view."""

    gender: str
    category: str
    item: str
    outfit: str
    number: str
    view: str

    @classmethod
    def of(cls, text: str) -> Name | None:
        """The parts of a path or a flat name, with or without a suffix; None where it is neither."""
        text = SUFFIX.sub("", text.replace("\\", "/"))
        match = TREE.fullmatch(text) or FLAT.fullmatch(text)
        return cls(*match.groups()) if match else None

    @property
    def flat(self) -> str:
        return f"fashion{self.gender}{self.category}id{self.item}{self.outfit}_{self.number}{self.view}"

    @property
    def path(self) -> str:
        return f"{self.gender}/{self.category}/id_{self.item}/{self.outfit}_{self.number}_{self.view}"


def flat(text: str) -> str | None:
    """The flat name of whatever a list calls a picture; None where it is no name."""
    name = Name.of(text)
    return name and name.flat


def group(name: str) -> str:
    """The outfit that a picture shows."""
    return name.rpartition("_")[0]


def is_tree(folder: Path) -> bool:
    return any((folder / gender).is_dir() for gender in ("WOMEN", "MEN"))


class DeepFashion(PairSource):
    """DeepFashion In-shop.

    Args:
        root: a folder with all of the above, in itself or in folders not far below.
        poses: ``csv`` or ``txt``, whose joints are the same.
        pairs: ``csv``, ``txt`` or ``json``; ``auto`` takes the first of these that there is.
        images: folder of the pictures, relative to the root; None finds it, the one with "highres" in its name first.
        bars: the pictures are the small ones of 256 x 256 with white bars of 40 pixels (``img.zip``), which are cut off.

    Raises:
        ValueError: the root has no pictures, or an option is none of those that there are.
    """

    name, grouped = "deepfashion", "outfits"

    def __init__(
        self,
        root: str | Path,
        poses: Poses = "csv",
        pairs: Kind = "auto",
        images: str | None = None,
        bars: bool = False,
    ) -> None:
        self.root, self.poses, self.kind, self.barred = Path(root).expanduser(), poses, pairs, bars
        self.bars = BAR / PADDED[1] if bars else 0.0
        for key, value, known in (("poses", poses, get_args(Poses)), ("pairs", pairs, get_args(Kind))):
            if value not in known:
                raise ValueError(f"data.{key}={value}; expected one of {', '.join(known)}")
        self.images = self._images(images)

    def _images(self, given: str | None) -> Path:
        """The folder of the pictures: as a tree, or flat.

        Raises:
            ValueError: there is none.
        """
        places = (
            [self.root / given]
            if given
            else [self.root, *(place for place in folders(self.root) if "pose" not in place.name)]
        )
        trees = [place for place in places if is_tree(place)]
        if trees:
            return min(trees, key=lambda place: "highres" not in place.name)
        flats = [
            place
            for place in places
            if any(next(place.glob(f"{inner}fashion*MEN*{s}"), None) for inner in ("", "*/") for s in PICTURES)
        ]
        if flats:
            return flats[0]
        where = f"data.images={given}: {self.root / given}" if given else f"data.root={self.root}"
        raise ValueError(
            f"{where} has no folder MEN or WOMEN, nor pictures named fashionWOMEN...jpg; unpack img_highres.zip of DeepFashion In-shop there"
        )

    # Files.

    def list_of(self, split: str) -> Path:
        return needed(self.root, [f"{LISTS.get(split, split)}.lst"], HOW)

    def table(self, what: str, split: str) -> Path:
        """The csv file of the pairs or the joints; several programs call it differently."""
        return needed(self.root, _tables(what, split), HOW)

    @cached_property
    def texts(self) -> Path:
        """The folder with a text file of joints for each picture."""
        place = next((place for place in folders(self.root) if "pose" in place.name and is_tree(place)), None)
        if place is None:
            fix = "unpack NTED's pose.rar there, or choose data.poses=csv"
            raise FileNotFoundError(f"data.root={self.root}: there is no folder pose with MEN or WOMEN in it; {fix}")
        return place

    def pair_file(self, split: str) -> Path:
        names = {"csv": _tables("pairs", split), "txt": [f"{split}_pairs.txt"], "json": [f"{split}_data.json"]}
        return needed(
            self.root, [name for kind, all in names.items() if self.kind in ("auto", kind) for name in all], HOW
        )

    # As a source.

    def identity(self, split: str) -> dict[str, Any]:
        if self.poses == "csv":
            given = sha256(self.list_of(split), self.table("annotation", split))
        else:
            stamps = sorted((file.name, file.stat().st_mtime_ns) for file in self.texts.rglob("*.txt"))
            given = f"{sha256(self.list_of(split))} {len(stamps)} {max((time for _, time in stamps), default=0)}"
        images = self.images.relative_to(self.root).as_posix()
        return {"name": self.name, "poses": self.poses, "images": images, "bars": self.barred, "lists": given}

    def expected(self, split: str) -> Mapping[str, Any]:
        shape, fix = (
            (PADDED, "data.bars=false is for pictures without bars")
            if self.barred
            else (SIZE, "pictures with white bars need data.bars=true")
        )
        return {"entries": RELEASED[split][0], "shape": shape, "otherwise": fix}

    def suspicions(self, split: str) -> list[str]:
        file = self.list_of(split)
        own, released = sha256(file), RELEASED[split][1]
        return [] if own == released else [f"{file.name} has the SHA-256 {own}; the released one has {released}"]

    def names(self, split: str) -> list[str]:
        """The lines of a list."""
        return [
            line.strip() for line in self.list_of(split).read_text(encoding="utf-8-sig").splitlines() if line.strip()
        ]

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        tabled = joints_in(self.table("annotation", split), flat, report) if self.poses == "csv" else None
        for number, text in enumerate(self.names(split), 1):
            name = Name.of(text)
            if name is None:
                report(Defect(f"{self.list_of(split).name}: line {number}", f"{text!r} is no name of a picture"))
                continue
            try:
                points = self._text(name) if tabled is None else tabled.get(name.flat)
            except (OSError, ValueError) as error:
                report(
                    Defect(
                        self._pose(name).relative_to(self.root).as_posix(),
                        "missing" if isinstance(error, FileNotFoundError) else str(error),
                    )
                )
                continue
            yield self._entry(name, points)

    def _entry(self, name: Name, points: np.ndarray | None) -> Entry:
        """Joints are on pictures of 256 x 176, or of 256 x 256 with bars, whatever the size of the picture."""
        people = as_coco(np.full((18, 2), -1.0) if points is None else points)
        if self.barred != (self.poses == "txt"):
            people[..., 0] += np.where(people[..., 2] > 0, BAR if self.barred else -BAR, 0)
        where = Place(self._picture(name).relative_to(self.root).as_posix())
        about = {"scenario": name.view}
        return Entry(f"{self.name}/{name.flat}", "", where, None, people, None, about, PADDED if self.barred else SIZE)

    def _picture(self, name: Name) -> Path:
        """Where a picture is, or would be."""
        if self._flat:
            return self._flat.get(name.flat, self.images / f"{name.flat}.jpg")
        places = [self.images / f"{name.path}{suffix}" for suffix in PICTURES]
        return next((place for place in places if place.is_file()), places[0])

    @cached_property
    def _flat(self) -> dict[str, Path]:
        """Pictures by name where they lie in no tree."""
        if is_tree(self.images):
            return {}
        return {
            name: file
            for file in sorted(self.images.rglob("*"))
            if file.suffix.lower() in PICTURES and (name := flat(file.name))
        }

    def _pose(self, name: Name) -> Path:
        return self.texts / f"{name.path}.txt"

    def _text(self, name: Name) -> np.ndarray:
        return joints_of(self._pose(name))

    # As pairs.

    def group(self, name: str) -> str:
        return group(name)

    def pairs(self, split: str, report: Report) -> Iterator[Pair]:
        return pairs_in(self.pair_file(split), flat, report)

    def pair_facts(self, split: str) -> dict[str, Any]:
        file = self.pair_file(split)
        facts: dict[str, Any] = {"pair_file": file.name, "pair_file_sha256": sha256(file)}
        if split == "test" and found(self.root, ["train.lst"]):
            for what, key in (("outfits", group), ("garments", lambda name: group(name)[:-2])):
                both, own = shared(self._all, key)
                facts[f"{what}_also_in_train"] = f"{both} of {own}"
        return facts

    @cached_property
    def _all(self) -> dict[str, list[str]]:
        return {split: [name for text in self.names(split) if (name := flat(text))] for split in ("train", "test")}

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        released, suspicions = RELEASED[split][2], []
        if len(pairs) != released:
            suspicions.append(
                f"{self.pair_file(split).name} has {len(pairs):,} pairs; the released lists have {released:,}"
            )
        if split == "test" and found(self.root, ["train.lst"]) and (both := shared(self._all, group)[0]):
            suspicions.append(f"{both} outfits of the test list are in the training list, too")
        tables = [place for name in _tables("pairs", split) if (place := found(self.root, [name]))]
        if self.pair_file(split).suffix != ".csv" and tables:
            tabled = {(pair.target, *pair.sources) for pair in pairs_in(tables[0], flat, lambda _: None)}
            turned = {(source, target) for target, source in tabled}
            own = {(pair.target, *pair.sources) for pair in pairs}
            if own != tabled:
                why = (
                    "source and target are exchanged"
                    if own == turned
                    else f"{len(own & tabled):,} of {len(own | tabled):,} pairs are in both"
                )
                suspicions.append(f"{self.pair_file(split).name} has other pairs than {tables[0].name}: {why}")
        return suspicions


def _tables(what: str, split: str) -> list[str]:
    return [f"{spelt}-{middle}{what}-{split}.csv" for middle in ("resize-", "") for spelt in ("fasion", "fashion")]
