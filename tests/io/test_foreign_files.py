"""Files of other programs are read within limits, or refused by one error that names them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from posegen.data.on_disk.object_arrays import read_arrays
from posegen.io import foreign_files
from posegen.io.arrays import read_arrays_or_none
from posegen.io.foreign_files import csv_rows, read_foreign_text, read_json_or_lines, require_array_bytes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_every_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a dancer, été".encode(encoding))
    assert read_foreign_text(tmp_path / "a.txt") == "a dancer, été"


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("été".encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.txt: it is no text in UTF-8: byte 0 is 0xe9"):
        read_foreign_text(tmp_path / "a.txt")
    for name, reason in (("none.txt", "is missing"), (".", "is a folder")):
        with pytest.raises(ValueError, match=reason):
            read_foreign_text(tmp_path / name)


def test_long_fields_and_damage_in_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'file,prompt\n\na.jpg,"{long}"\n', encoding="utf-8-sig")
    assert csv_rows(tmp_path / "a.csv") == [(1, ["file", "prompt"]), (3, ["a.jpg", long])]
    monkeypatch.setattr(foreign_files, "MOST_FIELD", 1000)
    with pytest.raises(ValueError, match=r"a\.csv is no csv file \(field larger than field limit"):
        csv_rows(tmp_path / "a.csv")


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json_or_lines(file, "mend it") == [{"a": 1}, {"a": 2}]
    for content, message in (('{"a": 1}\n{"a":\n', r"prompt\.json: line 2 is not"), ("{", r"prompt\.json is not")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_json_or_lines(file, "mend it")


def bomb(declared: int) -> bytes:
    """An npz file whose member says that it unpacks to so many bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    content = stream.getvalue()
    place = content.index(b"PK\x01\x02") + 24  # the size in the directory
    return content[:place] + struct.pack("<I", declared) + content[place + 4 :]


def test_arrays_that_unpack_to_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    for content in (bomb(0xFFFFFFF0), bomb(128), huge.getvalue()):
        with pytest.raises(ValueError, match="its arrays take more than 2048 MiB"):
            require_array_bytes(content)
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz cannot be read: its arrays take more"):
            read_arrays(tmp_path / "a.npz")
    plain = io.BytesIO()
    np.savez_compressed(plain, a=np.zeros(1000), b=np.arange(3))
    require_array_bytes(plain.getvalue())
    assert read_arrays(io.BytesIO(plain.getvalue()))["b"].tolist() == [0, 1, 2]


def test_no_damage_of_an_npz_file_escapes(tmp_path: Path) -> None:
    file, stream = tmp_path / "a.npz", io.BytesIO()
    np.savez_compressed(stream, a=np.arange(100), b=np.zeros((3, 3)))
    whole, dice = stream.getvalue(), np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for place in dice.integers(0, len(whole), 3):
            content[place] = dice.integers(256)
        file.write_bytes(bytes(content)[: len(whole) if dice.random() < 0.7 else int(dice.integers(len(whole)))])
        read_arrays_or_none(file)
        try:
            read_arrays(file)
        except ValueError as error:
            assert "a.npz cannot be read" in str(error)
