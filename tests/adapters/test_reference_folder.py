"""Foreign pictures find their samples, whatever the program called them, and nothing is judged in another's place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from posegen.adapters.reference_folder import Folder
from posegen.data.base import PoseBatch, Sample

IDS = ["human_art/2000000000007", "human_art/5000000000007", "human_art/2000000000031"]
SCENARIOS = ["digital_art", "oil_painting", "digital_art"]


def samples(ids: list[str] = IDS) -> list[Sample]:
    scenarios = SCENARIOS if ids is IDS else [""] * len(ids)
    return [
        Sample(i, "", np.zeros((0, 17, 3)), np.zeros(0), None, (8, 8), {"scenario": s})
        for i, s in zip(ids, scenarios, strict=True)
    ]


def save(file: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    """A picture of one grey."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.full((*size, 3), value, np.uint8))


def greys(adapter: Folder, ids: list[str] = IDS, order: list[int] | None = None) -> list[int]:
    """The grey of the picture that each sample gets, asked for in some order."""
    people = samples(ids)
    rows = order or list(range(len(ids)))
    batch = PoseBatch(
        [ids[i] for i in rows], [""] * len(rows), [people[i].keypoints for i in rows], (8, 8), population=people
    )
    images = adapter.generate(batch, lambda *_: pytest.fail("sampled"))
    assert images.shape == (len(rows), 3, 8, 8) and images.dtype == torch.float32
    return [round(float(image.mean() + 1) * 127.5) for image in images]


def test_pictures_named_by_index_are_those_of_the_split_in_order(tmp_path: Path) -> None:
    for i, grey in enumerate((10, 20, 30)):
        save(tmp_path / f"{i:06d}.png", grey)
    assert greys(Folder(str(tmp_path))) == [10, 20, 30]
    assert greys(Folder(str(tmp_path)), order=[2, 0]) == [30, 10]


def test_pictures_named_like_the_data_sets_are_found_by_the_end_of_the_id_and_their_scenario(tmp_path: Path) -> None:
    save(tmp_path / "digital_art/000000000007.png", 10)
    save(tmp_path / "oil_painting/000000000007.png", 20)
    save(tmp_path / "digital_art/000000000031.png", 30)
    assert greys(Folder(str(tmp_path))) == [10, 20, 30]


def test_pictures_named_by_id(tmp_path: Path) -> None:
    save(tmp_path / "human_art_2000000000007.png", 10)
    save(tmp_path / "5000000000007.png", 20)
    save(tmp_path / "2000000000031.png", 30)
    assert greys(Folder(str(tmp_path))) == [10, 20, 30]


FASHION = "fashionWOMENDressesid0000027501_1front", "fashionWOMENDressesid0000027501_2side"
MARKET = "0002_c1s1_000451_03", "0002_c2s1_000026_02"


@pytest.mark.parametrize(
    "form",
    [
        "{}_2_{}_vis.png",
        "{}_2_{}.png",
        "{}_to_{}.png",
        "{}___{}_vis.jpg",
        "{}.jpg___{}.jpg_vis.png",
        "theirs/{}.jpg_2_{}_vis.jpg",
    ],
)
@pytest.mark.parametrize(
    "names",
    [
        ("fashionWOMENDressesid0000027501_1front", "fashionWOMENDressesid0000027501_2side"),
        ("0002_c1s1_000451_03", "0002_c2s1_000026_02"),
    ],
)
def test_pictures_of_pairs_are_named_by_both(form: str, names: tuple[str, str], tmp_path: Path) -> None:
    """However a program joins the names; which is the source and which the target counts."""
    people = [
        Sample(f"data/{a}_2_{b}", "", np.zeros((0, 17, 3)), np.zeros(0), None, (8, 8), {"source": a, "target": b})
        for a, b in (names, names[::-1])
    ]
    for grey, pair in ((10, names), (20, names[::-1])):
        save(tmp_path / form.format(*pair), grey)
    batch = PoseBatch([p.id for p in people], [""] * 2, [p.keypoints for p in people], (8, 8), population=people)
    images = Folder(str(tmp_path)).generate(batch, lambda *_: pytest.fail("sampled"))
    assert [round(float(image.mean() + 1) * 127.5) for image in images] == [10, 20]


def test_six_digits_can_be_ids_or_indices(tmp_path: Path) -> None:
    """The first sample's id is the second one's index: whichever fits more samples is meant, and it can be said."""
    ids = ["x/000001", "x/000002", "x/000003"]
    for i in range(4):
        save(tmp_path / f"{i:06d}.png", 10 * i)
    assert greys(Folder(str(tmp_path)), ids) == [10, 20, 30]
    assert greys(Folder(str(tmp_path), by="index"), ids) == [0, 10, 20]


def test_a_list_says_which_is_which(tmp_path: Path) -> None:
    for name, grey in (("a", 10), ("b", 20), ("c", 30)):
        save(tmp_path / f"pictures/{name}.jpg", grey)
    table = tmp_path / "names.csv"
    table.write_text("id,file\n" + "".join(f"{i},{name}.jpg\n" for i, name in zip(IDS, "cab", strict=True)))
    assert greys(Folder(str(tmp_path / "pictures"), names=str(table))) == [30, 10, 20]
    table.write_text("sample,picture\nx,y\n")
    with pytest.raises(ValueError, match="needs the columns file,id"):
        greys(Folder(str(tmp_path / "pictures"), names=str(table)))
    table.write_text(f"file,id\nz.jpg,{IDS[0]}\n")
    with pytest.raises(ValueError, match="lists 1 files that are not in adapter.path: z.jpg"):
        greys(Folder(str(tmp_path / "pictures"), names=str(table)))


def test_missing_pictures_are_an_error_that_counts_them_in_the_whole_split(tmp_path: Path) -> None:
    save(tmp_path / "000001.png", 20)
    with pytest.raises(ValueError, match=f"lacks 2 of 3 pictures: {IDS[0]}, {IDS[2]}; it holds 1"):
        greys(Folder(str(tmp_path)), order=[1])


def test_missing_pictures_are_black_and_remarked_on_where_they_are_allowed(tmp_path: Path) -> None:
    save(tmp_path / "000001.png", 20)
    adapter = Folder(str(tmp_path), allow_missing=True)
    assert greys(adapter) == [0, 20, 0]
    assert "lacks 2 of 3 pictures" in adapter.remark and "not comparable" in adapter.remark


def test_a_folder_that_fits_no_sample_is_an_error_even_then(tmp_path: Path) -> None:
    save(tmp_path / "holiday.png", 20)
    with pytest.raises(ValueError, match="lacks 3 of 3"):
        greys(Folder(str(tmp_path), allow_missing=True))
    with pytest.raises(ValueError, match="adapter.path is None; expected a folder"):
        greys(Folder())


def test_two_pictures_of_a_sample_are_an_error(tmp_path: Path) -> None:
    for file in (
        "digital_art/000000000007.png",
        "again/digital_art/000000000007.png",
        "oil_painting/000000000007.png",
        "digital_art/000000000031.png",
    ):
        save(tmp_path / file, 10)
    with pytest.raises(
        ValueError,
        match=f"2 pictures of sample {IDS[0]}: again/digital_art/000000000007.png, digital_art/000000000007.png",
    ):
        greys(Folder(str(tmp_path)))


def test_other_sizes_are_refused_or_resized_and_other_shapes_refused(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i:06d}.png", 10, (16, 16))
    with pytest.raises(ValueError, match="16 x 16 pixels, the data's are 8 x 8; set adapter.resize=true"):
        greys(Folder(str(tmp_path)))
    assert greys(Folder(str(tmp_path), resize=True)) == [10, 10, 10]
    save(tmp_path / "000000.png", 10, (16, 12))
    with pytest.raises(ValueError, match="another shape"):
        greys(Folder(str(tmp_path), resize=True))


def test_one_panel_of_a_strip_is_taken(tmp_path: Path) -> None:
    for i in range(3):
        strip = np.repeat(np.array([40, 80, 120, 160], np.uint8), 8)[None, :, None].repeat(8, 0).repeat(3, 2)
        cv2.imwrite(str(tmp_path / f"{i:06d}.png"), strip)
    assert greys(Folder(str(tmp_path), panels=4)) == [40, 40, 40]
    assert greys(Folder(str(tmp_path), panels=4, panel=3)) == [160, 160, 160]
    with pytest.raises(ValueError, match="needs adapter.panels=4"):
        greys(Folder(str(tmp_path)))
    with pytest.raises(ValueError, match="no multiple of adapter.panels=3"):
        greys(Folder(str(tmp_path), panels=3))
    with pytest.raises(ValueError, match="none of adapter.panels=4"):
        Folder(str(tmp_path), panels=4, panel=4)


def test_colours_stay_in_order_and_broken_files_are_named(tmp_path: Path) -> None:
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i:06d}.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))  # OpenCV's red
    people = samples()
    images = Folder(str(tmp_path)).generate(
        PoseBatch(IDS, [""] * 3, [], (8, 8), population=people), lambda *_: torch.zeros(0)
    )
    assert images[0, :, 0, 0].tolist() == [1, -1, -1]
    (tmp_path / "000002.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="000002.png is no readable picture"):
        greys(Folder(str(tmp_path)))
