"""Pictures of a recorded study: all methods side by side, for the same poses, on one sheet."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.metrics.base import Records
from posegen.metrics.records import read_records
from posegen.poses.drawing import overlay
from posegen.report.rows import REFERENCE
from posegen.report.table import Table
from posegen.runner.images import enlarged, picture, read_png, visible

SHEET, POSES = "poses.webp", 40  # small pictures of this many fixed poses, as they were sampled
SHOWCASE, TELLING = "methods.jpg", 6  # large pictures of this many poses, with the poses that were found in them
SMALL, GAP = 128, 6  # longest side of a small picture, and the pixels between pictures
WIDTH, LARGE = 2 * 838, 232  # of the large picture, drawn at twice the width that a README shows, and of its panels
GROUND, INK = (32, 34, 39), "#333333"


def write_pictures(table: Table, target: Path, poses: Sequence[int]) -> list[Path]:
    """Writes `SHEET` of fixed poses and `SHOWCASE` of ``poses`` (empty: one of each of the first actions) where the
    cells have pictures; returns the files."""
    cells = {row: cell for row, cell in table.pictured.items() if (cell / "samples").is_dir()}
    if not cells:
        return []
    records = {row: read_records(cell) for row, cell in cells.items()}
    first = next(iter(records.values()))
    count = len(first["id"])
    if wrong := [i for i in poses if not 0 <= i < count]:
        raise UserError(f"showcase={wrong[0]}: expected numbers of test images, 0 to {count - 1}")
    fixed = [i * count // POSES for i in range(POSES)] if count > POSES else list(range(count))
    panels = {row: {i: read_png(picture(cell / "samples", i)) for i in {*fixed, *(poses or telling(first))}}
              for row, cell in cells.items()}  # fmt: skip
    height, width = next(iter(next(iter(panels.values())).values())).shape[:2]
    side = min(SMALL, max(height, width))
    found = {SHEET: sheet(panels, records, fixed, side, 12)}
    order = {row["method"]: row.get(table.accuracy, math.nan) for row in table.rows}
    shown = sorted((row for row in cells if not row.startswith(REFERENCE)), key=lambda row: -order[row])
    side = min(LARGE, (WIDTH - len(shown) * GAP) // (len(shown) + 1))
    large = {row: panels[row] for row in shown}
    if shown:
        found[SHOWCASE] = sheet(large, records, poses or telling(first), side, 26, skeletons=True, width=WIDTH)
    for name, image in found.items():
        content, kind = io.BytesIO(), {".jpg": "JPEG", ".webp": "WEBP"}[Path(name).suffix]
        image.save(content, kind, quality=90, **({"subsampling": 0} if kind == "JPEG" else {}))
        with replacing(target / name) as temporary:
            temporary.write_bytes(content.getvalue())
    return [target / name for name in found]


def telling(records: Records) -> list[int]:
    """The first image of each action, and then the first ones, `TELLING` in all."""
    actions = [str(action) for action in records.get("action", ())]
    first = [actions.index(action) for action in dict.fromkeys(actions)]
    return list(dict.fromkeys([*first, *range(len(records["id"]))]))[:TELLING]


def sheet(
    panels: Mapping[str, Mapping[int, np.ndarray]],
    records: Mapping[str, Records],
    indices: Sequence[int],
    side: int,
    letters: int,
    skeletons: bool = False,
    width: int = 0,
) -> Image.Image:
    """A line per pose: the target, where the records have it, and each row's picture ``[H, W, 3] uint8``.

    Args:
        panels: row -> image -> picture.
        side: longest side of a picture on the sheet, in pixels.
        letters: height of the names.
        skeletons: whether the found poses are drawn over the pictures.
        width: of the sheet; 0: as wide as its pictures.
    """
    targets = next((each["keypoints"] for each in records.values() if "keypoints" in each), None)
    names = [*(["pose"] if targets is not None else []), *panels]
    height, wide = panel(next(iter(next(iter(panels.values())).values())), side).shape[:2]
    font, fitting = ImageFont.load_default(letters), max(4, int(wide / (0.55 * letters)))
    titles = [textwrap.wrap(re.sub("[_=]", " ", name.removeprefix(REFERENCE)), fitting) for name in names]
    top = round(1.25 * letters * max(map(len, titles))) + GAP
    across = len(names) * (wide + GAP) - GAP
    canvas = Image.new("RGB", (width or across, top + len(indices) * (height + GAP) - GAP), "white")
    pen, left = ImageDraw.Draw(canvas), max(0, width - across) // 2
    for column, title in enumerate(titles):
        pen.multiline_text((left + column * (wide + GAP), 0), "\n".join(title), INK, font, spacing=1)
    for line, i in enumerate(indices):
        drawn = []
        for row, pictures in panels.items():
            if targets is not None and not drawn:
                drawn.append(panel(np.full_like(pictures[i], GROUND), side, targets[i]))
            found = records[row].get("detections") if skeletons else None
            drawn.append(panel(pictures[i], side, None if found is None else visible(found[i])))
        for column, image in enumerate(drawn):
            canvas.paste(Image.fromarray(image), (left + column * (wide + GAP), top + line * (height + GAP)))
    return canvas


def panel(image: np.ndarray, side: int, keypoints: np.ndarray | None = None) -> np.ndarray:
    """A picture whose longer side has ``side`` pixels, with thin skeletons ``[N, 17, 3]`` over it."""
    scale = side / max(image.shape[:2])
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    resized = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
    return resized if keypoints is None else overlay(resized, enlarged(keypoints, scale))
