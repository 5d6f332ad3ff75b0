"""One's own pictures: poses and prompts in every form that is understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.data.condition import Defect
from posegen.data.formats.folder import SPLITS, Folder
from posegen.data.on_disk.indexed import RealData
from posegen.poses.topology import coco_to_openpose18
from tests.data.trees import Picture, picture

SIZE = (48, 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def written(root: Path, *files: str) -> list[Picture]:
    pictures = [
        picture(root, file, key, f"prompt of {Path(file).stem}", SIZE)
        for key, file in enumerate(files or ("a.jpg", "b.png", "deep/c d.jpg"))
    ]
    for one in pictures:
        one.write()
    return pictures


def coco(root: Path, pictures: list[Picture], name: str = "poses.json") -> None:
    images = [{"id": one.key + 7, "file_name": one.file, "height": SIZE[0], "width": SIZE[1]} for one in pictures]
    rows = [
        {"image_id": one.key + 7, "keypoints": k.reshape(-1).tolist(), "area": 50.0, "iscrowd": 0}
        for one in pictures
        for k in one.keypoints
    ]
    (root / name).write_text(json.dumps({"images": images, "annotations": rows}))


def captioned(root: Path, pictures: list[Picture]) -> None:
    (root / "prompts.json").write_text(json.dumps({one.file: one.prompt for one in pictures}))


def everything(source: Folder, *splits: str) -> tuple[dict[str, Any], list[Defect]]:
    """The entries by file, and what was reported."""
    defects: list[Defect] = []
    return {
        entry.place.file: entry for split in splits or SPLITS for entry in source.entries(split, defects.append)
    }, defects


def test_coco_poses_and_json_prompts(root: Path) -> None:
    pictures = written(root)
    coco(root, pictures)
    captioned(root, pictures)
    entries, defects = everything(Folder(root))
    assert not defects and entries.keys() == {one.file for one in pictures}
    for one in pictures:
        entry = entries[one.file]
        np.testing.assert_allclose(entry.keypoints, one.keypoints)
        assert entry.prompt == one.prompt and entry.size == SIZE and entry.areas.tolist() == [50.0] * len(one.keypoints)
        assert entry.id == f"folder/{one.file}"


def test_results_know_pictures_by_name(root: Path) -> None:
    [one] = written(root, "deep/c d.jpg")
    for name in ("c d", "c d.jpg", "deep/c d.jpg"):
        (root / "poses.json").write_text(
            json.dumps([{"image_id": name, "keypoints": k.reshape(-1).tolist(), "score": 0.5} for k in one.keypoints])
        )
        entries, defects = everything(Folder(root, prompts=None))
        np.testing.assert_allclose(entries[one.file].keypoints, one.keypoints)
        assert not defects and entries[one.file].prompt == "" and np.isnan(entries[one.file].areas).all()


@pytest.mark.parametrize(("poses", "name"), [(".", "{stem}.json"), ("openpose", "{stem}_keypoints.json")])
def test_openpose_files_of_each_picture(root: Path, poses: str, name: str) -> None:
    pictures = written(root)
    for one in pictures[1:]:
        file = root / poses / Path(one.file).parent / name.format(stem=Path(one.file).stem)
        file.parent.mkdir(parents=True, exist_ok=True)
        people = coco_to_openpose18(one.keypoints).reshape(-1, 54).tolist()
        file.write_text(json.dumps({"people": [{"pose_keypoints_2d": numbers} for numbers in people]}))
    nobody = root / poses / name.format(stem="a")
    nobody.write_text('{"people": []}')
    entries, defects = everything(Folder(root, poses, None))
    assert not defects and not len(entries["a.jpg"].keypoints)
    for one in pictures[1:]:
        np.testing.assert_allclose(entries[one.file].keypoints, one.keypoints, atol=1e-4)
    nobody.write_text('{"people": [')
    entries, [defect] = everything(Folder(root, poses, None))
    assert len(entries) == 2 and defect.file == "a.jpg" and "pose cannot be read" in defect.problem


@pytest.mark.parametrize("form", ["csv", "csv with a head", "beside", "apart"])
def test_prompts_in_other_forms(root: Path, form: str) -> None:
    pictures = written(root)
    prompts = {one.file: f'{one.prompt}, with a comma and "marks" é' for one in pictures}
    if form.startswith("csv"):
        rows = "".join('{},"{}"\n'.format(file, prompt.replace('"', '""')) for file, prompt in prompts.items())
        (root / "words.csv").write_text(("file,prompt\n" if "head" in form else "") + rows, encoding="utf-8")
        given = "words.csv"
    else:
        given = "." if form == "beside" else "words"
        for file, prompt in prompts.items():
            text = root / given / Path(file).with_suffix(".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"{prompt}\n", encoding="utf-8")
    entries, defects = everything(Folder(root, None, given))
    assert not defects and {file: entry.prompt for file, entry in entries.items()} == prompts


def test_what_only_one_side_knows_is_reported(root: Path) -> None:
    pictures = written(root)
    coco(root, [*pictures, picture(root, "gone.jpg", 99, "nothing", SIZE)])
    captioned(root, pictures[1:])
    entries, defects = everything(Folder(root))
    assert entries.keys() == {one.file for one in pictures[1:]}
    assert {(d.file, d.problem) for d in defects} == {("a.jpg", "no prompt in prompts.json"), ("gone.jpg", "missing")}


def test_splits_by_folders_or_by_a_hash_of_the_path(root: Path) -> None:
    names = [f"{i}.png" for i in range(300)]
    for name in [*names, "train/a.png", "held/b.png"]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    source = Folder(root, None, None)
    splits = {split: source.pictures(split) for split in SPLITS}
    assert sorted(file for files in splits.values() for file in files) == sorted([*names, "train/a.png", "held/b.png"])
    assert 210 < len(splits["train"]) < 270 and 10 < len(splits["validation"]) < 50
    (root / "more.png").touch()
    assert all(
        {*files} <= {*Folder(root, None, None).pictures(split)} for split, files in splits.items()
    )  # nothing moves when pictures come
    folders = Folder(root, None, None, folders={"train": "train", "test": "held"})
    assert folders.pictures("train") == ["train/a.png"] and folders.pictures("test") == ["held/b.png"]
    with pytest.raises(FileNotFoundError, match=r"data\.folders has no folder for validation; it has train, test"):
        folders.pictures("validation")


def test_it_is_read_as_any_other_data(root: Path, tmp_path: Path) -> None:
    pictures = written(root)
    coco(root, pictures)
    captioned(root, pictures)
    (root / "held").mkdir()
    data = RealData(Folder(root, folders={"train": "."}, name="mine"), "train", (32, 40), cache=tmp_path / "cache")
    assert (
        data.prompts == [one.prompt for one in pictures]
        and data[0].image.shape == (32, 40, 3)
        and data[0].id == "mine/a.jpg"
    )
    identity = data.identity
    (root / "prompts.json").write_text(json.dumps({one.file: "other" for one in pictures}))
    other = RealData(Folder(root, folders={"train": "."}, name="mine"), "train", (32, 40), cache=tmp_path / "cache")
    assert other.identity != identity and other.prompts == ["other"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "nowhere"}, r"data\.root=nowhere: no such folder"),
        (
            {"poses": "none.json"},
            r"data\.poses=none\.json: there is no .*none\.json; expected a json file in COCO's format",
        ),
        ({"prompts": "none.csv"}, r"data\.prompts=none\.csv: there is no"),
        (
            {"shares": (0.5, 0.2, 0.2)},
            r"data\.shares=\[0\.5, 0\.2, 0\.2\]: expected the shares of train, validation, test, which add up to 1",
        ),
        ({"poses": "broken.json"}, r"broken\.json is not a readable json file"),
        ({"poses": "strange.json"}, r"strange\.json: it is not in COCO's format: image 0 of the list: .*'id'"),
        ({"prompts": "strange.json"}, r"strange\.json: expected \{picture: prompt\}"),
        ({"prompts": "three.csv"}, r"three\.csv: a line has 3 values .*; expected file,prompt"),
    ],
)
def test_errors_name_the_key_or_the_file(root: Path, options: dict[str, Any], message: str) -> None:
    written(root)
    (root / "broken.json").write_text("{")
    (root / "strange.json").write_text('{"images": [{"width": 3}]}')
    (root / "three.csv").write_text("a.jpg,one,two\n")
    with pytest.raises(ValueError, match=message):
        everything(Folder(**{"root": root, "poses": None, "prompts": None, **options}))
