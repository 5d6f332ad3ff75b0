"""Pictures of a benchmark: every method's samples of the same poses side by side, for all images and by scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from posegen.errors import UserError
from posegen.runner.images import picture, read_png, under


def source_file(cells: Iterable[Path], index: int) -> Path | None:
    """The picture that the appearance of a sample was taken from, of the first cell that has it; None without any."""
    return next((file for cell in cells if (file := picture(cell / "sources", index)).is_file()), None)


def fitted_to(image: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """A picture as high and wide as a panel, made smaller or larger as a whole and filled up in black."""
    height, width = panel.shape[:2]
    scale = min(height / image.shape[0], width / image.shape[1])
    by = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=by)[:height, :width]
    top, left = (height - large.shape[0]) // 2, (width - large.shape[1]) // 2
    filled = np.zeros_like(panel)
    filled[top : top + large.shape[0], left : left + large.shape[1]] = large
    return filled


def picture_table(cells: Mapping[str, Path], rows: int = 5) -> np.ndarray | None:
    """A row per pose: the target, the source where there is one, then every method's sample beside its re-detected
    pose; None where no cell has such pictures. ``cells`` is method -> folder of its cell."""
    cells, lines = cells_with_pictures(cells), []
    for i in range(rows):
        if panels := judged_panels(cells, i):
            first = next(iter(panels.values()))
            empty = np.zeros_like(np.concatenate(first[1:], axis=1))
            made = [np.concatenate(panels[name][1:], axis=1) if name in panels else empty for name in cells]
            lines.append(np.concatenate([*given_panels(cells, i, first[0]), *made], axis=1))
    names = ["pose", "source"] if source_file(cells.values(), 0) else ["pose"]
    return under([*names, *cells], [1] * len(names) + [2] * len(cells), lines)


def given_panels(cells: Mapping[str, Path], index: int, pose: np.ndarray) -> list[np.ndarray]:
    """What the methods are given: the pose, and the source where the data has some."""
    if not source_file(cells.values(), 0):
        return [pose]
    source = source_file(cells.values(), index)
    return [pose, fitted_to(read_png(source), pose) if source else np.zeros_like(pose)]


def scenario_pictures(
    labels: Sequence[str], cells: Mapping[str, Path], real: Path | None, rows: int = 5
) -> dict[str, np.ndarray]:
    """For every scenario of which the cells (method -> folder) have judged pictures a grid of at most ``rows``
    lines: target pose, every method's sample, and the real picture if any. ``labels``: scenarios of the images."""
    columns = cells_with_pictures({**cells, **({"real": real} if real else {})})
    lines: dict[str, list[np.ndarray]] = {}
    for i, label in enumerate(labels):
        panels = judged_panels(columns, i) if len(lines.get(label, ())) < rows else {}
        if panels.keys() & cells.keys():
            first = next(iter(panels.values()))
            black = np.zeros_like(first[0])
            samples = [panels[name][1] if name in panels else black for name in columns]
            line = np.concatenate([*given_panels(columns, i, first[0]), *samples], axis=1)
            lines.setdefault(label, []).append(line)
    names = ["pose", *(["source"] if source_file(columns.values(), 0) else []), *columns]
    grids = {label: under(names, [1] * len(names), drawn) for label, drawn in lines.items()}
    return {label: grid for label, grid in grids.items() if grid is not None}


def cells_with_pictures(cells: Mapping[str, Path]) -> dict[str, Path]:
    return {name: cell for name, cell in cells.items() if (cell / "judged").is_dir()}


def judged_panels(cells: Mapping[str, Path], index: int) -> dict[str, list[np.ndarray]]:
    """Method -> target, sample, and sample with the re-detected pose, for the cells that have them of an image."""
    files = {name: picture(cell / "judged", index) for name, cell in cells.items()}
    images = {name: read_png(file) for name, file in files.items() if file.is_file()}
    first = next(iter(images), "")
    for name, image in images.items():
        if image.shape[1] % 3 or image.shape != images[first].shape:
            sizes = " and ".join(f"{files[n]} has {images[n].shape[1]} x {images[n].shape[0]}" for n in {first, name})
            raise UserError(f"{sizes} pixels; delete what is wrong and run the command of this cell again")
    return {name: np.split(image, 3, axis=1) for name, image in images.items()}
