"""The same file gives the same pixels however it is handed over, and one rule says which files are pictures."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posegen.data.user_images import user_picture, user_pictures
from posegen.io import pictures
from posegen.io.pictures import decode_image, is_utf8, open_picture, pictures_below, printable
from posegen.poses.reading import read_poses


def gradient() -> np.ndarray:
    steps = np.arange(24 * 40, dtype=np.uint32).reshape(24, 40) * 255 // (24 * 40 - 1)
    return np.stack([steps, steps[::-1], steps[:, ::-1]], -1).astype(np.uint8)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(Image.fromarray(gradient()), "png", exif=exif)


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cut_out(mode: str) -> bytes:
    alpha = np.zeros((24, 40), np.uint8)
    alpha[8:16] = 255
    clear = Image.fromarray(np.dstack([gradient(), alpha]))
    return stored(clear.convert(mode), "png")


def first_of_two(kind: str) -> bytes:
    first, second = Image.fromarray(gradient()), Image.new("RGB", (40, 24), "red")
    return stored(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "webp" else {}))


FORMS: dict[str, bytes] = {
    "turned": turned(),
    "transparent": cut_out("RGBA"),
    "grey and transparent": cut_out("LA"),
    "16 bits": stored(Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257), "png"),
    "palette": stored(Image.fromarray(gradient()).quantize(16), "png"),
    "palette with transparency": stored(Image.fromarray(gradient()).quantize(16), "png", transparency=0),
    "ink": stored(Image.fromarray(gradient()).convert("CMYK"), "jpeg"),
    "32 bits": stored(Image.fromarray(gradient()[..., 0].astype(np.int32) * 257), "tiff"),
    "fractions": stored(Image.fromarray(gradient()[..., 0].astype(np.float32) / 255), "tiff"),
    "bmp": stored(Image.fromarray(gradient()), "bmp"),
    "gif": first_of_two("gif"),
    "webp": first_of_two("webp"),
    "tif": first_of_two("tiff"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_file_gives_the_same_pixels_however_it_is_given(form: str, tmp_path: Path) -> None:
    data = FORMS[form]
    (tmp_path / "picture.any").write_bytes(data)
    expected = decode_image(data)
    for given in (tmp_path / "picture.any", str(tmp_path / "picture.any"), data, bytearray(data)):
        np.testing.assert_array_equal(user_picture(given, "source"), expected)
        np.testing.assert_array_equal(read_poses(given)[0].picture, expected)
    for read in (lambda image: user_picture(image, "source"), lambda image: read_poses(image)[0].picture):
        np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), expected)
    assert len(user_pictures(data)) == 1 and len(user_pictures([data, data])) == 2


def test_pixels_are_upright_white_where_clear_and_not_clipped() -> None:
    assert decode_image(FORMS["turned"]).shape == (40, 24, 3)
    assert (decode_image(FORMS["transparent"])[0, 0] == 255).all()
    assert (decode_image(FORMS["grey and transparent"])[0, 0] == 255).all()
    for form in ("16 bits", "32 bits", "fractions"):
        assert np.abs(decode_image(FORMS[form]).astype(int) - gradient()[..., :1]).max() <= 1, form
    for form in ("bmp", "webp", "tif"):
        np.testing.assert_array_equal(decode_image(FORMS[form]), gradient())
    clear = np.dstack([gradient(), np.zeros((24, 40), np.uint8)])
    assert (user_picture(clear, "source") == 255).all() and user_picture(gradient()[..., 0], "source").shape[2] == 3


def test_what_is_no_picture_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, file = FORMS["bmp"], tmp_path / "picture.png"
    damaged = {"empty": b"", "half": FORMS["ink"][:400], "text": b"no picture", "head": whole[:30], "zeros": bytes(99)}
    for data in damaged.values():
        file.write_bytes(data)
        for given in (file, data):
            with pytest.raises(ValueError, match=r"is no picture that can be read \(cannot be decoded"):
                user_picture(given, "source")
            with pytest.raises(ValueError, match="cannot be decoded"):
                read_poses(given)
    cut = Image.open(io.BytesIO(FORMS["ink"][:400]))
    with pytest.raises(ValueError, match="cannot be decoded"):
        user_picture(cut, "source")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 24 * 40 - 1)
    with pytest.raises(ValueError, match="megapixels; save it smaller"):
        decode_image(whole)


def test_a_bomb_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    head = stored(Image.new("1", (1, 1)), "png")
    sides = head[12:16] + (100_000).to_bytes(4, "big") * 2 + head[24:29]
    huge = head[:12] + sides + zlib.crc32(sides).to_bytes(4, "big") + head[33:]
    with pytest.raises(ValueError, match="more than 178 megapixels; save it smaller"):
        decode_image(huge)
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (("/dev/zero", "is no file"), (tmp_path / "pipe.png", "is no file"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=reason):
            open_picture(Path(path))


def test_which_files_are_pictures(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / ".mine", tmp_path / "elsewhere"
    for name in (
        "b.PNG", "a/c.jpeg", "d.webp", "e.bmp", "f.TIFF", "g.gif", "h.heic", "notes.txt", ".hidden.jpg", ".cache/i.jpg",
        ".ipynb_checkpoints/b.png", "__MACOSX/._b.png", "@eaDir/b.png",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    elsewhere.mkdir()
    (elsewhere / "k.jpg").touch()
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "linked").symlink_to(elsewhere)
    (root / "a" / "again").symlink_to(elsewhere)
    (root / "a" / "cycle").symlink_to(root)
    (root / "one.jpg").symlink_to(elsewhere / "k.jpg")
    (root / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = [file.relative_to(root).as_posix() for file in pictures_below(root)]
    places = ["a/c.jpeg", "b.PNG", "broken.jpg", "d.webp", "e.bmp", "f.TIFF", "g.gif", "h.heic", "one.jpg"]
    assert sorted(found) == sorted([*places, "linked/k.jpg"])


def test_names_that_are_no_text_can_be_printed(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    file.touch()
    [found] = pictures_below(tmp_path)
    assert found == file and not is_utf8(found) and printable(found).endswith("caf\\xe9.jpg")
    assert is_utf8(tmp_path / "café.jpg")
