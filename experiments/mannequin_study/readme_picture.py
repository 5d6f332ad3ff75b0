"""The README's picture: three poses of this study, the target and each method's image with the pose found in it.

    python experiments/mannequin_study/readme_picture.py

The images are those of ``pictures.png`` beside this file, which holds two pixels for each of theirs. The shipped judge
finds their poses again, and thin lines show them.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from posegen.config.resolvers import asset
from posegen.data.mannequin.dataset import MannequinData
from posegen.metrics.estimators.mannequin import MannequinJudge
from posegen.poses.topology import COCO_BARS, COCO_LEFT, COCO_LIMBS, COCO_RIGHT
from posegen.runner.images import read_png, visible

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "methods.jpg"
POSES = (0, 1, 3)  # lines of pictures.png
METHODS = ("controlnet", "grpose", "humansd", "stable_pose", "t2i_adapter", "none")  # its columns
SHOWN = ("stable_pose", "grpose", "controlnet", "t2i_adapter", "humansd", "none")  # the order of the README's table
SIDE, PANEL, HEAD, LEFT = 64, 128, 18, 128  # pixels of an image, of its panel, above and before the first panel
SIZE, GAP, WIDTH, TITLE = 232, 6, 838, 44  # of the picture, drawn at twice the WIDTH that the README shows
COLOURS = {"left": "#2bd966", "right": "#ff5050", "middle": "#ffd02e"}


def sample(sheet: np.ndarray, line: int, method: str) -> np.ndarray:
    """A method's image ``[64, 64, 3] uint8``."""
    top, left = HEAD + PANEL * line, LEFT + 2 * PANEL * METHODS.index(method)
    return sheet[top : top + PANEL : 2, left : left + PANEL : 2][:SIDE]


def with_skeletons(image: np.ndarray, keypoints: np.ndarray, ground: str | None = None) -> Image.Image:
    """An image enlarged to a panel, or one of the colour ``ground``, with thin skeletons over it."""
    large = Image.fromarray(cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))
    panel = Image.new("RGB", (SIZE, SIZE), ground) if ground else large
    pen, scale = ImageDraw.Draw(panel), SIZE / SIDE
    for person in keypoints:
        for a, b in (*COCO_BARS, *COCO_LIMBS):
            if min(person[a, 2], person[b, 2]) > 0:
                ends = [tuple((person[joint, :2] + 0.5) * scale) for joint in (a, b)]
                pen.line([*ends[0], *ends[1]], COLOURS[side_of(a, b)], width=3)
    return panel


def side_of(a: int, b: int) -> str:
    ends = {a, b} - {0}  # the nose belongs to no side
    return "left" if ends <= set(COCO_LEFT) else "right" if ends <= set(COCO_RIGHT) else "middle"


def main() -> None:
    sheet, data = read_png(HERE / "pictures.png"), MannequinData("test", count=max(POSES) + 1, size=SIDE)
    judge = MannequinJudge.from_pretrained(asset("mannequin-v1/judge")).eval()
    width = 2 * WIDTH
    left = (width - (len(SHOWN) + 1) * (SIZE + GAP) + GAP) // 2
    canvas = Image.new("RGB", (width, TITLE + len(POSES) * (SIZE + GAP)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(26)
    for column, name in enumerate(("target pose", *SHOWN)):
        pen.text((left + column * (SIZE + GAP) + 4, 6), name, "#333333", font)
    for row, line in enumerate(POSES):
        images = [sample(sheet, line, name) for name in SHOWN]
        with torch.no_grad():
            tensors = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
            found = [visible(poses.keypoints) for poses in judge.estimate(tensors)]
        panels = [with_skeletons(images[0], data[line].keypoints, "#202227")]
        panels += [with_skeletons(*each) for each in zip(images, found, strict=True)]
        for column, panel in enumerate(panels):
            canvas.paste(panel, (left + column * (SIZE + GAP), TITLE + row * (SIZE + GAP)))
    canvas.save(PICTURE, quality=90, subsampling=0)


if __name__ == "__main__":
    main()
