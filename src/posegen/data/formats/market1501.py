"""Market-1501 (Zheng et al., ICCV 2015): people who pass six cameras, 128 x 64 pixels, with pairs and joints of PATN.

    <root>/.../{train,test} or bounding_box_{train,test}/<person>_c<camera>s<sequence>_<frame>_<box>.jpg
    <root>/.../market-pairs-{train,test}.csv          from,to
    <root>/.../market-annotation-{train,test}.csv     18 joints of each, y before x

Person ``0000`` is a distractor and ``-1`` a wrong box; neither is listed. People can be recognised: the
images are for research and must not be passed on. The csv files are in the folder that PATN links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from posegen.data.formats import pair_files
from posegen.data.formats.pair_files import Pair
from posegen.data.formats.pairs import PairSource
from posegen.data.on_disk.source import FileSpan, ReportDefect, StoredImage, existing_root
from posegen.io.hashes import joint_hash, text_hash

IMAGE_NAME = re.compile(r"(?:.*/)?((?:-1|\d{4})_c\d+s\d+_\d{6}_\d{2})(?:\.jpg)*(?:\.(?:jpg|png|jpeg))?", re.IGNORECASE)
MARKET_SIZE = (128, 64)
MARKET_FIX = "put the market-*.csv files that PATN links beside the pictures"


def market_name(text: str) -> str | None:
    """The name of an image without folder and suffix; None where the text is no such name."""
    match = IMAGE_NAME.fullmatch(text.strip().replace("\\", "/"))
    return match.group(1) if match else None


class Market1501(PairSource):
    """Market-1501. ``root`` is a folder with all of the above, in itself or in folders not far below."""

    name, grouped = "market1501", "persons"
    released_pairs: ClassVar = {"train": 263632, "test": 12000}
    image_name = staticmethod(market_name)

    def __init__(self, root: str | Path) -> None:
        self.root = existing_root(root, "give that of Market-1501")

    def folder(self, split: str) -> Path:
        """The folder of a split's images. Raises FileNotFoundError: there is none."""
        names = (f"bounding_box_{split}", split, f"{split}_12864")
        for place in pair_files.searched_folders(self.root):
            if place.name in names and any(market_name(file.name) for file in place.iterdir()):
                return place
        wanted = f"{' or '.join(names)} with pictures such as 0002_c1s1_000451_03.jpg in it"
        raise FileNotFoundError(f"data.root={self.root}: there is no folder {wanted}")

    def table(self, kind: str, split: str) -> Path:
        return pair_files.require_file(self.root, [f"market-{kind}-{split}.csv"], MARKET_FIX)

    def files(self, split: str) -> list[Path]:
        every = (f for f in self.folder(split).iterdir() if f.suffix.lower() in pair_files.PERSON_IMAGE_SUFFIXES)
        named = [file for file in every if market_name(file.name)]
        return sorted(file for file in named if self.group(file.name) not in ("-1", "0000"))

    def identity(self, split: str) -> dict[str, Any]:
        names = "\n".join(file.name for file in self.files(split))
        folder = self.folder(split).relative_to(self.root).as_posix()
        joints = joint_hash([self.table("annotation", split)])
        return {"name": self.name, "folder": folder, "files": text_hash(names), "joints": joints}

    def expected(self, split: str) -> Mapping[str, Any]:
        known = {"shape": MARKET_SIZE, "otherwise": "joints are on pictures of 128 x 64"}
        return {**known, "entries": 12936} if split == "train" else known

    def entries(self, split: str, report: ReportDefect) -> Iterator[StoredImage]:
        joints = pair_files.joints_in(self.table("annotation", split), market_name, report)
        for file in self.files(split):
            name = str(market_name(file.name))
            place = FileSpan(file.relative_to(self.root).as_posix())
            people = pair_files.openpose_to_coco(joints.get(name))
            yield StoredImage(f"{self.name}/{name}", "", place, None, people, frame=MARKET_SIZE)

    def group(self, name: str) -> str:
        return name.partition("_")[0]

    def pair_file(self, split: str) -> Path:
        return self.table("pairs", split)

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        suspicions = super().pair_suspicions(split, pairs)
        if split != "test":
            return suspicions
        try:
            names = {split: [file.name for file in self.files(split)] for split in ("train", "test")}
        except FileNotFoundError:
            return suspicions
        both, of = pair_files.overlap_with_training(names, self.group)
        found = f"{both} of {of} persons of the test pictures are in the training pictures, too"
        return [*suspicions, found] if both else suspicions
