"""Pictures that people look at: target, sample and what the judge sees in it, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from posegen.data.base import PoseData, to_uint8
from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.metrics.base import Poses
from posegen.poses.drawing import overlay

#: Pictures of a cell that the results page shows.
SHOWN = 16
#: Least score of a keypoint that is drawn.
SCORE = 0.1
#: Rows of the overview picture.
ROWS = 5
#: Pictures of each scenario that are kept to look at.
PER_SCENARIO = 5


def triple(image: np.ndarray, target: np.ndarray, found: Poses, zoom: int = 3) -> np.ndarray:
    """Target pose, sample, and sample with the re-detected pose, side by side, enlarged."""
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    return np.concatenate(
        [
            overlay(np.zeros_like(large), enlarged(target, zoom)),
            large,
            overlay(large, enlarged(visible(found.keypoints), zoom)),
        ],
        axis=1,
    )


def pictured(data: PoseData) -> set[int]:
    """The images that people look at: the first ones, and the first of each scenario."""
    chosen, counts = set(range(min(SHOWN, len(data)))), Counter[Any]()
    for i in range(len(data)):
        scenario = data.seen(i, image=False).attributes.get("scenario")
        counts[scenario] += 1
        if scenario is not None and counts[scenario] <= PER_SCENARIO:
            chosen.add(i)
    return chosen


def keep_sources(cell: Path, data: PoseData, indices: Iterable[int]) -> None:
    """Writes ``cell/sources/<index>.png``: what the appearance of these samples is taken from, several pictures side by
    side."""
    for i in indices:
        write_png(
            picture(cell / "sources", i),
            np.concatenate([to_uint8(sample.tensor[None])[0] for sample in data.sources_of(i)], axis=1),
        )


def sources(cells: Iterable[Path], index: int) -> np.ndarray | None:
    """What the appearance of a sample was taken from, as the first of the cells that has it knows; None where no cell
    does."""
    file = next((file for cell in cells if (file := picture(cell / "sources", index)).is_file()), None)
    return None if file is None else read_png(file)


def like(image: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """A picture as high and wide as a panel, made smaller or larger as a whole and filled up in black."""
    height, width = panel.shape[:2]
    scale = min(height / image.shape[0], width / image.shape[1])
    large = cv2.resize(
        image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    )[:height, :width]
    top, left = (height - large.shape[0]) // 2, (width - large.shape[1]) // 2
    filled = np.zeros_like(panel)
    filled[top : top + large.shape[0], left : left + large.shape[1]] = large
    return filled


def visible(detected: np.ndarray) -> np.ndarray:
    """Detections ``[N, 17, 3]`` with their scores as visibility."""
    marked = detected.copy()
    marked[..., 2] = np.where(detected[..., 2] >= SCORE, 2, 0)
    return marked


def enlarged(keypoints: np.ndarray, zoom: int) -> np.ndarray:
    """Keypoints of a canvas whose every pixel became ``zoom`` by ``zoom`` pixels."""
    larger = keypoints.copy()
    larger[..., :2] = (larger[..., :2] + 0.5) * zoom - 0.5
    return larger


def overview(cells: Mapping[str, Path], rows: int = ROWS) -> np.ndarray | None:
    """A row per pose: the target, the source where there is one, then every method's sample beside its re-detected
    pose; None where no cell has such pictures.

    Args:
        cells: method -> folder of its cell.
    """
    cells, lines = having_pictures(cells), []
    for i in range(rows):
        panels = judged_panels(cells, i)
        if panels:
            first = next(iter(panels.values()))
            empty = np.zeros_like(np.concatenate(first[1:], axis=1))
            made = [np.concatenate(panels[name][1:], axis=1) if name in panels else empty for name in cells]
            lines.append(np.concatenate([*given(cells, i, first[0]), *made], axis=1))
    names = ["pose", "source"] if sources(cells.values(), 0) is not None else ["pose"]
    return under([*names, *cells], [1] * len(names) + [2] * len(cells), lines)


def given(cells: Mapping[str, Path], index: int, pose: np.ndarray) -> list[np.ndarray]:
    """The panels of what the methods are given: the pose, and the source where the data has some."""
    if sources(cells.values(), 0) is None:
        return [pose]
    source = sources(cells.values(), index)
    return [pose, np.zeros_like(pose) if source is None else like(source, pose)]


def by_scenario(
    labels: Sequence[str], cells: Mapping[str, Path], real: Path | None, rows: int = ROWS
) -> dict[str, np.ndarray]:
    """For every scenario of which the cells have judged pictures a grid: target pose, every method's sample, and the
    real picture where there is such a row.

    Args:
        labels: the scenario of every image.
        cells: method -> folder of its cell.
        real: the cell of the real images.
        rows: most pictures of a scenario.
    """
    columns = having_pictures({**cells, **({"real": real} if real else {})})
    lines: dict[str, list[np.ndarray]] = {}
    for i, label in enumerate(labels):
        panels = judged_panels(columns, i) if len(lines.get(label, ())) < rows else {}
        if panels.keys() & cells.keys():
            first = next(iter(panels.values()))
            black = np.zeros_like(first[0])
            line = [*given(columns, i, first[0]), *(panels[name][1] if name in panels else black for name in columns)]
            lines.setdefault(label, []).append(np.concatenate(line, axis=1))
    names = [*(["pose", "source"] if sources(columns.values(), 0) is not None else ["pose"]), *columns]
    grids = {label: under(names, [1] * len(names), drawn) for label, drawn in lines.items()}
    return {label: grid for label, grid in grids.items() if grid is not None}


def having_pictures(cells: Mapping[str, Path]) -> dict[str, Path]:
    return {name: cell for name, cell in cells.items() if (cell / "judged").is_dir()}


def judged_panels(cells: Mapping[str, Path], index: int) -> dict[str, list[np.ndarray]]:
    """Method -> target, sample, and sample with the re-detected pose, for the cells that have them of an image."""
    files = {name: picture(cell / "judged", index) for name, cell in cells.items()}
    return {name: np.split(read_png(file), 3, axis=1) for name, file in files.items() if file.is_file()}


def under(
    names: Sequence[str], widths: Sequence[int], lines: Sequence[np.ndarray], height: int = 26
) -> np.ndarray | None:
    """The lines below a strip with the names of their columns, which are ``widths`` panels wide; None without lines."""
    if not lines:
        return None
    side = lines[0].shape[1] // sum(widths)
    strip = np.full((height, lines[0].shape[1], 3), 255, np.uint8)
    for name, left in zip(names, np.cumsum([0, *widths]), strict=False):
        place = (int(left) * side + 6, height - 8)
        cv2.putText(
            strip, name.removeprefix("reference/"), place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA
        )
    return np.concatenate([strip, *lines])


def picture(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def write_png(path: Path, image: np.ndarray) -> None:
    """``[H, W, 3] uint8`` RGB to a png file."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_png(path: Path) -> np.ndarray:
    """The RGB image ``[H, W, 3] uint8`` of a picture file.

    Raises:
        UserError: the file is missing or damaged; names it and the fix.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise UserError(f"{path} is not a readable picture; delete it and run the command again to make it anew")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
