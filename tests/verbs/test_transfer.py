"""``posegen transfer``: pixels outside the mask stay, records say what came out, and what cannot be used is said before
weights are read."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra.utils import instantiate

from posegen.cli import main
from posegen.data.base import PoseData
from posegen.io.atomic import read_json
from posegen.runner.images import picture, read_png, write_png
from tests.runner.test_prompts import pose_file
from tests.tiny import configured
from tests.verbs.test_own_people import method, picture_of  # noqa: F401  (a fixture)


@pytest.fixture
def words(method: Path, world: list[str], tmp_path: Path) -> list[str]:  # noqa: F811
    return ["transfer", *world, f"checkpoint={method}", f"paths.output={tmp_path / 'outputs'}", "data.test.count=30"]


def cell(tmp_path: Path, study: str = "transfer") -> Path:
    [status] = (tmp_path / "outputs" / study).rglob("status.json")
    return status.parent


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def own(tmp_path: Path, size: tuple[int, int] = (50, 70)) -> list[str]:
    """A picture, a mask and two sources of other sizes."""
    mask = np.zeros((*size, 3), np.uint8)
    mask[10:30, 20:45] = 255
    for name, image in {
        "me": picture_of(0, size),
        "mask": mask,
        "red": picture_of(1, (20, 90)),
        "blue": picture_of(2),
    }.items():
        write_png(tmp_path / f"{name}.png", image)
    return [f"{key}={tmp_path / name}.png" for key, name in (("picture", "me"), ("mask", "mask"), ("source", "red"))]


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_acceptance_10_people_of_the_world_keep_every_pixel_outside_the_mask(
    words: list[str], tmp_path: Path, sampler: str
) -> None:
    assert main([*words, "count=5", f"sampler={sampler}", "sampler.steps=5", "dilate=2", "soft=1"]) == 0
    folder = cell(tmp_path)
    with configured("transfer", *words[1:]) as cfg:
        data: PoseData = instantiate(cfg.data.test, _convert_="all")
    people = data.transfers(5, "clothes")
    for i in range(5):
        made, before, mask = read_png(picture(folder / "samples", i)), people.picture_of(i), people.mask_of(i)
        assert np.array_equal(made[~mask], before[~mask]) and not np.array_equal(made[mask], before[mask])
    records, summary = rows(folder / "records.csv"), {row["column"]: row for row in rows(folder / "summary.csv")}
    assert [row["id"] for row in records] == [people[i].id for i in range(5)] and {
        row["outside_max_difference"] for row in records
    } == {"0.0000"}
    assert records[0]["source"] == people.source_of(0).id
    for name in ("to_style", "to_wrong_style", "picture_to_style", "gain", "margin", "follows"):
        mean = np.mean([float(row[name]) for row in records])
        assert float(summary[name]["mean"]) == pytest.approx(mean, abs=1e-3)
        assert (
            float(summary[name]["lo"]) <= mean + 1e-3
            and mean - 1e-3 <= float(summary[name]["hi"])
            and summary[name]["n_images"] == "5"
        )
    assert read_png(folder / "comparison.png").shape[1] == 5 * 192


def test_it_continues_where_it_was_interrupted_and_shares(words: list[str], tmp_path: Path) -> None:
    for shard in (0, 1):
        assert main([*words, "count=6", "shards=2", f"shard={shard}"]) == 0
    folder = cell(tmp_path)
    shared = [picture(folder / "samples", i).read_bytes() for i in range(6)]
    assert read_json(folder / "status.json")["state"] == "finished"
    assert main([*words, "count=6", "study=alone"]) == 0
    assert [picture(cell(tmp_path, "alone") / "samples", i).read_bytes() for i in range(6)] == shared
    assert main([*words, "count=6", "dilate=0", "study=narrow"]) == 0
    record = read_json(cell(tmp_path, "narrow") / "status.json")["identity"]["transfer"]
    assert record == {
        "count": 6,
        "garment": "clothes",
        "told": False,
        "dilate": 0,
        "soft": 0,
    }


def test_acceptance_10_an_own_picture_keeps_its_size_and_every_pixel_outside_the_mask(
    words: list[str], tmp_path: Path
) -> None:
    files = own(tmp_path)
    assert main([*words, *files, f"poses={pose_file(tmp_path)}", "prompt=photo", "images=2"]) == 0
    folder = cell(tmp_path)
    before, mask = read_png(tmp_path / "me.png"), read_png(tmp_path / "mask.png").any(-1)
    made = [read_png(picture(folder / "samples", i)) for i in range(2)]
    assert all(each.shape == before.shape and np.array_equal(each[~mask], before[~mask]) for each in made)
    assert not np.array_equal(made[0], made[1]) and {
        row["outside_max_difference"] for row in rows(folder / "records.csv")
    } == {"0.0000"}
    several = f"source=[{tmp_path / 'red.png'},{tmp_path / 'blue.png'}]"
    assert main([*words, *files[:2], several, f"poses={pose_file(tmp_path)}", "prompt=photo", "study=several"]) == 0
    assert not np.array_equal(read_png(picture(cell(tmp_path, "several") / "samples", 0)), made[0])
    assert read_png(cell(tmp_path, "several") / "comparison.png").shape[1] == 6 * 192
    identity = read_json(folder / "status.json")["identity"]
    assert len(identity["content"]["test"]) == 3 and identity["data"]["test"]["size"] == [64, 64]
    drawing = np.zeros((50, 70, 3), np.uint8)
    cv2.line(drawing, (20, 10), (40, 40), (255, 0, 0), 2)
    write_png(tmp_path / "skeleton.png", drawing)
    drawn = [*words, *files, f"poses={tmp_path / 'skeleton.png'}", "prompt=photo", "study=drawn"]
    assert main(drawn) == 0
    assert not np.array_equal(read_png(picture(cell(tmp_path, "drawn") / "samples", 0)), made[0])
    identity = read_json(cell(tmp_path, "drawn") / "status.json")["identity"]
    assert len(identity["content"]["test"]) == 4 and identity["data"]["test"]["people"] == []


def test_the_pose_is_read_from_the_picture(words: list[str], tmp_path: Path) -> None:
    with configured("transfer", *words[1:]) as cfg:
        people = instantiate(cfg.data.test, _convert_="all").transfers(1, "clothes")
    large = cv2.resize(people.picture_of(0), (128, 128), interpolation=cv2.INTER_NEAREST)
    write_png(tmp_path / "me.png", large)
    write_png(
        tmp_path / "mask.png",
        people.mask_of(0).repeat(2, 0).repeat(2, 1)[..., None].repeat(3, 2).astype(np.uint8) * 255,
    )
    shipped = [word for word in words if not word.startswith("estimator.folder")]
    files = [f"{key}={tmp_path / name}.png" for key, name in (("picture", "me"), ("mask", "mask"), ("source", "me"))]
    assert main([*shipped, *files]) == 0
    found = np.array(read_json(cell(tmp_path) / "status.json")["identity"]["data"]["test"]["people"])
    seen = (found[0, :, 2] > 0) & (people[0].keypoints[0, :, 2] > 0)
    assert seen.sum() > 10 and np.median(np.linalg.norm((found[0] - people[0].keypoints[0])[seen, :2], axis=-1)) < 3


def test_a_picture_with_nobody_in_it_needs_a_pose(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = own(tmp_path)
    write_png(tmp_path / "me.png", np.full((50, 70, 3), 90, np.uint8))
    assert main([*(word for word in words if not word.startswith("estimator.folder")), *files]) != 0
    assert "the estimator finds nobody in it; set poses=FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mask=null"], "mask is not set; a person of your own needs picture=FILE"),
        (
            ["mask=small.png"],
            "mask=small.png is 8 x 6 pixels and its picture is 70 x 50; expected a mask of the picture's size",
        ),
        (["mask=dark.png"], "mask=dark.png is dark everywhere, so nothing would change"),
        (["mask=light.png"], "mask=light.png is light everywhere, so nothing of the picture would stay"),
        (["source=pose.json"], "source=pose.json is no picture that can be read"),
        (["picture=nowhere.png"], "picture=nowhere.png is no picture that can be read (is missing)"),
        (["adapter=controlnet"], "adapter=controlnet: reads no picture to take clothes from"),
        (["dilate=-1"], "dilate=-1: expected an integer"),
        (["size=63"], "is not a multiple of the backbone's latent factor"),
        (["picture=null", "mask=null", "source=null"], "poses and prompt belong to a picture, and there is none"),
        (
            ["picture=null", "mask=null", "source=null", "poses=null", "count=99"],
            "people to dress; raise data.test.count",
        ),
        (
            ["picture=null", "mask=null", "source=null", "poses=null", "garment=hat"],
            "garment=hat: expected one of clothes, shirt, trousers",
        ),
    ],
)
def test_what_cannot_be_used_is_said(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    message: str,
) -> None:
    files = own(tmp_path)
    monkeypatch.chdir(tmp_path)
    pose_file(tmp_path)
    for name, image in {
        "small": np.zeros((6, 8, 3)),
        "dark": np.zeros((50, 70, 3)),
        "light": np.full((50, 70, 3), 255),
    }.items():
        write_png(tmp_path / f"{name}.png", image.astype(np.uint8))
    assert main([*words, *files, "poses=pose.json", *changes]) != 0
    assert message in capsys.readouterr().err
