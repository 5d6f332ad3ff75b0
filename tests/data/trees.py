"""Invented data sets in the exact layouts of real ones, small, with defects planted where a test wants some."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from posegen.data.formats.human_art import SCENARIOS
from posegen.poses.drawing import overlay

#: A standing figure in a square of side 1, joint by joint.
FIGURE = np.array([
    (0.50, 0.08), (0.53, 0.06), (0.47, 0.06), (0.56, 0.08), (0.44, 0.08), (0.62, 0.22), (0.38, 0.22), (0.68, 0.38),
    (0.32, 0.38),
    (0.72, 0.52), (0.28, 0.52), (0.58, 0.52), (0.42, 0.52), (0.58, 0.74), (0.42, 0.74), (0.58, 0.95), (0.42, 0.95),
])  # fmt: skip
NUMBERS = {name: number for number, name in enumerate((s for group in SCENARIOS.values() for s in group), 1)}


@dataclass
class Planted:
    """Defects by file: a piece of the problem that is to be reported.

    Attributes:
        left_out: of entries that cannot be used.
        remarks: of entries that are kept.
        fine: odd pictures about which nothing is to be said.
        trap: the file that a malicious pose file would write.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    fine: list[str] = field(default_factory=list)
    trap: Path | None = None


@dataclass
class Picture:
    """One entry before it is written."""

    root: Path
    file: str
    key: int
    prompt: str
    image: np.ndarray
    keypoints: np.ndarray

    @property
    def path(self) -> Path:
        return self.root / self.file

    @property
    def pose(self) -> str:
        return f"pose/{Path(self.file).relative_to('images').with_suffix('.npz')}"

    @property
    def areas(self) -> np.ndarray:
        return (self.keypoints[..., :2].max(1) - self.keypoints[..., :2].min(1)).prod(-1)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.image).save(self.path)


def people(dice: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """``[count, 17, 3]`` standing figures somewhere on the picture, with visibility 2."""
    height, width = size
    side = dice.uniform(0.5, 0.9, (count, 1, 1)) * min(size)
    corner = dice.uniform(0, 1, (count, 1, 2)) * (np.array([width, height]) - 1 - side)
    points = corner + FIGURE * side + dice.uniform(-0.01, 0.01, (count, 17, 2)) * side
    return np.concatenate([points.clip(0, (width - 1, height - 1)), np.full((count, 17, 1), 2.0)], -1).astype(
        np.float32
    )


def picture(root: Path, file: str, key: int, prompt: str, size: tuple[int, int], count: int | None = None) -> Picture:
    """People on a soft background, a function of ``key``."""
    dice = np.random.default_rng(key)
    keypoints = people(dice, int(dice.integers(1, 4)) if count is None else count, size)
    background = cv2.resize(dice.integers(90, 220, (4, 4, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    return Picture(root, file, key, prompt, overlay(background, keypoints), keypoints)


def human_art(
    root: Path,
    scenarios: int = 19,
    per_scenario: int = 3,
    size: tuple[int, int] = (96, 128),
    layout: Literal["annotation", "mapping"] = "annotation",
    defects: bool = False,
) -> Planted:
    """Human-Art with ``per_scenario`` pictures of the first ``scenarios``; ``defects`` go to the validation list.

    Args:
        root: the folder to make, which is the ``data.root`` of the data set.
        size: (height, width) of all pictures.
        layout: the authors' annotations, or HumanSD's mapping and pose files.
    """
    planted = Planted()
    for number, name in enumerate(("training", "validation")):
        pictures = []
        for group, members in SCENARIOS.items():
            for scenario in (s for s in members if NUMBERS[s] <= scenarios):
                for i in range(1, per_scenario + 1):
                    file = 10000 * number + i
                    key = NUMBERS[scenario] * 10**12 + file
                    prompt = f"{scenario}, people number {i} who stand"
                    pictures.append(picture(root, f"images/{group}/{scenario}/{file:012d}.jpg", key, prompt, size))
        for one in pictures:
            one.write()
        odd = _plant_pictures(pictures, planted) if defects and name == "validation" else {}
        if layout == "mapping":
            _write_mapping(root, name, pictures)
            if odd:
                _plant_poses(root, pictures[len(odd) :], planted)
        else:
            _write_annotations(root, name, pictures)
    return planted


def _plant_pictures(pictures: list[Picture], planted: Planted) -> dict[str, Picture]:
    """Spoils one picture after the other."""
    kinds = (
        "missing",
        "corrupt",
        "truncated",
        "outside",
        "twelve",
        "ten",
        "nobody",
        "grey",
        "cmyk",
        "alpha",
        "spaces",
        "turned",
    )
    odd = dict(zip(kinds, pictures, strict=False))
    assert len(odd) == len(kinds), "too few pictures for all defects"
    for kind in ("truncated", "alpha"):
        _moved(odd[kind], Path(odd[kind].file).with_suffix(".png").as_posix())
    _moved(odd["spaces"], odd["spaces"].file.replace(".jpg", " a copy (1).jpg"))
    odd["missing"].path.unlink()
    odd["corrupt"].path.write_bytes(b"\xff\xd8\xff\xe0 this is no picture" * 20)
    content = odd["truncated"].path.read_bytes()
    odd["truncated"].path.write_bytes(content[: len(content) // 2])
    odd["outside"].keypoints[0, :3, :2] += 1000
    for kind, count in (("twelve", 12), ("ten", 10), ("nobody", 0)):
        odd[kind].keypoints = people(np.random.default_rng(count), count, odd[kind].image.shape[:2])
    for kind, mode in (("grey", "L"), ("cmyk", "CMYK"), ("alpha", "RGBA")):
        Image.fromarray(odd[kind].image).convert(mode).save(odd[kind].path)
    lying = Image.fromarray(odd["turned"].image).transpose(
        Image.Transpose.ROTATE_90
    )  # stands upright when turned as EXIF says
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(odd["turned"].path, exif=exif)
    planted.left_out |= {
        odd[kind].file: problem
        for kind, problem in (("missing", "missing"), ("corrupt", "decoded"), ("truncated", "decoded"))
    }
    planted.remarks |= {
        odd["outside"].file: "lie outside",
        odd["twelve"].file: "12 people",
        odd["nobody"].file: "nobody",
    }
    planted.remarks |= {
        odd[kind].file: f"colour mode {mode}" for kind, mode in (("grey", "L"), ("cmyk", "CMYK"), ("alpha", "RGBA"))
    }
    planted.fine += [odd[kind].file for kind in ("ten", "spaces", "turned")]
    return odd


def _moved(one: Picture, file: str) -> None:
    one.path.unlink()
    one.file = file
    one.write()


def _plant_poses(root: Path, pictures: list[Picture], planted: Planted) -> None:
    """Spoils one pose file after the other."""
    missing, malicious, truncated, foreign = (root / one.pose for one in pictures[:4])
    missing.unlink()
    planted.trap = root / "trap"
    malicious.write_bytes(malicious_array(planted.trap))
    truncated.write_bytes(truncated.read_bytes()[:-200])
    np.savez(foreign, something=np.arange(3))
    problems = ("missing", "system", "cannot be read", "holds no people")
    planted.left_out |= {one.pose: problem for one, problem in zip(pictures, problems, strict=False)}


def malicious_array(trap: Path) -> bytes:
    """An npy file whose pickle writes ``trap`` when it is run."""
    import io
    import os

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{trap}'",)

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return stream.getvalue() + pickle.dumps(np.array([Attack()], object))


def _write_mapping(root: Path, name: str, pictures: list[Picture]) -> None:
    mapping = {}
    for one in pictures:
        (root / one.pose).parent.mkdir(parents=True, exist_ok=True)
        scored = one.keypoints.copy()
        scored[..., 2] = np.where(scored[..., 2] > 0, 0.9, 0)
        rows = [
            {"keypoints": k, "score": np.float32(0.9), "area": np.float32(a)}
            for k, a in zip(scored, one.areas, strict=True)
        ]
        np.savez(root / one.pose, rows)
        mapping[str(one.key)] = {"img_path": one.file, "prompt": one.prompt, "pose_path": one.pose}
    (root / f"mapping_file_{name}.json").write_text(json.dumps(mapping))


def _write_annotations(root: Path, name: str, pictures: list[Picture]) -> None:
    images, annotations = [], []
    for one in pictures:
        height, width = one.image.shape[:2]
        about = {"id": one.key, "file_name": f"HumanArt/{one.file}", "height": height, "width": width}
        images.append({**about, "description": one.prompt, "category": one.prompt.partition(",")[0].replace("_", " ")})
        for keypoints, area in zip(one.keypoints, one.areas, strict=True):
            left, top = keypoints[:, :2].min(0)
            box = [float(left), float(top), *(keypoints[:, :2].max(0) - (left, top)).tolist()]
            row = {
                "id": len(annotations) + 1,
                "image_id": one.key,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(area),
                "bbox": box,
            }
            numbers = keypoints.reshape(-1).tolist()
            annotations.append(
                {
                    **row,
                    "keypoints": numbers,
                    "num_keypoints": 17,
                    "keypoints_21": [*numbers, *[0] * 12],
                    "self_contact": [],
                }
            )
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (root / "annotations" / f"{name}_humanart.json").write_text(json.dumps(content))
