"""DeepFashion In-shop (Liu et al., CVPR 2016) with the lists, pairs and joints that pose transfer methods share.

    <root>/.../<MEN or WOMEN>/<category>/id_<8 digits>/<2 digits>_<view>.jpg   images, usually below img or img_highres,
                                                                               or flat names in one folder
    <root>/.../{train,test}.lst                           a flat name per line
    <root>/.../fasion-resize-pairs-{train,test}.csv       pairs of PATN, GFLA, DPTN and CFLD (spelt "fasion")
    <root>/.../fasion-resize-annotation-{train,test}.csv  their joints, y before x, on images of 256 x 176
    <root>/.../{train,test}_pairs.txt                     pairs of NTED, PIDM and DNAF, the target first
    <root>/.../pose/<as the images>.txt                   their joints, x before y, on images of 256 x 256 with bars
    <root>/.../{train,test}_data.json                     pairs of PCDMs

A flat name is the path without its slashes: ``fashionWOMENBlouses_Shirtsid0000069302_3back.jpg`` is
``WOMEN/Blouses_Shirts/id_00000693/02_3_back.jpg``. The lists are divided by outfit, not by garment: 503 of the 930
garments of the test list are in the training list in another colour or outfit. The authors hand out DeepFashion after a
form, for non-commercial research; lists and joints are in the folders that GFLA and NTED link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from posegen.data.condition import Defect
from posegen.data.formats import pair_files
from posegen.data.formats.pair_files import PERSON_IMAGE_SUFFIXES, Pair, find_file, require_file, searched_folders
from posegen.data.formats.pairs import PAIR_LISTS, PairSource
from posegen.data.on_disk.source import FileSpan, ReportDefect, StoredImage, require_option
from posegen.io.hashes import joint_hash

JointsFormat = Literal["csv", "txt"]
PairsFormat = Literal["auto", "csv", "txt", "json"]
RELEASED_LISTS = {"train": (48674, "50f41143dc61c730"), "test": (4038, "336650cb7febac6e")}  # images, SHA-256
FLAT_NAME = re.compile(r"(?:.*/)?fashion(MEN|WOMEN)(.+)id(\d{8})(\d{2})_(\d)([a-z]+)")
TREE_NAME = re.compile(r"(?:.*/)?(MEN|WOMEN)/([^/]+)/id_(\d{8})/(\d{2})_(\d)_([a-z]+)")
NAME_SUFFIX = re.compile(r"\.(jpe?g|png|txt)$", re.IGNORECASE)
JOINTS_SIZE, BARRED_SIZE, BAR_WIDTH = (256, 176), (256, 256), 40  # (height, width) of images, and of those with bars
FASHION_FIX = "put the lists, pairs and joints that GFLA or NTED link (fashion_data) into the root"


class FashionName(NamedTuple):
    """The parts of an image's name: gender, category, item, outfit of the item, number and word of the view."""

    gender: str
    category: str
    item: str
    outfit: str
    number: str
    view: str

    @classmethod
    def of(cls, text: str) -> FashionName | None:
        """The parts of a path or a flat name, with or without suffix; None where the text is neither."""
        text = NAME_SUFFIX.sub("", text.replace("\\", "/"))
        match = TREE_NAME.fullmatch(text) or FLAT_NAME.fullmatch(text)
        return cls(*match.groups()) if match else None

    @property
    def flat(self) -> str:
        return f"fashion{self.gender}{self.category}id{self.item}{self.outfit}_{self.number}{self.view}"

    @property
    def path(self) -> str:
        return f"{self.gender}/{self.category}/id_{self.item}/{self.outfit}_{self.number}_{self.view}"


def flat_name(text: str) -> str | None:
    """The flat name of an image in any spelling; None where the text is no name."""
    name = FashionName.of(text)
    return name and name.flat


def has_tree(folder: Path) -> bool:
    return any((folder / gender).is_dir() for gender in ("WOMEN", "MEN"))


class DeepFashion(PairSource):
    """DeepFashion In-shop. Raises ValueError: the root has no images, or an option is unknown."""

    name, grouped = "deepfashion", "outfits"
    released_pairs: ClassVar = {"train": 101966, "test": 8570}
    image_name = staticmethod(flat_name)

    def __init__(
        self,
        root: str | Path,  # a folder with all of the above, in itself or in folders not far below
        poses: JointsFormat = "csv",  # the joints of ``txt`` are the same
        pairs: PairsFormat = "auto",  # takes the first that is there
        images: str | None = None,  # their folder, relative to the root; None finds it, the first with "highres"
        bars: bool = False,  # images are the small ones of 256 x 256 (``img.zip``), whose white bars are cut off
    ) -> None:
        self.root, self.poses, self.pairs_format, self.barred = Path(root).expanduser(), poses, pairs, bars
        self.bars = BAR_WIDTH / BARRED_SIZE[1] if bars else 0.0
        require_option("poses", poses, get_args(JointsFormat))
        require_option("pairs", pairs, get_args(PairsFormat))
        self.images = self._find_images(images)

    def _find_images(self, given: str | None) -> Path:
        found = [self.root, *(place for place in searched_folders(self.root) if "pose" not in place.name)]
        places = [self.root / given] if given else found
        trees = [place for place in places if has_tree(place)]
        if trees:
            return min(trees, key=lambda place: "highres" not in place.name)
        patterns = [f"{inner}fashion*MEN*{suffix}" for inner in ("", "*/") for suffix in PERSON_IMAGE_SUFFIXES]
        for place in places:
            if any(next(place.glob(pattern), None) for pattern in patterns):
                return place
        where = f"data.images={given}: {self.root / given}" if given else f"data.root={self.root}"
        fix = "unpack img_highres.zip of DeepFashion In-shop there"
        raise ValueError(f"{where} has no folder MEN or WOMEN, nor pictures named fashionWOMEN...jpg; {fix}")

    def list_of(self, split: str) -> Path:
        return require_file(self.root, [f"{PAIR_LISTS.get(split, split)}.lst"], FASHION_FIX)

    def table(self, kind: str, split: str) -> Path:
        """The csv file of the ``pairs`` or the joints (``annotation``), under any of its names."""
        return require_file(self.root, _table_names(kind, split), FASHION_FIX)

    @cached_property
    def texts(self) -> Path:
        """The folder with a text file of joints per image."""
        for place in searched_folders(self.root):
            if "pose" in place.name and has_tree(place):
                return place
        fix = "unpack NTED's pose.rar there, or choose data.poses=csv"
        raise FileNotFoundError(f"data.root={self.root}: there is no folder pose with MEN or WOMEN in it; {fix}")

    def pair_file(self, split: str) -> Path:
        names = {"csv": _table_names("pairs", split), "txt": [f"{split}_pairs.txt"], "json": [f"{split}_data.json"]}
        wanted = [name for kind, all in names.items() if self.pairs_format in ("auto", kind) for name in all]
        return require_file(self.root, wanted, FASHION_FIX)

    def identity(self, split: str) -> dict[str, Any]:
        if self.poses == "csv":
            lists = joint_hash([self.list_of(split), self.table("annotation", split)])
        else:
            times = [file.stat().st_mtime_ns for file in self.texts.rglob("*.txt")]
            lists = f"{joint_hash([self.list_of(split)])} {len(times)} {max(times, default=0)}"
        images = self.images.relative_to(self.root).as_posix()
        return {"name": self.name, "poses": self.poses, "images": images, "bars": self.barred, "lists": lists}

    def expected(self, split: str) -> Mapping[str, Any]:
        shape, fix = JOINTS_SIZE, "pictures with white bars need data.bars=true"
        if self.barred:
            shape, fix = BARRED_SIZE, "data.bars=false is for pictures without bars"
        return {"entries": RELEASED_LISTS[split][0], "shape": shape, "otherwise": fix}

    def suspicions(self, split: str) -> list[str]:
        file = self.list_of(split)
        found, released = joint_hash([file]), RELEASED_LISTS[split][1]
        return [] if found == released else [f"{file.name} has the SHA-256 {found}; the released one has {released}"]

    def names(self, split: str) -> list[str]:
        lines = self.list_of(split).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        joints = None
        if self.poses == "csv":
            joints = pair_files.joints_in(self.table("annotation", split), flat_name, report)
        for number, text in enumerate(self.names(split), 1):
            name = FashionName.of(text)
            if name is None:
                report(Defect(f"{self.list_of(split).name}: line {number}", f"{text!r} is no name of a picture"))
                continue
            text = f"{name.path}.txt"
            try:
                points = pair_files.joints_of_text(self.texts / text) if joints is None else joints.get(name.flat)
            except (OSError, ValueError) as error:
                problem = "missing" if isinstance(error, FileNotFoundError) else str(error)
                report(Defect((self.texts / text).relative_to(self.root).as_posix(), problem))
                continue
            yield self._entry(name, points)

    def _entry(self, name: FashionName, points: np.ndarray | None) -> StoredImage:
        """Joints are on images of 256 x 176, or of 256 x 256 with bars, whatever the size of the image."""
        people = pair_files.openpose_to_coco(points)
        if self.barred != (self.poses == "txt"):
            people[..., 0] += np.where(people[..., 2] > 0, BAR_WIDTH if self.barred else -BAR_WIDTH, 0)
        if self._flat_files:
            file = self._flat_files.get(name.flat, self.images / f"{name.flat}.jpg")
        else:
            files = [self.images / f"{name.path}{suffix}" for suffix in PERSON_IMAGE_SUFFIXES]
            file = next((file for file in files if file.is_file()), files[0])  # a missing one is reported
        place = FileSpan(file.relative_to(self.root).as_posix())
        about, frame = {"scenario": name.view}, BARRED_SIZE if self.barred else JOINTS_SIZE
        return StoredImage(f"{self.name}/{name.flat}", "", place, None, people, None, about, frame)

    @cached_property
    def _flat_files(self) -> dict[str, Path]:
        """Images by flat name where they lie in no tree."""
        if has_tree(self.images):
            return {}
        files = [file for file in sorted(self.images.rglob("*")) if file.suffix.lower() in PERSON_IMAGE_SUFFIXES]
        return {name: file for file in files if (name := flat_name(file.name))}

    @staticmethod
    def group(name: str) -> str:
        return name.rpartition("_")[0]  # the outfit

    def pair_facts(self, split: str) -> dict[str, Any]:
        facts = super().pair_facts(split)
        if split == "test" and find_file(self.root, ["train.lst"]):
            for groups, key in (("outfits", self.group), ("garments", lambda name: self.group(name)[:-2])):
                both, all_test = pair_files.overlap_with_training(self._listed_names, key)
                facts[f"{groups}_also_in_train"] = f"{both} of {all_test}"
        return facts

    @cached_property
    def _listed_names(self) -> dict[str, list[str]]:
        return {split: [name for text in self.names(split) if (name := flat_name(text))] for split in ("train", "test")}

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        suspicions, file = super().pair_suspicions(split, pairs), self.pair_file(split)
        if split == "test" and find_file(self.root, ["train.lst"]):
            both, _ = pair_files.overlap_with_training(self._listed_names, self.group)
            suspicions += [f"{both} outfits of the test list are in the training list, too"] if both else []
        table = find_file(self.root, _table_names("pairs", split))
        if file.suffix != ".csv" and table:
            tabled = {(pair.target, *pair.sources) for pair in pair_files.pairs_in(table, flat_name, lambda _: None)}
            turned = {(source, target) for target, source in tabled}
            listed = {(pair.target, *pair.sources) for pair in pairs}
            if listed != tabled:
                shared = f"{len(listed & tabled):,} of {len(listed | tabled):,} pairs are in both"
                why = "source and target are exchanged" if listed == turned else shared
                suspicions.append(f"{file.name} has other pairs than {table.name}: {why}")
        return suspicions


def _table_names(kind: str, split: str) -> list[str]:
    return [f"{spelt}-{middle}{kind}-{split}.csv" for middle in ("resize-", "") for spelt in ("fasion", "fashion")]
