"""Pictures become a COCO file with the right people, for all kinds of pictures and after any interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from posegen.cli import main
from posegen.data.base import Sample
from posegen.data.formats.folder import Folder
from posegen.data.mannequin.dataset import MannequinData
from posegen.errors import UserError
from posegen.metrics.base import Estimator, Poses
from posegen.metrics.math.oks import oks
from posegen.poses.pose import Pose
from posegen.poses.reading import read_pose_file
from posegen.poses.topology import COCO_17
from posegen.runner.user_requests import annotation
from posegen.runner.user_requests.annotation import annotate, annotations_of


class Brightness(Estimator):
    """Finds one person per bright picture, whose joints all lie where its number is painted; can be interrupted."""

    looks: ClassVar[list[tuple[int, ...]]] = []
    interrupted_after: ClassVar[int | None] = None

    def estimate(self, images: torch.Tensor) -> list[Poses]:
        if self.interrupted_after == len(self.looks):
            raise KeyboardInterrupt
        self.looks.append(tuple(images.shape))
        found = []
        for image in images:
            n = int(image.max() > 0)
            joints = np.full((n, 17, 3), 0.9, np.float32)
            joints[..., :2] = float(image.mean())
            found.append(Poses(joints, np.full(n, 0.9, np.float32)))
        return found


class Centre(Estimator):
    """Finds one person in the middle of each picture."""

    def estimate(self, images: torch.Tensor) -> list[Poses]:
        joints = np.full((1, 17, 3), 0.9, np.float32)
        joints[..., :2] = (images.shape[3] - 1) / 2, (images.shape[2] - 1) / 2
        return [Poses(joints.copy(), np.ones(1, np.float32)) for _ in images]


class Teacher(Estimator):
    def estimate(self, images: torch.Tensor) -> list[Poses]:
        raise TypeError("this one only teaches")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Brightness.looks.clear()
    yield
    Brightness.interrupted_after = None


def estimator(name: str = "Brightness") -> DictConfig:
    return OmegaConf.create({"_target_": f"{__name__}.{name}"})


def run(batch: int = 2, **settings: Any) -> dict[str, Any]:
    annotate(estimator(), "pictures", "poses.json", batch=batch, progress="none", **settings)
    return json.loads(Path("poses.json").read_text())


def paint(name: str, size: tuple[int, int] = (24, 32), value: int | None = None) -> Path:
    file = Path("pictures") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    value = 100 + len(list(Path("pictures").rglob("*"))) if value is None else value
    image = np.full((*size, 3), value, np.uint8)
    image[:2, :2] = 255 if value else 0
    Image.fromarray(image).save(file, **({"lossless": True} if file.suffix == ".webp" else {}))
    return file


def rendered(count: int, folder: Path) -> list[Sample]:
    data = MannequinData(split="test", count=count, size=64, seed=0, cache=str(folder))
    return [data[i] for i in range(count)]


def test_the_people_of_rendered_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    samples = rendered(8, tmp_path / "cache")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i, sample in enumerate(samples):
        Image.fromarray(sample.image).save(tmp_path / "photos" / ("more" if i % 2 else "") / f"{i}.png")
    whole = cv2.imencode(".jpg", samples[0].image)[1].tobytes()
    (tmp_path / "photos" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    words = [
        "annotate",
        "source=photos",
        "target=out/poses.json",
        "estimator=mannequin",
        "overlays=drawn",
        "progress=none",
    ]
    assert main(words) == 0
    assert "broken.jpg cannot be decoded" in capfd.readouterr().err
    content = json.loads(Path("out/poses.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert list(names.values()) == [
        "0.png",
        "2.png",
        "4.png",
        "6.png",
        "more/1.png",
        "more/3.png",
        "more/5.png",
        "more/7.png",
    ]
    assert [entry["file_name"] for entry in content["info"]["unreadable"]] == ["broken.jpg"]
    similar = []
    for number, name in names.items():
        truth = samples[int(Path(name).stem)]
        found = [np.reshape(a["keypoints"], (17, 3)) for a in content["annotations"] if a["image_id"] == number]
        similar += oks(np.array(found).reshape(-1, 17, 3), truth.keypoints, truth.areas).max(0, initial=0).tolist()
        assert Path("drawn", f"{name}.png").is_file()
    assert np.median(similar) > 0.7
    assert not np.array_equal(cv2.imread("drawn/0.png.png"), samples[0].image[..., ::-1])
    read = read_pose_file(Path("out/poses.json"))
    assert read[0].size == (64, 64) and sum(len(entry.keypoints) for entry in read) == len(content["annotations"])  # type: ignore[arg-type]
    before = os.stat("out/poses.json").st_mtime_ns
    assert main(words) == 0 and os.stat("out/poses.json").st_mtime_ns == before
    assert "nothing has changed" in capfd.readouterr().out


def test_every_size_and_format() -> None:
    for name, size in {
        "a.png": (24, 32),
        "b.webp": (24, 32),
        "c.JPG": (24, 32),
        "d/e.png": (17, 9),
        "d/f.jpeg": (24, 32),
    }.items():
        paint(name, size)
    paint(".hidden.png"), Path("pictures/notes.txt").write_text("")
    content = run(batch=4)
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        ("a.png", 24, 32),
        ("b.webp", 24, 32),
        ("c.JPG", 24, 32),
        ("d/e.png", 17, 9),
        ("d/f.jpeg", 24, 32),
    ]
    assert Brightness.looks == [(3, 3, 24, 32), (1, 3, 17, 9), (1, 3, 24, 32)], (
        "pictures of one size in one pass, in fixed parts"
    )
    assert [a["image_id"] for a in content["annotations"]] == [1, 2, 3, 4, 5] and [
        a["id"] for a in content["annotations"]
    ] == [1, 2, 3, 4, 5]


def test_an_interrupted_run_continues(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(7):
        paint(f"{i}.png")
    whole = run()
    for file in [Path("poses.json"), *Path("poses.json.parts").iterdir()]:
        file.unlink()
    Brightness.looks.clear()
    Brightness.interrupted_after = 2
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not Path("poses.json").exists() and len(Brightness.looks) == 2
    Brightness.interrupted_after = None
    assert run() == whole and len(Brightness.looks) == 4
    assert run() == whole and len(Brightness.looks) == 4 and "nothing has changed" in capsys.readouterr().out


def test_changed_pictures_alone_are_looked_at_again() -> None:
    for i in range(6):
        paint(f"{i}.png")
    before = run()
    Brightness.looks.clear()
    paint("3.png", value=0)
    after = run()
    assert len(Brightness.looks) == 1
    os.utime("pictures/0.png", ns=(0, 0))
    assert run() == after and len(Brightness.looks) == 2, "of the same size, but written anew"
    assert [a["image_id"] for a in after["annotations"]] == [1, 2, 3, 5, 6] and after["images"] == before["images"]
    Path("pictures/5.png").unlink()
    assert len(run()["images"]) == 5 and len(list(Path("poses.json.parts").glob("*.part.json"))) == 3
    Path("poses.json").unlink()
    Brightness.looks.clear()
    assert len(run()["images"]) == 5 and not Brightness.looks


def test_overlays_can_come_later() -> None:
    paint("a.png"), paint("b/c.png", value=0)
    Path("pictures/bad.png").write_bytes(b"no picture")
    content = run()
    Brightness.looks.clear()
    assert run(overlays="drawn") == content and not Brightness.looks
    assert sorted(str(file) for file in Path("drawn").rglob("*.png")) == ["drawn/a.png.png", "drawn/b/c.png.png"]
    times = [file.stat().st_mtime_ns for file in Path("drawn").rglob("*.png")]
    run(overlays="drawn")
    assert times == [file.stat().st_mtime_ns for file in Path("drawn").rglob("*.png")]


def test_a_single_picture() -> None:
    annotate(estimator(), str(paint("a.png")), "one.json", progress="none")
    assert [image["file_name"] for image in json.loads(Path("one.json").read_text())["images"]] == ["a.png"]


def test_the_same_pictures_as_the_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.bmp", "c.tif", "d.gif", ".cache/e.png", "__MACOSX/f.jpg"):
        paint(name)
    Path("pictures/broken.jpg").symlink_to("nothing.jpg")
    os.rename(paint("g.png"), b"pictures/caf\xe9.png")
    content = run()
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.bmp", "c.tif", "d.gif"]
    printed = capfd.readouterr()
    assert "caf\\xe9.png: its name is no text in UTF-8" in printed.err and "broken.jpg is missing" in printed.err
    used = [image.place.file for image in Folder("pictures", None, None, {"test": "."}).entries("test", print)]
    assert used == ["a.jpg", "b.bmp", "broken.jpg", "c.tif", "d.gif"], "a broken link is named when it is opened"


def test_large_pictures_are_shrunk_for_the_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation, "MOST_SEEN", 48 * 64)
    for i in range(5):
        paint(f"{i}.png", (24, 32))
    paint("large.png", (96, 128))
    run(batch=8)
    assert Brightness.looks == [(4, 3, 24, 32), (1, 3, 48, 64), (1, 3, 24, 32)]
    annotate(estimator("Centre"), "pictures", "centres.json", progress="none")
    found = json.loads(Path("centres.json").read_text())
    middles = {tuple(person["keypoints"][:2]) for person in found["annotations"]}
    assert middles == {(15.5, 11.5), (63.5, 47.5)} and found["images"][5]["width"] == 128


def test_where_nothing_can_be_read(tmp_path: Path) -> None:
    Path("pictures").mkdir()
    Path("pictures/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"pictures: none of 1 pictures can be read, so poses\.json is not written"):
        run()
    assert not Path("poses.json").exists()
    Path("pictures/a.jpg").unlink()
    paint("a.jpg")
    assert len(run()["images"]) == 1


def test_damaged_parts_are_found_again() -> None:
    paint("a.png"), paint("b.png")
    before = run()
    [part] = Path("poses.json.parts").glob("*.part.json")
    for content in ("", "{}", "[1, 2]", '[{"file": "a.png"}]'):
        part.write_text(content)
        assert run() == before


def test_what_cannot_be_done_is_said() -> None:
    paint("a.png")
    with pytest.raises(UserError, match="source=empty holds no pictures"):
        Path("empty").mkdir()
        annotate(estimator(), "empty", "x.json")
    with pytest.raises(UserError, match="overlays=pictures/drawn lies inside source=pictures"):
        annotate(estimator(), "pictures", "x.json", overlays="pictures/drawn")
    with pytest.raises(UserError, match="batch=0: expected at least 1"):
        annotate(estimator(), "pictures", "x.json", batch=0)
    with pytest.raises(UserError, match="estimator: this one only teaches"):
        annotate(estimator("Teacher"), "pictures", "x.json", progress="none")
    Path("mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"target=mine.json exists, and posegen annotate did not write it"):
        annotate(estimator(), "pictures", "mine.json")
    run()
    with pytest.raises(UserError, match=r"belongs to other settings:\n  least_score: 0.1 there, 0.5 now"):
        run(least_score=0.5)


def test_annotations() -> None:
    joints = np.zeros((3, 17, 3), np.float32)
    joints[0, :2] = [[2, 3, 0.9], [6, 11, 0.05]]
    joints[0, 4:6] = [[12, 8, 0.4], [np.inf, 1, 0.8]]
    joints[2, 0] = [5, 5, 0.09]
    (person,) = annotations_of(Pose(COCO_17, joints), [0.5, 0.4, 0.3], 0.1)
    assert (
        person["num_keypoints"] == 2
        and person["bbox"] == [2, 3, 10, 5]
        and person["area"] == 50
        and person["score"] == 0.5
    )
    assert np.reshape(person["keypoints"], (17, 3))[[0, 1, 4, 5]].tolist() == [
        [2, 3, 2],
        [0, 0, 0],
        [12, 8, 2],
        [0, 0, 0],
    ]
    assert [round(s, 3) for s in person["keypoint_scores"][:5]] == [0.9, 0, 0, 0, 0.4]
    assert len(annotations_of(Pose(COCO_17, joints), [0.5, 0.4, 0.3], 0.0)) == 2
