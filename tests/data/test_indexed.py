"""Human-Art trees in both layouts, with planted defects: checked, indexed, cut and read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posegen.data.formats.human_art import HumanArt
from posegen.data.formats.single_person import SinglePerson
from posegen.data.on_disk import image_scan
from posegen.data.on_disk.images import read_image
from posegen.data.on_disk.indexed import RealData
from posegen.data.on_disk.source import FileSpan
from posegen.data.on_disk.transforms import Corrected
from posegen.io.pictures import decode_image
from posegen.runner.batches import Needs
from posegen.train.training_batches import EpochBatches, training_loader
from tests.data.trees import Planted, human_art

LAYOUTS = ("annotation", "mapping")


@pytest.fixture(scope="module", params=LAYOUTS)
def spoilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Planted]:
    """A tree with defects, its layout, and what is wrong with it."""
    root = tmp_path_factory.mktemp(request.param) / "HumanArt"
    return root, request.param, human_art(root, layout=request.param, defects=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree without defects."""
    human_art(tmp_path / "HumanArt", scenarios=2, per_scenario=4, size=(72, 100))
    return tmp_path / "HumanArt"


def data_of(root: Path, split: str = "test", poses: Any = "annotation", **options: Any) -> RealData:
    return RealData(HumanArt(root, poses, holdout=0.3), split, 64, cache=root.parent / "cache", **options)


# Checking.


def test_every_planted_defect_is_reported_and_the_rest_goes_on(spoilt: tuple[Path, str, Planted]) -> None:
    root, layout, planted = spoilt
    data = data_of(root, poses=layout)
    data.prepare()
    condition = data.condition
    left_out = {defect.file: defect.problem for defect in condition.defects if defect.fatal}
    remarks = {defect.file: defect.problem for defect in condition.defects if not defect.fatal}
    assert left_out.keys() == planted.left_out.keys() and remarks.keys() == planted.remarks.keys()
    for file, problem in (planted.left_out | planted.remarks).items():
        assert problem in (left_out | remarks)[file]
    if planted.trap:
        assert not planted.trap.exists()
    assert len(data) == 57 - len(planted.left_out) == condition.facts["images"]
    assert condition.facts["modes"] == {"RGB": len(data) - 3, "L": 1, "CMYK": 1, "RGBA": 1}
    assert condition.facts["nose_above_hips"] > 0.1 and condition.facts["joints_inside"] > 0.99
    assert any("the released list has 4,750" in warning for warning in condition.warnings)
    files = {data.read[0][i].place.file for i in range(len(data))}
    assert files >= {*planted.fine, *planted.remarks} and not files & planted.left_out.keys()


def test_both_layouts_have_the_same_pictures_under_the_same_ids(tmp_path: Path) -> None:
    sets = []
    for layout in LAYOUTS:
        human_art(tmp_path / layout, scenarios=3, layout=layout)
        sets.append(data_of(tmp_path / layout, "train", layout))
    one, other = sets
    assert [s.id for s in one] == [s.id for s in other] and one.prompts == other.prompts
    assert (
        one[0].id.startswith("human_art/1000000000")
        and one[0].prompt.startswith("cartoon, ")
        and one[0].attributes["scenario"] == "cartoon"
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.keypoints[..., :2], b.keypoints[..., :2])
        np.testing.assert_allclose(a.areas, b.areas, rtol=1e-5)
        np.testing.assert_array_equal(a.image, b.image)
    assert one.identity != other.identity  # the poses are scored here and marked as visible there


def test_lists_have_other_names_and_one_file_per_scenario(tmp_path: Path) -> None:
    root = tmp_path / "HumanArt"
    human_art(root, scenarios=2, layout="mapping")
    (root / "mapping_file_validation.json").rename(root / "mapping_validation.json")
    assert len(data_of(root, poses="mapping")) == 6
    human_art(root, scenarios=2)
    whole = root / "annotations" / "validation_humanart.json"
    content = json.loads(whole.read_text())
    for name in ("cartoon", "digital_art"):
        images = [image for image in content["images"] if name in image["file_name"]]
        (root / "annotations" / f"validation_humanart_{name}.json").write_text(
            json.dumps({**content, "images": images})
        )
    (root / "annotations" / "validation_humanart_coco.json").write_text("not to be read")
    ids = [sample.id for sample in data_of(root)]
    whole.unlink()
    assert [sample.id for sample in data_of(root)] == ids


def test_a_held_out_part_of_the_training_list_is_the_validation_split(tree: Path) -> None:
    train, validation, test = ({s.id for s in data_of(tree, split)} for split in ("train", "validation", "test"))
    assert train and validation and not train & validation and len(train | validation) == 8 and len(test) == 8
    same = RealData(HumanArt(tree, holdout=0.0), "validation", 64, cache=tree.parent / "cache")
    assert {s.id for s in same} == test


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda image, people: image.update(height=10), "is 100 x 72 pixels, listed as 100 x 10"),
        (lambda image, people: image.pop("description"), "not as in COCO's format"),
        (lambda image, people: people[0]["keypoints"].pop(), "not as in COCO's format"),
        (lambda image, people: people[0]["keypoints"].__setitem__(0, float("nan")), "a joint is not a number"),
        (
            lambda image, people: image.update(file_name="HumanArt/images/../../secret.jpg"),
            "leads out of the data set's folder",
        ),
        (lambda image, people: image.update(id=None), "used twice"),
    ],
)
def test_entries_that_cannot_be_used_are_named(tree: Path, spoil: Any, problem: str) -> None:
    (tree.parent / "secret.jpg").write_bytes(next(tree.rglob("*.jpg")).read_bytes())
    file = tree / "annotations" / "validation_humanart.json"
    content = json.loads(file.read_text())
    images = content["images"]
    spoil(images[3], [row for row in content["annotations"] if row["image_id"] == images[3]["id"]])
    images[3]["id"] = images[3]["id"] or images[2]["id"]
    file.write_text(json.dumps(content))
    data = data_of(tree)
    assert len(data) == 7
    [defect] = [defect for defect in data.condition.defects if defect.fatal]
    assert problem in defect.problem and Path(images[3]["file_name"]).name in defect.file


def test_poses_of_other_pictures_are_noticed(tree: Path) -> None:
    file = tree / "annotations" / "validation_humanart.json"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["keypoints"][0::3], row["keypoints"][1::3] = (
            [y + 90 for y in row["keypoints"][1::3]],
            [100 - x for x in row["keypoints"][0::3]],
        )
    file.write_text(json.dumps(content))
    warnings = " ".join((data := data_of(tree)).prepare() or data.condition.warnings)
    assert "of the joints lie on their pictures" in warnings


def test_errors_say_what_to_do(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*: there is no folder images in it; did you mean .*HumanArt\?"):
        HumanArt(tree.parent)
    with pytest.raises(
        FileNotFoundError,
        match=r"has no list for test: expected mapping_file_validation\.json or .* choose data\.poses=annotation",
    ):
        len(data_of(tree, poses="mapping"))
    with pytest.raises(ValueError, match=r"data\.test\.count=9: human_art has 8 pictures that can be used"):
        len(data_of(tree, count=9))
    for file in tree.rglob("*.jpg"):
        file.write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match=r"no picture of .* can be used; 8 defects, such as .*\.jpg: cannot be decoded"
    ):
        data_of(tree).prepare()


# Again, and interrupted.


def test_an_interruption_loses_little_and_a_second_run_opens_what_changed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[FileSpan] = []
    look = image_scan.scan_image

    def interrupted(root: Path, place: FileSpan, listed: Any) -> image_scan.ScannedImage:
        if len(opened) == 5:
            raise KeyboardInterrupt
        opened.append(place)
        return look(root, place, listed)

    monkeypatch.setattr(image_scan, "CHUNK_IMAGES", 1)
    monkeypatch.setattr(image_scan, "scan_image", interrupted)
    data = data_of(tree)
    with pytest.raises(KeyboardInterrupt):
        data.prepare()
    with (data.folder / "looks.jsonl").open("a") as file:
        file.write('{"place": ["images/2D_vir')  # as if in the middle of a line
    monkeypatch.setattr(image_scan, "scan_image", lambda *given: opened.append(given[1]) or look(*given))
    data.prepare()
    assert len(opened) == 8 == len(set(opened)) == len(data)
    before = {file: file.stat().st_mtime_ns for file in data.folder.iterdir() if not file.name.startswith(".")}
    data_of(tree).prepare()
    assert len(opened) == 8 and before == {file: file.stat().st_mtime_ns for file in before}
    content = data.identity["content"]
    Image.new("RGB", (100, 72), "red").save(tree / opened[0].file)
    (tree / opened[1].file).unlink()
    data.prepare()
    assert [*opened[8:]] == opened[:2] and len(data) == 7 and data.identity["content"] != content
    assert [defect.problem for defect in data.condition.defects] == ["missing"]


def test_an_interrupted_second_run_does_not_pass_for_a_finished_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(tree)
    data.prepare()
    Image.new("RGB", (100, 72), "red").save(tree / data.read[0][0].place.file)
    content = data.identity["content"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("posegen.data.on_disk.indexed.split_facts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        data.prepare()
    data.prepare()
    assert data.identity["content"] != content and data.condition.facts["content"] == data.identity["content"]


def test_pose_files_that_were_missing_are_looked_for_again(tmp_path: Path) -> None:
    root = tmp_path / "HumanArt"
    human_art(root, scenarios=1, layout="mapping")
    pose = sorted((root / "pose").rglob("*.npz"))[-1]
    content = pose.read_bytes()
    pose.unlink()
    data = data_of(root, poses="mapping")
    assert len(data) == 2
    pose.write_bytes(content)
    data.prepare()
    assert len(data) == 3 and not data.condition.defects


def test_pictures_are_opened_in_several_processes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_scan, "CHUNK_IMAGES", 2)
    alone = data_of(tree).identity
    monkeypatch.setattr(image_scan, "FEW_IMAGES", 0)
    data = RealData(HumanArt(tree, holdout=0.3), "test", 64, cache=tree.parent / "other cache", workers=2)
    assert data.identity == alone


# Reading.


def test_data_counts_by_content_and_not_by_place(tree: Path, tmp_path: Path) -> None:
    there = tree.rename(tmp_path / "elsewhere")
    moved = data_of(there)
    human_art(tmp_path / "again" / "HumanArt", scenarios=2, per_scenario=4, size=(72, 100))
    again = data_of(tmp_path / "again" / "HumanArt")
    assert moved.identity == again.identity and moved.folder != again.folder
    assert moved.identity != data_of(there, count=5).identity != data_of(there, transform="reference").identity
    caption = json.loads((there / "annotations" / "validation_humanart.json").read_text())
    caption["images"][0]["description"] = "cartoon, somebody else"
    (there / "annotations" / "validation_humanart.json").write_text(json.dumps(caption))
    assert data_of(there).identity["content"] != again.identity["content"]


def test_samples_are_the_stored_pictures(tree: Path) -> None:
    data = data_of(tree)
    sample = data[2]
    assert sample.image is not None and sample.image.shape == (64, 64, 3) and sample.size == (64, 64) == data.size
    assert sample.whole is not None and sample.whole().shape == (72, 100, 3)
    view = Corrected().view(sample.id, 0, (72, 100), (64, 64))
    np.testing.assert_array_equal(sample.image, view.pixels(sample.whole()))
    assert sample.attributes["crop"] == view.crop and sample.keypoints.dtype == np.float32
    stored = data.read[0][2]
    np.testing.assert_allclose(sample.areas, stored.areas[: len(sample.areas)] * (64 / 72) * view.scale[0], rtol=1e-5)
    with pytest.raises(IndexError):
        data[8]


def test_captions_and_poses_are_known_without_opening_a_picture(tree: Path) -> None:
    data = data_of(tree)
    expected = [(s.prompt, s.keypoints) for s in data]
    for file in tree.rglob("*.jpg"):
        file.unlink()
    assert data.prompts == [prompt for prompt, _ in expected]
    seen = [data.seen(i, image=False) for i in range(len(data))]
    assert all(s.image is None and np.array_equal(s.keypoints, k) for s, (_, k) in zip(seen, expected, strict=True))
    alone = SinglePerson(data)
    assert len(alone) == sum(len(k) == 1 for _, k in expected) and alone.seen(0, image=False).image is None
    with pytest.raises(
        ValueError,
        match=r"\.jpg is missing; it was there when .* prepared: bring it back, or run `posegen prepare` again",
    ):
        data[0]


def test_fewer_are_taken_evenly_and_are_part_of_more(spoilt: tuple[Path, str, Planted]) -> None:
    root, layout, _ = spoilt
    ids = [
        [s.id for s in (d.seen(i, image=False) for i in range(len(d)))]
        for n in (6, 20, None)
        if (d := data_of(root, "train", layout, count=n))
    ]
    few, more, every = ids
    assert len(few) == 6 and len(more) == 20 and set(few) < set(more) < set(every)
    assert [i for i in every if i in set(more)] == more  # in their order
    assert len({i[10:-12] for i in few}) >= 4  # scenarios


def test_random_parts_differ_by_visit_and_are_repeatable(tree: Path) -> None:
    data = data_of(tree, transform="reference")
    crops = [[data.seen(i, visit, image=False).attributes["crop"] for i in range(8)] for visit in (0, 1, 0)]
    assert crops[0] == crops[2] != crops[1] and data[0].attributes["crop"] == crops[0][0]


def test_workers_read_the_same(tree: Path) -> None:
    data = data_of(tree, transform="humansd")
    copy = pickle.loads(pickle.dumps(data))
    assert copy._read is None and copy.identity == data.identity
    needs = Needs(frozenset({"images"}))
    batches = []
    for workers in (0, 2):
        order, seen = EpochBatches(len(data), 3, seed=0), []
        loader = training_loader(data, needs, order, workers)
        for epoch in (0, 1):
            order.set_epoch(epoch)
            seen += loader
        assert len(seen) >= 4
        batches.append(seen)
    for one, other in zip(*batches, strict=True):
        assert one.ids == other.ids and one.images.equal(other.images) and one.visit == other.visit
        assert all(np.array_equal(a, b) for a, b in zip(one.keypoints, other.keypoints, strict=True))
    first, second = (
        {
            i: image
            for batch in batches[0]
            if batch.visit == visit
            for i, image in zip(batch.ids, batch.images, strict=True)
        }
        for visit in (0, 1)
    )
    assert any(not first[i].equal(second[i]) for i in first.keys() & second.keys())


# Pictures.


def test_colours_of_all_modes(tmp_path: Path) -> None:
    gradient = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colour = np.stack([gradient, gradient.T, 255 - gradient], -1)
    image = Image.fromarray(colour)
    grey = np.asarray(image.convert("L"))[..., None].repeat(3, 2)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(gradient > 100, 255, 0).astype(np.uint8)))
    on_white = np.where(gradient[..., None] > 100, colour, 255)
    cases: dict[str, tuple[Image.Image, np.ndarray, int]] = {
        "rgb.png": (image, colour, 0),
        "grey.png": (image.convert("L"), grey, 0),
        "sixteen.png": (Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), grey, 0),
        "alpha.png": (clear, on_white, 1),
        "alpha.webp": (clear, on_white, 60),
        "palette.png": (image.quantize(64), colour, 40),
        "transparent.png": (Image.fromarray(gradient // 16, "P"), np.zeros(0), 0),
        "ink.tif": (
            Image.merge("CMYK", [Image.fromarray(255 - colour[..., i]) for i in range(3)] + [Image.new("L", (8, 8))]),
            colour,
            1,
        ),
        "two.png": (image.convert("1"), np.asarray(image.convert("1").convert("RGB")), 0),
    }
    for name, (stored, expected, tolerance) in cases.items():
        stored.save(
            tmp_path / name,
            **({"transparency": 0} if name == "transparent.png" else {}),
            **({"lossless": True} if "webp" in name else {}),
        )
        read = decode_image((tmp_path / name).read_bytes())
        assert read.dtype == np.uint8 and read.shape == (8, 8, 3), name
        if expected.size:
            assert np.abs(read.astype(int) - expected).max() <= tolerance, name
    assert (decode_image((tmp_path / "transparent.png").read_bytes())[0, 0] == 255).all()


def test_pictures_are_turned_as_listed(tmp_path: Path) -> None:
    lying = np.zeros((6, 10, 3), np.uint8)
    lying[:, 0] = 255  # the left edge, which is the upper one after turning
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "turned.png", exif=exif)
    data = (tmp_path / "turned.png").read_bytes()
    turned = decode_image(data)
    assert turned.shape == (10, 6, 3) and (turned[0] == 255).all() and not turned[1:].any()
    assert decode_image(data, (10, 6)).shape == (10, 6, 3)
    np.testing.assert_array_equal(decode_image(data, (6, 10)), lying)


def test_parts_of_a_file_are_read_where_they_lie(tree: Path) -> None:
    one, two = sorted(tree.rglob("*.jpg"))[:2]
    (tree / "both.bin").write_bytes(one.read_bytes() + two.read_bytes())
    place = FileSpan("both.bin", one.stat().st_size, two.stat().st_size)
    np.testing.assert_array_equal(read_image(tree, place), read_image(tree, FileSpan(str(two.relative_to(tree)))))
    with pytest.raises(ValueError, match=r"both\.bin at byte .* ends after"):
        read_image(tree, FileSpan("both.bin", place.offset, place.length + 1))
