"""DeepFashion and Market-1501 in their usual layouts: the same records from each, and every defect by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posegen.data.base import Sample
from posegen.data.formats.deepfashion import DeepFashion, FashionName, flat_name
from posegen.data.formats.market1501 import Market1501, market_name
from posegen.data.formats.pair_files import joints_in
from posegen.data.formats.pairs import Pairs, Pictures
from posegen.poses.topology import COCO_FLIP, COCO_NAMES, OPENPOSE_NAMES
from posegen.runner.batches import Needs
from posegen.train.training_batches import EpochBatches, training_loader
from tests.data.person_trees import Person, annotation, deepfashion, market1501, pairs_of

SIZE = (256, 176)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Person]]]:
    """A tree that nobody changes."""
    root = tmp_path_factory.mktemp("deepfashion")
    return root, deepfashion(root)


def data_of(
    root: Path,
    split: str = "train",
    source: dict[str, Any] | None = None,
    holdout: float = 0.0,
    size: Any = SIZE,
    **options: Any,
) -> Pairs:
    return Pairs(
        DeepFashion(root, **(source or {})),
        split,
        size,
        "a person",
        holdout,
        cache=root.parent / f"{root.name} cache",
        **options,
    )


def problems(data: Pairs, fatal: bool = True) -> dict[str, str]:
    """What is wrong with the pictures and the pairs."""
    found = [*data.pictures.condition.defects, *data.condition.defects]
    assert len({defect.file for defect in found}) == len(found)
    return {defect.file: defect.problem for defect in found if defect.fatal == fatal}


def warnings(data: Pairs) -> list[str]:
    return [*data.pictures.condition.warnings, *data.condition.warnings]


# Names.


def test_flat_names_and_paths_are_the_same_names() -> None:
    name = "fashionWOMENBlouses_Shirtsid0000069302_3back"
    path = "WOMEN/Blouses_Shirts/id_00000693/02_3_back"
    for text in (
        name,
        f"{name}.jpg",
        f"{path}.jpg",
        f"img/{path}.png",
        f"img_highres\\{path.replace('/', chr(92))}.JPG",
        f"train_highres/{name}.png",
        path,
    ):
        assert flat_name(text) == name
    assert (
        FashionName.of(name) == ("WOMEN", "Blouses_Shirts", "00000693", "02", "3", "back")
        and FashionName.of(name).path == path
    )
    assert FashionName.of("fashionMENDenimid0000008001_7additional.jpg").path == "MEN/Denim/id_00000080/01_7_additional"
    assert not any(
        map(
            flat_name,
            ("", "0002_c1s1_000451_03.jpg", "fashionWOMENDressesid000069302_3back.jpg", "WOMEN/Dresses/02_3_back.jpg"),
        )
    )
    assert (
        market_name("0002_c1s1_000451_03.jpg")
        == market_name("market/train/0002_c1s1_000451_03.jpg.jpg")
        == "0002_c1s1_000451_03"
    )
    assert market_name("-1_c1s1_000451_03.jpg") and not market_name("thumbs.db")


# Forms.


@pytest.mark.parametrize("size", [(256, 176), (512, 352)])
@pytest.mark.parametrize("form", ["csv", "txt", "json", "flat", "png", "bars", "bars txt", "large"])
def test_every_form_gives_the_same_pairs_with_joints_where_the_person_is(
    form: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Joints are compared with the drawn ones, at the size of the sample; a joint's colour is the pixel below it."""
    barred, poses = "bars" in form, "txt" if "txt" in form else "csv"
    images = {"png": "png", "large": "fashion/img_highres"}.get(form, "img")
    people = deepfashion(
        tmp_path, (2, 1), (550, 374) if form == "large" else (110, 75), images, flat=form == "flat", bars=barred
    )
    kind = form if form in ("csv", "txt", "json") else "auto"
    data = data_of(tmp_path, source={"poses": poses, "pairs": kind, "bars": barred}, size=size)
    data.prepare()
    expected = {f"deepfashion/{a.flat}_2_{b.flat}": (a, b) for a, b in pairs_of(people["train"])}
    assert {sample.id for sample in data} == expected.keys() and len(data) == 12 and set(data.prompts) == {"a person"}
    for i, sample in enumerate(data):
        source = data.source_of(i)
        for seen, one in zip((source, sample), expected[sample.id], strict=True):
            assert (
                seen.size == size
                and seen.image.shape == (*size, 3)
                and seen.prompt == "a person"
                and len(seen.keypoints) == 1
            )
            fits(seen, one, size)
        assert (sample.attributes["source"], sample.attributes["target"]) == (
            source.id.split("/")[1],
            sample.id.partition("_2_")[2],
        )
    assert warnings(data) and not any(
        "of the joints" in w or "shape" in w or "other pairs" in w for w in warnings(data)
    )


def fits(seen: Sample, one: Person, size: tuple[int, int]) -> None:
    order = [OPENPOSE_NAMES.index(name) for name in COCO_NAMES]
    expected = (one.points[order] + 0.5) * np.divide(size[::-1], one.frame[::-1]) - 0.5
    there = (one.points[order] >= 0).all(1)
    assert not there.all() and np.array_equal(seen.keypoints[0, :, 2] > 0, there)
    np.testing.assert_allclose(seen.keypoints[0, there, :2], expected[there], atol=1e-3)
    corner = seen.image[2, 2].astype(int)
    assert np.abs(corner - one.colour).max() < 12  # the right outfit, and no white bar
    x, y = np.rint(expected[COCO_NAMES.index("left_hip")]).astype(int)
    assert np.abs(seen.image[y - 1 : y + 2, x - 1 : x + 2].astype(int) - corner).max() > 40


def test_pictures_are_reduced_as_pillow_does_it(whole: tuple[Path, dict[str, list[Person]]]) -> None:
    data = data_of(whole[0], size=(64, 40))
    sample = data[3]
    stored = Image.fromarray(sample.whole())
    np.testing.assert_array_equal(sample.image, np.asarray(stored.resize((40, 64), Image.Resampling.BICUBIC)))


def test_the_source_is_in_the_batch_with_its_pose(whole: tuple[Path, dict[str, list[Person]]]) -> None:
    data = data_of(whole[0], size=(64, 40))
    batch = next(iter(training_loader(data, Needs(frozenset({"source", "images"})), EpochBatches(len(data), 4, 0))))
    assert batch.source.shape == batch.images.shape == (4, 3, 64, 40) and all(
        k.shape == (1, 17, 3) for k in batch.source_keypoints
    )
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[1].image, data[1].image)
    with pytest.raises(IndexError, match="sample 36 of 36"):
        data.source_of(36)


def test_both_pictures_are_mirrored_together_and_left_becomes_right(
    whole: tuple[Path, dict[str, list[Person]]],
) -> None:
    plain, data = data_of(whole[0]), data_of(whole[0], mirror=0.5)
    assert data.varies and not plain.varies and data.identity != plain.identity
    mirrored = []
    for i in range(12):
        for mine, theirs in ((data.seen(i, 3), plain[i]), (data.source_of(i, 3), plain.source_of(i))):
            turned = np.array_equal(mine.image, theirs.image[:, ::-1])
            assert turned or np.array_equal(mine.image, theirs.image)
            expected = theirs.keypoints[:, list(COCO_FLIP)] * (-1, 1, 1) + (175, 0, 0) if turned else theirs.keypoints
            np.testing.assert_allclose(mine.keypoints, np.where(expected[..., 2:] > 0, expected, 0), atol=1e-3)
            mirrored.append(turned)
    assert mirrored[::2] == mirrored[1::2] and 0 < sum(mirrored[::2]) < 12


# Splits.


def test_a_part_of_the_training_outfits_is_held_out_for_validation(tmp_path: Path) -> None:
    deepfashion(tmp_path, (12, 2))
    train, validation, test = (data_of(tmp_path, split, holdout=0.3) for split in ("train", "validation", "test"))
    groups = [{data.source.group(s.attributes["target"]) for s in data} for data in (train, validation, test)]
    assert (
        groups[0]
        and groups[1]
        and not groups[0] & groups[1]
        and len(groups[0] | groups[1]) == 12
        and len(groups[2]) == 2
    )
    assert len(train) + len(validation) == 72 and len(test) == 12
    real = Pictures(DeepFashion(tmp_path), "train", SIZE, cache=tmp_path.parent / f"{tmp_path.name} cache")
    assert (
        len(real) == 36
        and real[0].id == "deepfashion/" + (tmp_path / "fashion_data/train.lst").read_text().split(".jpg")[0]
    )
    few, fewer = ({s.id for s in data_of(tmp_path, "test", count=count)} for count in (8, 4))
    assert fewer < few and len(few) == 8
    with pytest.raises(ValueError, match=r"data.test.count=13: deepfashion has 12 pairs"):
        len(data_of(tmp_path, "test", count=13))
    with pytest.raises(ValueError, match="holdout=1"):
        data_of(tmp_path, holdout=1)


def test_lines_with_several_sources_are_expanded_or_drawn_from(whole: tuple[Path, dict[str, list[Person]]]) -> None:
    every = data_of(whole[0], source={"pairs": "txt"})
    drawn = data_of(whole[0], source={"pairs": "txt"}, expand="random")
    assert (
        len(every) == 36 and len(drawn) == 18 and len({s.id for s in drawn}) == 18 and every.identity != drawn.identity
    )
    sources = {visit: [drawn.source_of(i, visit).id for i in range(18)] for visit in (0, 1, 2, 3)}
    assert len({tuple(ids) for ids in sources.values()}) > 1 and sources[1] == [
        drawn.source_of(i, 1).id for i in range(18)
    ]
    assert drawn.seen(2, 1).attributes["source"] == sources[1][2].split("/")[1]
    assert {s.id for s in every} == {s.id for s in data_of(whole[0], source={"pairs": "csv"})}


def test_exchanged_source_and_target_are_told_of(tmp_path: Path) -> None:
    deepfashion(tmp_path, (2, 2))
    file = tmp_path / "fashion_data/test_pairs.txt"
    lines = [line.split(",") for line in file.read_text().splitlines()][
        :-1
    ]  # not all, or the set would be its own mirror image
    file.write_text("".join(f"{b},{a}\n" for a, b in lines))
    table = tmp_path / "fashion_data/fasion-resize-pairs-test.csv"
    table.write_text("from,to\n" + "".join(f"{flat_name(b)}.jpg,{flat_name(a)}.jpg\n" for a, b in lines))
    told = data_of(tmp_path, "test", {"pairs": "txt"}).condition.warnings
    assert "test_pairs.txt has other pairs than fasion-resize-pairs-test.csv: source and target are exchanged" in told


def test_what_differs_from_the_release_is_told(whole: tuple[Path, dict[str, list[Person]]]) -> None:
    data = data_of(whole[0], "test", source={"pairs": "csv"})
    data.prepare()
    told = "\n".join(warnings(data))
    for piece in (
        "6 pictures can be used; the released list has 4,038",
        "test.lst has the SHA-256",
        "336650cb7febac6e",
        "has 12 pairs; the released list has 8,570",
    ):
        assert piece in told
    facts = data.condition.facts
    assert (
        facts["pairs"] == 12
        and facts["outfits"] == 2
        and facts["outfits_also_in_train"] == "0 of 2"
        and facts["pair_file"] == "fasion-resize-pairs-test.csv"
    )
    assert (
        facts["pictures"] == 6 == data.pictures.condition.facts["images"]
        and data.pictures.condition.facts["joints_inside"] == 1.0
    )


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"bars": False}, "of another shape than (176, 256): pictures with white bars need data.bars=true"),
        ({"poses": "swapped"}, "x and y are swapped"),
        ({"mixed": True}, "12 of 12 pairs join pictures of different outfits"),
        ({"both": True}, "2 outfits of the test list are in the training list, too"),
    ],
)
def test_suspicious_wholes_are_told_of(options: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    people = deepfashion(tmp_path, (2, 2), bars="bars" in options)
    lists = tmp_path / "fashion_data"
    if options.get("poses"):
        rows = [(f"{one.flat}.jpg", one.points[:, ::-1]) for one in people["test"]]
        (lists / "fasion-resize-annotation-test.csv").write_text(annotation(rows))
    if options.get("mixed"):
        a, b = people["test"][:3], people["test"][3:]
        pairs = [(x, y) for x in a for y in b] + list(zip(b, a, strict=True))
        (lists / "fasion-resize-pairs-test.csv").write_text(
            "from,to\n" + "".join(f"{x.flat},{y.flat}\n" for x, y in pairs)
        )
    if options.get("both"):
        (lists / "train.lst").write_text((lists / "test.lst").read_text())
    data = data_of(tmp_path, "test", size=(64, 40))
    data.prepare()
    assert any(wrong in warning for warning in warnings(data)), warnings(data)


# Defects.


def test_every_defect_is_reported_by_name_and_the_rest_goes_on(tmp_path: Path) -> None:
    people = deepfashion(tmp_path, (3, 1), lines=False)
    lists, train = tmp_path / "fashion_data", people["train"]
    missing, corrupt, nan, nobody, short = train[0], train[1], train[3], train[4], train[6]
    (tmp_path / f"img_highres/{missing.path}.jpg").unlink()
    (tmp_path / f"img_highres/{corrupt.path}.jpg").write_bytes(b"\xff\xd8 no picture")
    table = lists / "fasion-resize-annotation-train.csv"
    rows = table.read_text().splitlines()
    at = {one.flat: i for i, one in enumerate(train, 1)}
    rows[at[nan.flat]] = (
        rows[at[nan.flat]].replace("[", "[NaN, ", 1).replace(", -1]", "]", 1)
        if ", -1]" in rows[at[nan.flat]]
        else rows[at[nan.flat]]
    )
    rows[at[nobody.flat]] = f"{nobody.flat}.jpg: {[-1] * 18}: {[-1] * 18}"
    rows[at[short.flat]] = f"{short.flat}.jpg: [1, 2]: [3, 4]"
    rows[at[train[7].flat]] = (
        rows[at[train[7].flat]].replace("[", "[np.int64(", 1).replace(",", "),", 1)
    )  # as numpy 2 prints a list
    rows += ["half a line", "no name.jpg: [1]: [2]", rows[at[train[8].flat]]]
    table.write_text("\n".join(rows))
    with (lists / "train.lst").open("a") as file:
        file.write("fashionWOMEN.jpg\n")
    with (lists / "fasion-resize-pairs-train.csv").open("a") as file:
        file.write(
            f"{train[7].flat}.jpg,{train[8].flat}.jpg\nfashionWOMEN.jpg,{train[8].flat}.jpg\n{train[7].flat}.jpg\n{train[7].flat}.jpg,{flat_of_none()}\n"
        )
    data = data_of(tmp_path, size=(64, 40))
    data.prepare()
    told = problems(data)
    name = {one.flat: f"img_highres/{one.path}.jpg" for one in train}
    assert (
        told[name[missing.flat]] == "missing"
        and "cannot be decoded" in told[name[corrupt.flat]]
        and told[name[nan.flat]] == "a joint is not a number"
    )
    assert "numbers of the shape [2]; expected 18" in told["fasion-resize-annotation-train.csv: line 8"]
    assert told["fasion-resize-annotation-train.csv: line 11"] == "1 parts between colons; expected 3"
    assert "'no name.jpg' is no name of a picture" in told["fasion-resize-annotation-train.csv: line 12"]
    assert "is listed before" in problems(data, False)["fasion-resize-annotation-train.csv: line 13"]
    assert problems(data, False)[name[nobody.flat]] == "nobody has a pose" == problems(data, False)[name[short.flat]]
    assert (
        "'fashionWOMEN.jpg' is no name" in told["train.lst: line 10"]
        and "is no name" in told["fasion-resize-pairs-train.csv: line 21"]
    )
    assert told["fasion-resize-pairs-train.csv: line 22"] == "a pair of one picture"
    assert told[f"{train[7].flat}_2_{train[8].flat}"].endswith("is listed twice")
    assert told[f"{train[2].flat}_2_{missing.flat}"] == f"{missing.flat} is no usable picture of the list"
    assert told[f"{train[5].flat}_2_{nobody.flat}"] == "the target has no pose"
    left = {s.id.split("/")[1] for s in data}
    assert left == {
        f"{nobody.flat}_2_{train[5].flat}",
        *(f"{train[a].flat}_2_{train[b].flat}" for a, b in ((6, 7), (6, 8), (7, 8), (8, 7))),
    }


def flat_of_none() -> str:
    return "fashionWOMENDressesid0000099901_1front.jpg"


def test_text_files_of_joints_that_are_wrong_are_reported(tmp_path: Path) -> None:
    train = deepfashion(tmp_path, (2, 1))["train"]
    files = [tmp_path / f"pose/{one.path}.txt" for one in train]
    files[0].unlink()
    files[1].write_text("1 2\n" * 17)
    files[2].write_text("1 2\n" * 17 + "nan 2\n")
    files[3].write_text("1 2\n" * 17 + "x y\n")
    data = data_of(tmp_path, source={"poses": "txt"}, size=(64, 40))
    data.prepare()
    told = {
        file.removeprefix("pose/"): problem
        for file, problem in problems(data).items()
        if "_2_" not in file or file.startswith("pose/")
    }
    assert (
        told[f"{train[0].path}.txt"] == "missing"
        and "17 lines" in told[f"{train[1].path}.txt"]
        and "could not convert" in told[f"{train[3].path}.txt"]
    )
    assert told[f"img_highres/{train[2].path}.jpg"] == "a joint is not a number"
    assert {s.id.split("/")[1] for s in data} == {f"{train[a].flat}_2_{train[b].flat}" for a, b in ((4, 5), (5, 4))}
    files[0].write_text(files[4].read_text())
    again = data_of(tmp_path, source={"poses": "txt"}, size=(64, 40))  # the change is noticed
    again.prepare()
    assert f"pose/{train[0].path}.txt" not in problems(again)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (
            lambda root: (root / "fashion_data/train.lst").unlink(),
            r"there is no train\.lst in it or in its folders; put the lists",
        ),
        (
            lambda root: [f.unlink() for f in root.rglob("*pairs*")] + [f.unlink() for f in root.rglob("*_data.json")],
            r"no fasion-resize-pairs-train\.csv or fashion-",
        ),
        (
            lambda root: (root / "fashion_data/fasion-resize-annotation-train.csv").write_text("a,b\n"),
            "expected name:keypoints_y:keypoints_x",
        ),
        (
            lambda root: (root / "fashion_data/fasion-resize-pairs-train.csv").write_text("a,b\n"),
            "begins with the columns a,b; expected from,to",
        ),
        (
            lambda root: (root / "fashion_data/fasion-resize-pairs-train.csv").write_text("from,to\n"),
            "no pair of .* can be used; the list has 0",
        ),
        (
            lambda root: (root / "fashion_data/fasion-resize-pairs-train.csv").write_bytes(
                b"from,to\n\xe9.jpg,b.jpg\n"
            ),
            r"pairs-train\.csv: it is no text in UTF-8: byte 8 is 0xe9",
        ),
    ],
)
def test_lists_that_are_missing_or_something_else_are_one_error(spoil: Any, error: str, tmp_path: Path) -> None:
    deepfashion(tmp_path, (2, 1), lines=False)
    spoil(tmp_path)
    with pytest.raises((OSError, ValueError), match=error):
        data_of(tmp_path, size=(64, 40)).prepare()


def test_roots_and_options_that_cannot_be_are_refused(
    tmp_path: Path, whole: tuple[Path, dict[str, list[Person]]]
) -> None:
    with pytest.raises(
        ValueError, match=r"has no folder MEN or WOMEN, nor pictures named fashionWOMEN.*unpack img_highres"
    ):
        DeepFashion(tmp_path)
    with pytest.raises(ValueError, match="data.images=there"):
        DeepFashion(whole[0], images="there")
    with pytest.raises(ValueError, match="data.poses=json: expected one of csv, txt"):
        DeepFashion(whole[0], poses="json")
    with pytest.raises(ValueError, match="data.expand=some"):
        data_of(whole[0], expand="some")
    with pytest.raises(ValueError, match="data.root=.*no such folder"):
        Market1501(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder bounding_box_train or train"):
        Market1501(tmp_path).folder("train")


# Market-1501.


@pytest.mark.parametrize("renamed", [False, True])
def test_market_is_read_with_its_joints_and_without_strangers(renamed: bool, tmp_path: Path) -> None:
    people = market1501(tmp_path / "market", renamed=renamed)
    cache = tmp_path / "cache"
    sets = {
        split: Pairs(Market1501(tmp_path / "market"), split, (128, 64), "person, street", 0.3, cache=cache)
        for split in ("train", "validation", "test")
    }
    assert (
        len(sets["train"]) + len(sets["validation"]) == 36
        and sets["train"].identity != sets["validation"].identity
        and len(sets["test"]) == 12
    )
    known = {one.path: one for every in people.values() for one in every}
    for data in sets.values():
        data.prepare()
        assert not problems(data) and not problems(data, False)
        for i, sample in enumerate(data):
            source, target = sample.attributes["source"], sample.attributes["target"]
            assert (
                sample.id == f"market1501/{source}_2_{target}"
                and source[:4] == target[:4]
                and sample.prompt == "person, street"
            )
            fits(sample, known[target], (128, 64))
            fits(data.source_of(i), known[source], (128, 64))
    told = "\n".join(warnings(sets["train"]))
    assert "the released list has 12,936" in told and "the released list has 263,632" in told
    assert len(Pictures(Market1501(tmp_path / "market"), "test", 64, cache=cache)) == 6


def test_a_person_in_both_folders_of_market_is_told_of(tmp_path: Path) -> None:
    people = market1501(tmp_path)
    one = people["test"][0].path
    (tmp_path / f"bounding_box_train/{one}.jpg").write_bytes((tmp_path / f"bounding_box_test/{one}.jpg").read_bytes())
    data = Pairs(Market1501(tmp_path), "test", (128, 64), cache=tmp_path / "cache")
    data.prepare()
    assert "1 of 2 persons of the test pictures are in the training pictures, too" in data.condition.warnings


def test_columns_are_read_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "joints.csv"
    file.write_text(f"name:keypoints_x:keypoints_y\na.jpg: {[1] * 18}: {[2] * 18}\n")
    points = joints_in(file, lambda text: text, lambda defect: pytest.fail(str(defect)))["a.jpg"]
    assert points.tolist() == [[1, 2]] * 18 and json.dumps(points.shape) == "[18, 2]"
