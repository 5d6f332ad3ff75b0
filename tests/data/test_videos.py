"""The video sets: which frames are chosen, how they come out of videos, and what is said where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from posegen.data.condition import Defect
from posegen.data.formats import videos as clips
from posegen.data.formats.videos import DAVIS, SELECTION, DanceTrack, Selection, UBCFashion, Videos
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.source import StoredImage
from tests.data.video_trees import SIZE, dance_track, davis, number_of, pictures, poses, video


def listed(source: Videos, split: str = "test") -> tuple[list[StoredImage], list[Defect]]:
    defects: list[Defect] = []
    return list(source.entries(split, defects.append)), defects


# Choosing.


def test_frames_are_chosen_by_stride_or_by_number() -> None:
    assert Selection(stride=2).of(5) == [0, 2, 4] and Selection(stride=9).of(5) == [0]
    assert (
        Selection(per_clip=1).of(5) == [2]
        and Selection(per_clip=2).of(8) == [2, 6]
        and Selection(per_clip=9).of(3) == [0, 1, 2]
    )
    for wrong in ({}, {"stride": 1, "per_clip": 1}, {"stride": 0}):
        with pytest.raises(
            ValueError, match=r"data\.stride=.* and data\.per_clip=.*: expected one positive number and one null"
        ):
            Selection(**wrong)


# UBC Fashion.


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for name in ("91a.mp4", "B7+.mp4"):
        video(tmp_path / "test" / name)
    return tmp_path


def test_frames_come_out_of_videos(fashion: Path) -> None:
    entries, defects = listed(UBCFashion(fashion, stride=2, poses=None, prompt="a woman in {clip}"))
    assert [entry.id for entry in entries] == [
        f"ubc_fashion/{clip}/{number:08d}" for clip in ("91a", "B7+") for number in (0, 2, 4)
    ] and not defects
    for entry in entries:
        image = cv2.imread(str(fashion / entry.place.file))
        assert image.shape == (*SIZE, 3) and number_of(image) == entry.attributes["frame"]
        assert entry.prompt == f"a woman in {entry.attributes['clip']}" and entry.keypoints.shape == (0, 17, 3)
        assert entry.attributes["frames"] == SELECTION
    manifest = json.loads((fashion / "frames/stride_2/test/91a/clip.json").read_text())
    assert manifest["frames"] == [0, 2, 4] and manifest["video"] == "91a.mp4" and manifest["opencv"] == cv2.__version__
    assert manifest["selection"] == {"stride": 2, "per_clip": None}


def test_what_is_extracted_is_kept_as_long_as_the_video_is_the_same(
    fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    extract = clips.extract_video
    monkeypatch.setattr(clips, "extract_video", lambda file, *rest: done.append(file.stem) or extract(file, *rest))
    source = UBCFashion(fashion, per_clip=2, poses=None)
    first = listed(source)[0]
    assert done == ["91a", "B7+"] and len(listed(source)[0]) == 4 and done == ["91a", "B7+"]
    video(fashion / "test/B7+.mp4", 3)
    (Path(fashion / first[0].place.file)).unlink()
    assert [e.attributes["frame"] for e in listed(source)[0]] == [1, 3, 0, 2] and sorted(done[2:]) == ["91a", "B7+"]
    cut = fashion / listed(source)[0][0].place.file
    cut.write_bytes(cut.read_bytes()[:-9])
    assert len(listed(source)[0]) == 4 and len(done) == 5, "a picture that is cut off is extracted again"


def test_an_interruption_loses_the_clip_at_hand_alone(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = cv2.imencode, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return encode(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(clips.cv2, "imencode", interrupted)
    source = UBCFashion(fashion, stride=1, poses=None)
    with pytest.raises(KeyboardInterrupt):
        listed(source)
    assert [folder.name for folder in (fashion / "frames/stride_1/test").iterdir()] == ["91a"]
    assert len(listed(source)[0]) == 10 and len(calls) == 7 + 5


def test_videos_that_cannot_be_decoded_are_named_and_the_rest_is_read(fashion: Path) -> None:
    (fashion / "test/broken.mp4").write_bytes((fashion / "test/91a.mp4").read_bytes()[:200])
    entries, defects = listed(UBCFashion(fashion, per_clip=1, poses=None))
    assert len(entries) == 2 and [(d.file, d.problem) for d in defects] == [
        ("test/broken.mp4", "cannot be decoded (no frames)")
    ]


def test_folders_of_frames_stand_in_for_videos(tmp_path: Path) -> None:
    pictures(tmp_path / "test_256/train_A/91a", 5, "{:05d}.png")
    (tmp_path / "test_256/train_A/empty").mkdir()
    entries, defects = listed(UBCFashion(tmp_path, {"test": "test_256/train_A"}, stride=2, poses=None))
    assert [entry.place.file for entry in entries] == [f"test_256/train_A/91a/{n:05d}.png" for n in (0, 2, 4)]
    assert [(d.file, d.problem) for d in defects] == [("test_256/train_A/empty", "no frames in it")]
    with pytest.raises(
        FileNotFoundError, match=r"data\.folders\.train: there is no folder .*train; expected one with the mp4 files"
    ):
        listed(UBCFashion(tmp_path, stride=1, poses=None), "train")


# Poses and prompts.


def test_poses_and_prompts_belong_to_frames(tmp_path: Path) -> None:
    root = davis(tmp_path)
    files = {f"JPEGImages/480p/{clip}/{n:05d}.jpg": n % 3 for clip in ("breakdance", "judo") for n in range(3)}
    poses(root, files)
    (root / "prompts.csv").write_text('judo,"two people, fighting"\nJPEGImages/480p/judo/00002.jpg,two people\n')
    entries, _ = listed(DAVIS(root, stride=1, prompts="prompts.csv", prompt="{clip}"))
    assert {e.place.file: len(e.keypoints) for e in entries} == files | {
        f"JPEGImages/480p/breakdance/{n:05d}.jpg": 0 for n in (3, 4)
    }
    assert [e.prompt for e in entries] == ["breakdance"] * 5 + ["two people, fighting"] * 2 + ["two people"]
    assert entries[1].keypoints[0, 0].tolist() == pytest.approx([10, 20, 0.9]) and entries[1].size == SIZE
    assert entries[1].areas is not None and entries[1].areas.tolist() == [400]


def test_missing_poses_and_prompts_are_named(tmp_path: Path) -> None:
    root = davis(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"data\.poses=poses\.json: there is no .*find them with `posegen annotate`.*data\.poses=null",
    ):
        listed(DAVIS(root, stride=1))
    with pytest.raises(
        FileNotFoundError, match=r"data\.prompts=p\.csv: there is no .*expected a csv file of clip,prompt"
    ):
        listed(DAVIS(root, stride=1, poses=None, prompts="p.csv"))
    (root / "p.csv").write_text("judo,a,b\n")
    with pytest.raises(ValueError, match=r"p\.csv: a line has 3 values .*quotes around a prompt with commas"):
        listed(DAVIS(root, stride=1, poses=None, prompts="p.csv"))
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: no such folder"):
        DAVIS(tmp_path / "nowhere", stride=1)


def test_samples_are_read_and_say_whose_choice_they_are(tmp_path: Path) -> None:
    root = davis(tmp_path / "davis")
    poses(root, {f"JPEGImages/480p/judo/{n:05d}.jpg": 1 for n in range(3)})
    data = RealData(DAVIS(root, stride=2), "test", 32, cache=tmp_path / "cache", workers=1)
    data.prepare()
    assert [number_of(sample.image) for sample in (data[i] for i in range(len(data))) if sample.image is not None] == [
        0,
        2,
        4,
        0,
        2,
    ]
    assert [len(data[i].keypoints) for i in range(len(data))] == [0, 0, 0, 1, 1]
    assert (
        data[0].attributes["frames"] == SELECTION == data.source.identity("test")["remark"]
        and data[0].attributes["scenario"] == "breakdance"
    )
    assert data.condition.facts["scenarios"] == {"breakdance": 3, "judo": 2}


def test_the_identity_tells_choices_apart(tmp_path: Path) -> None:
    root = davis(tmp_path)
    poses(root, {})
    sources = [
        DAVIS(root, stride=1),
        DAVIS(root, stride=2),
        DAVIS(root, stride=1, prompt="a"),
        DAVIS(root, stride=1, sequences=["judo"]),
    ]
    identities = [json.dumps(source.identity("test")) for source in sources]
    poses(root, {"JPEGImages/480p/judo/00000.jpg": 1})
    assert len({*identities, json.dumps(sources[0].identity("test"))}) == 5


# DAVIS.


def test_sequences_with_people_can_be_chosen(tmp_path: Path) -> None:
    root = davis(tmp_path)
    assert {e.attributes["clip"] for e in listed(DAVIS(root, stride=1, poses=None))[0]} == {"breakdance", "judo"}
    assert {e.attributes["clip"] for e in listed(DAVIS(root, stride=1, poses=None, sequences=["judo"]))[0]} == {"judo"}
    assert {e.attributes["clip"] for e in listed(DAVIS(root, stride=1, poses=None), "train")[0]} == {"bear"}
    assert DAVIS(root, stride=1).expected("validation") == {"entries": 1999} and not DAVIS(root, stride=2).expected(
        "validation"
    )


def test_sequences_that_are_missing_are_named(tmp_path: Path) -> None:
    root = davis(tmp_path)
    with (root / "ImageSets/2017/val.txt").open("a") as file:
        file.write("parkour\n")
    entries, defects = listed(DAVIS(root, per_clip=1, poses=None))
    assert len(entries) == 2 and [(d.file, d.problem) for d in defects] == [("JPEGImages/480p/parkour", "missing")]
    with pytest.raises(FileNotFoundError, match=r"data\.resolution=Full-Resolution: there is no folder"):
        listed(DAVIS(root, "Full-Resolution", stride=1, poses=None))
    (root / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing, the list of the clips; DAVIS 2017 brings it"):
        listed(DAVIS(root, stride=1, poses=None))


# DanceTrack.


def test_dancers_have_boxes(tmp_path: Path) -> None:
    root = dance_track(tmp_path)
    entries, defects = listed(DanceTrack(root, stride=2, poses=None))
    assert [entry.id for entry in entries] == [
        f"dance_track/dancetrack000{clip}/{n:08d}" for clip in (4, 5) for n in (1, 3)
    ] and not defects
    assert all(
        entry.attributes["boxes"] == {"1": [10, 5, 8, 30], "2": [20, 5, 8, 30]} and entry.size == SIZE
        for entry in entries
    )
    hidden, defects = listed(DanceTrack(root, part="test", stride=1, poses=None))
    assert len(hidden) == 4 and "boxes" not in hidden[0].attributes and not defects


def test_boxes_that_are_missing_or_damaged_cost_no_frames(tmp_path: Path) -> None:
    root = dance_track(tmp_path)
    (root / "val/dancetrack0004/gt/gt.txt").unlink()
    (root / "val/dancetrack0005/gt/gt.txt").write_text("1,1,5,5,8,30,1,1,1\n1,2,five,5,8,30,1,1,1\n")
    (root / "val/dancetrack0005/seqinfo.ini").unlink()
    entries, defects = listed(DanceTrack(root, stride=1, poses=None))
    assert len(entries) == 8 and entries[-1].size is None and not any("boxes" in e.attributes for e in entries)
    assert [(d.file, d.fatal) for d in defects] == [(f"val/dancetrack000{n}/gt/gt.txt", False) for n in (4, 5)]
    assert defects[0].problem == "missing" and defects[1].problem.startswith("line 2 is '1,2,five")
    (root / "val_seqmap.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"val_seqmap\.txt is missing, the list of the clips; DanceTrack brings it"
    ):
        listed(DanceTrack(root, stride=1, poses=None))
