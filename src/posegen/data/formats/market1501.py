"""Market-1501 (Zheng et al., ICCV 2015): people who pass by six cameras, 128 x 64 pixels, with the pairs and joints of PATN and GFLA.

    <root>/.../{train,test} or bounding_box_{train,test}/<person>_c<camera>s<sequence>_<frame>_<box>.jpg
    <root>/.../market-pairs-{train,test}.csv          from,to
    <root>/.../market-annotation-{train,test}.csv     18 joints of each, y before x

Person ``0000`` is no one in particular and ``-1`` is rubbish; neither is listed. The pictures show people who can be recognised: they are for research and not
to be passed on. The csv files are in the folder that PATN links.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.formats.pair_files import Pair, as_coco, folders, joints_in, needed, pairs_in, sha256
from posegen.data.formats.pairs import PairSource, shared
from posegen.data.on_disk.source import Entry, Place, Report

NAME = re.compile(r"(?:.*/)?((?:-1|\d{4})_c\d+s\d+_\d{6}_\d{2})(?:\.jpg)*(?:\.(?:jpg|png|jpeg))?", re.IGNORECASE)
NOBODY = ("-1", "0000")
SIZE = (128, 64)
#: The released data: pictures of the training folder, and pairs.
RELEASED: Mapping[str, tuple[int | None, int]] = {"train": (12936, 263632), "test": (None, 12000)}
PICTURES = (".jpg", ".png", ".jpeg")
HOW = "put the market-*.csv files that PATN links beside the pictures"


def named(text: str) -> str | None:
    """The name of a picture without folder and suffix; None where it is none, or of nobody."""
    match = NAME.fullmatch(text.strip().replace("\\", "/"))
    return match.group(1) if match else None


class Market1501(PairSource):
    """Market-1501.

    Args:
        root: a folder with all of the above, in itself or in folders not far below.

    Raises:
        ValueError: the root is no folder.
    """

    name, grouped = "market1501", "persons"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.root={root}: no such folder; give that of Market-1501")

    def folder(self, split: str) -> Path:
        """The folder of a split's pictures.

        Raises:
            FileNotFoundError: there is none.
        """
        names = (f"bounding_box_{split}", split, f"{split}_12864")
        for place in folders(self.root):
            if place.name in names and any(named(file.name) for file in place.iterdir()):
                return place
        raise FileNotFoundError(
            f"data.root={self.root}: there is no folder {' or '.join(names)} with pictures such as 0002_c1s1_000451_03.jpg in it"
        )

    def table(self, what: str, split: str) -> Path:
        return needed(self.root, [f"market-{what}-{split}.csv"], HOW)

    def files(self, split: str) -> list[Path]:
        """The pictures of people who are known."""
        every = [file for file in self.folder(split).iterdir() if file.suffix.lower() in PICTURES and named(file.name)]
        return sorted(file for file in every if self.group(file.name) not in NOBODY)

    def identity(self, split: str) -> dict[str, Any]:
        names = "\n".join(file.name for file in self.files(split))
        listed = {
            "folder": self.folder(split).relative_to(self.root).as_posix(),
            "files": hashlib.sha256(names.encode()).hexdigest()[:16],
        }
        return {"name": self.name, **listed, "joints": sha256(self.table("annotation", split))}

    def expected(self, split: str) -> Mapping[str, Any]:
        entries = RELEASED[split][0]
        known = {"shape": SIZE, "otherwise": "joints are on pictures of 128 x 64"}
        return {**known, "entries": entries} if entries else known

    def entries(self, split: str, report: Report) -> Iterator[Entry]:
        tabled = joints_in(self.table("annotation", split), named, report)
        nothing = np.full((18, 2), -1.0)
        for file in self.files(split):
            name = named(file.name)
            assert name is not None
            place = Place(file.relative_to(self.root).as_posix())
            yield Entry(f"{self.name}/{name}", "", place, None, as_coco(tabled.get(name, nothing)), frame=SIZE)

    # As pairs.

    def group(self, name: str) -> str:
        return name.partition("_")[0]

    def pairs(self, split: str, report: Report) -> Iterator[Pair]:
        return pairs_in(self.table("pairs", split), named, report)

    def pair_facts(self, split: str) -> dict[str, Any]:
        file = self.table("pairs", split)
        return {"pair_file": file.name, "pair_file_sha256": sha256(file)}

    def pair_suspicions(self, split: str, pairs: Sequence[Pair]) -> list[str]:
        released, suspicions = RELEASED[split][1], []
        if len(pairs) != released:
            suspicions.append(
                f"{self.table('pairs', split).name} has {len(pairs):,} pairs; the released list has {released:,}"
            )
        if split == "test":
            try:
                both, own = shared(
                    {split: [file.name for file in self.files(split)] for split in ("train", "test")}, self.group
                )
            except FileNotFoundError:
                return suspicions
            if both:
                suspicions.append(f"{both} of {own} persons of the test pictures are in the training pictures, too")
        return suspicions
