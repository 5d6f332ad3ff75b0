"""Pictures that people look at: target, sample and what the judge sees in it, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from posegen.metrics.base import Poses
from posegen.poses.drawing import overlay
from posegen.runner.errors import UserError
from posegen.runner.files import replacing

#: Pictures of a cell that the results page shows.
SHOWN = 16
#: Least score of a keypoint that is drawn.
SCORE = 0.1
#: Rows of the overview picture.
ROWS = 5


def triple(image: np.ndarray, target: np.ndarray, found: Poses, zoom: int = 3) -> np.ndarray:
    """Target pose, sample, and sample with the re-detected pose, side by side, enlarged."""
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    return np.concatenate([overlay(np.zeros_like(large), enlarged(target, zoom)), large, overlay(large, enlarged(visible(found.keypoints), zoom))], axis=1)


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
    """A row per pose: the target, then every method's sample beside its re-detected pose; None where no cell has such pictures.

    Args:
        cells: method -> folder of its cell.
    """
    lines = []
    for i in range(rows):
        panels = {name: panel for name, cell in cells.items() if (panel := _panel(picture(cell / "judged", i))) is not None}
        if panels:
            width = next(iter(panels.values())).shape[1] // 3
            lines.append(np.concatenate([next(iter(panels.values()))[:, :width], *(panel[:, width:] for panel in panels.values())], axis=1))
    if not lines:
        return None
    side = lines[0].shape[0]
    return np.concatenate([_heading(["pose", *cells], side, lines[0].shape[1]), *lines])


def _panel(path: Path) -> np.ndarray | None:
    return read_png(path) if path.is_file() else None


def _heading(names: list[str], side: int, width: int, height: int = 26) -> np.ndarray:
    """A strip with the names of the columns: the first is one panel wide, the others two."""
    strip = np.full((height, width, 3), 255, np.uint8)
    for i, name in enumerate(names):
        x = 0 if i == 0 else side + 2 * side * (i - 1)
        cv2.putText(strip, name.removeprefix("reference/"), (x + 6, height - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


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
