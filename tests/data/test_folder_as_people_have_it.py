"""Folders of pictures as people bring them: what is damaged or doubtful leaves out its own picture, with the reason."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posegen.data.formats.folder import SPLITS, Folder
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.picture_names import NamedPictures
from tests.poses.test_pose_files import known_values

SIZE = (128, 96)  # height, width


def person(shift: float = 0.0) -> np.ndarray:
    dice = np.random.default_rng(3)
    points = np.column_stack([dice.uniform(10, 60, 17), dice.uniform(10, 110, 17), np.full(17, 2)]).round(2)
    return points + np.array([shift, 0, 0])


def row(image: Any, points: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "keypoints": (person() if points is None else points).ravel().tolist(), **more}


def paint(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (i * 20, 90, 200)).save(root / name)


def listed(root: Path, rows: list[Any], *images: tuple[Any, str], **about: Any) -> None:
    size = {"height": SIZE[0], "width": SIZE[1], **about}
    entries = [{"id": i, "file_name": name, **size} for i, name in images]
    (root / "poses.json").write_text(json.dumps({"images": entries, "annotations": rows}))


def read(root: Path, poses: str | None = "poses.json", prompts: str | None = None, **options: Any) -> tuple[Any, Any]:
    """People by picture, and problems by file (those that leave a picture out, then remarks)."""
    source = Folder(root, poses, prompts, **options)
    found: list[Any] = []
    entries = {e.place.file: e for split in SPLITS for e in source.entries(split, found.append)}
    return entries, {defect.file: defect.problem for defect in found}


def test_a_damaged_entry_leaves_out_its_own_picture(tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    rows = [row(1), row(2, id=7, points=person()[:11]), {"image_id": 3, "bbox": [1, 2, 3, 4]}, row(3)]
    listed(tmp_path, rows, (1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg"), height=None)
    entries, problems = read(tmp_path)
    assert {file: len(entry.keypoints) for file, entry in entries.items()} == {"a.jpg": 1, "c.jpg": 1}
    assert problems["b.jpg"] == "pose cannot be read: annotation 7: 33 numbers; 17 joints have 51"
    assert "1 annotations without joints of a person are passed over" in problems["poses.json"]


@pytest.mark.parametrize(("listing", "use"), [(1, "1"), ("0002", 2), (3.0, "3")])
def test_ids_as_text_and_as_numbers(listing: Any, use: Any, tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg")
    listed(tmp_path, [row(use)], (listing, "a.jpg"))
    entries, problems = read(tmp_path)
    assert len(entries["a.jpg"].keypoints) == 1 and not problems


def test_results_name_pictures_by_their_numbers(tmp_path: Path) -> None:
    paint(tmp_path, "000000000139.jpg", "000000000285.jpg")
    (tmp_path / "poses.json").write_text(json.dumps([row(139), row("285", person(9))]))
    entries, problems = read(tmp_path)
    np.testing.assert_allclose(entries["000000000139.jpg"].keypoints[0], person(), rtol=1e-6)
    np.testing.assert_allclose(entries["000000000285.jpg"].keypoints[0], person(9), rtol=1e-6)
    assert not problems


def test_lists_that_were_joined(tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    listed(tmp_path, [row(1), row(2), row(1)], (1, "a.jpg"), (2, "b.jpg"), (1, "c.jpg"))
    entries, problems = read(tmp_path)
    assert list(entries) == ["b.jpg"] and all("the id 1 is used by 2 images" in problems[f] for f in ("a.jpg", "c.jpg"))
    listed(tmp_path, [row(1), row(2, person(20)), row(2)], (1, "a.jpg"), (2, "a.jpg"), (3, "b.jpg"))
    entries, problems = read(tmp_path)
    assert entries["a.jpg"].keypoints[:, 0, 0].tolist() == pytest.approx([person()[0, 0], person(20)[0, 0]])
    assert problems["a.jpg"] == "listed 2 times; the people of all are taken" and not len(entries["b.jpg"].keypoints)


def test_a_canvas_is_no_size_of_the_picture(tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg", "b.jpg")
    points = person() * [512 / 96, 768 / 128, 1]
    for name, width in (("a", 512), ("b", 768)):
        people = [{"pose_keypoints_2d": (points * [width / 512, 1, 1]).ravel().tolist()}]
        content = {"people": people, "canvas_width": width, "canvas_height": 768}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    source = Folder(tmp_path, ".", None, folders={"test": "."})
    data = RealData(source, "test", (128, 96), "stretch", cache=tmp_path / "cache", workers=1)
    for sample in data:
        np.testing.assert_allclose(sample.keypoints[0, :, :2], person()[:, :2], atol=0.6)
    remarks = [defect for defect in data.condition.defects if "canvas" in defect.problem]
    assert [defect.file for defect in remarks] == ["a.jpg", "b.jpg"] and not any(defect.fatal for defect in remarks)
    assert "canvas of 768 x 768 and are stretched to 96 x 128" in remarks[1].problem


def test_texts_in_other_encodings(tmp_path: Path) -> None:
    paint(tmp_path, "0.jpg", "1.jpg", "2.jpg", "3.jpg")
    for name, content in {
        "0": b"a dancer", "1": "à la plage".encode("cp1252"), "2": "a dancer".encode("utf-8-sig"),
        "3": "a dancer".encode("utf-16"),
    }.items():  # fmt: skip
        (tmp_path / f"{name}.txt").write_bytes(content)
    listed(tmp_path, [row(2)], (2, "2.jpg"))
    poses = (tmp_path / "poses.json").read_bytes()
    (tmp_path / "poses.json").write_bytes(b"\xef\xbb\xbf" + poses)
    entries, problems = read(tmp_path, prompts=".")
    assert {entry.prompt for entry in entries.values()} == {"a dancer"} and list(problems) == ["1.jpg"]
    assert "1.txt: it is no text in UTF-8: byte 0 is 0xe0" in problems["1.jpg"] and len(entries["2.jpg"].keypoints) == 1
    (tmp_path / "words.csv").write_bytes("0.jpg,été\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"words\.csv: it is no text in UTF-8"):
        read(tmp_path, prompts="words.csv")


def test_one_odd_line_of_prompts_leaves_out_its_picture(tmp_path: Path) -> None:
    paint(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    (tmp_path / "words.csv").write_text("0.jpg,a dancer\n1.jpg,a,b\n2.jpg,one\n2.jpg,two\n")
    entries, problems = read(tmp_path, None, "words.csv")
    assert list(entries) == ["0.jpg"] and "a line has 3 values (line 2" in problems["1.jpg"]
    assert "line 4 has another prompt for it" in problems["2.jpg"]
    (tmp_path / "words.json").write_text(json.dumps({"0.jpg": "a dancer", "1.jpg": 5, "2.jpg": None}))
    entries, problems = read(tmp_path, None, "words.json")
    assert list(entries) == ["0.jpg"] and "'5' is no text" in problems["1.jpg"]
    lines = [{"source": "s/0.png", "target": "0.jpg", "prompt": "a"}, {"file_name": "1.jpg", "text": "b"}]
    (tmp_path / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    entries, _ = read(tmp_path, None, "prompt.json")
    assert {file: entry.prompt for file, entry in entries.items()} == {"0.jpg": "a", "1.jpg": "b"}


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    paint(tmp_path, "0.jpg", "1.jpg")
    os.rename(tmp_path / "1.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    data = RealData(Folder(tmp_path, None, None, {"test": "."}), "test", 64, cache=tmp_path / "cache", workers=1)
    data.prepare()
    assert len(data) == 1 and data.condition.defects[0].file == "caf\\xe9.jpg"
    assert data.condition.defects[0].problem == "its name is no text in UTF-8; rename it"


def test_hidden_folders_hold_copies(tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", ".thumbnails/b.jpg")
    listed(tmp_path, [row(1)], (1, "a.jpg"))
    (tmp_path / ".ipynb_checkpoints" / "a.json").write_text("{")
    for poses in ("poses.json", "."):
        entries, problems = read(tmp_path, poses)
        assert list(entries) == ["a.jpg"] and not problems


def test_where_no_pose_fits_any_picture_it_is_said(tmp_path: Path) -> None:
    paint(tmp_path, "a.jpg")
    listed(tmp_path, [row(1)], (1, "IMG_77.jpg"))
    data = RealData(Folder(tmp_path, prompts=None, folders={"test": "."}), "test", 64, cache=tmp_path / "c", workers=1)
    data.prepare()
    said = "no picture has a pose: data.poses names IMG_77.jpg, and on disk is a.jpg"
    assert said in data.condition.warnings


def test_names_of_pictures() -> None:
    there = ["a/1.jpg", "b/1.jpg", "b/Two.JPG", "c/é.png", "0003.jpg", "4.jpg", "04.jpg", "x/5.jpg"]
    decomposed = unicodedata.normalize("NFD", "é.png")
    names = ["1.jpg", "b\\two.jpg", decomposed, "3", "4", "/data/x/5.jpg", "y/5.jpg", "9.jpg"]
    found = NamedPictures(names, there)
    assert found.names == {
        "b/Two.JPG": ["b\\two.jpg"], "c/é.png": [decomposed], "0003.jpg": ["3"], "4.jpg": ["4"],
        "x/5.jpg": ["/data/x/5.jpg"],
    }  # fmt: skip
    assert found.unclear == {"a/1.jpg": "1.jpg", "b/1.jpg": "1.jpg"} and found.absent == ["y/5.jpg", "9.jpg"]
    with pytest.raises(ValueError, match=r"1\.jpg may mean it or another picture of that name; give its path"):
        found.require_clear("a/1.jpg")
    exact = NamedPictures(["1.jpg", "a/1.jpg"], ["a/1.jpg"])
    assert exact.names == {"a/1.jpg": ["a/1.jpg"]} and exact.absent == ["1.jpg"]


def test_files_beside_pictures_of_two_folders(tmp_path: Path) -> None:
    paint(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "texts" / "a").mkdir(parents=True)
    for name, text in {"1": "of which?", "2": "two"}.items():
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    entries, problems = read(tmp_path, None, "texts")
    assert list(entries) == ["b/2.jpg"] and set(problems) == {"a/1.jpg", "b/1.jpg"}
    (tmp_path / "texts" / "a" / "1.txt").write_text("one")
    entries, problems = read(tmp_path, None, "texts")
    assert entries["a/1.jpg"].prompt == "one" and set(problems) == {"b/1.jpg"}


entries = st.fixed_dictionaries(
    {"image_id": st.sampled_from([1, "1", "a.jpg", None, [], 2.0, True])},
    optional=dict.fromkeys(("keypoints", "id", "area", "category_id", "iscrowd"), known_values),
)
images = st.fixed_dictionaries(
    {"id": st.sampled_from([1, "1", "2", None])},
    optional={"file_name": st.sampled_from(["a.jpg", 5, "\0"]) | known_values, "height": known_values},
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(entries, max_size=4) | known_values, st.lists(images, max_size=4) | known_values, known_values)
def test_any_json_gives_pictures_or_one_error(tmp_path: Path, rows: Any, listing: Any, prompts: Any) -> None:
    paint(tmp_path, "a.jpg", "1.jpg")
    (tmp_path / "poses.json").write_text(json.dumps({"annotations": rows, "images": listing}))
    (tmp_path / "prompts.json").write_text(json.dumps({"a.jpg": "a", "1": prompts}))
    try:
        found, _ = read(tmp_path, prompts="prompts.json")
    except ValueError as error:
        assert "poses.json" in str(error)
        return
    assert all(np.isfinite(entry.keypoints).all() for entry in found.values())
