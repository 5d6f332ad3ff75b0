"""Tars read where their members lie: the index, what it belongs to, and tars that are damaged or compressed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from posegen.data.on_disk import tar_members
from posegen.data.on_disk.tar_members import TarMembers, tar_index_file
from tests.data.laion_tree import members_of, tar_of


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    tar_of(tmp_path / "00000.tar", members_of(range(6)))
    return tmp_path / "00000.tar"


def test_members_are_read_at_their_places(tar: Path) -> None:
    members, content = TarMembers.of(tar), members_of(range(6))
    assert list(members) == list(content) and not members.problem
    whole = tar.read_bytes()
    for name, expected in content.items():
        offset, size = members[name]
        assert whole[offset : offset + size] == expected == members.read(name)


def test_folders_and_links_are_no_members_and_long_names_are_whole(tmp_path: Path) -> None:
    import tarfile

    name = "a" * 150 + "/ä picture.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        (tmp_path / "x").write_bytes(b"content")
        tar.add(tmp_path / "x", f"./{name}")
    members = TarMembers.of(tmp_path / "a.tar")
    assert list(members) == [name] and members.read(name) == b"content"


def test_the_index_is_kept_as_long_as_the_tar_is_the_same(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TarMembers.of(tar)
    scan_tar, scans = tar_members.scan_tar, []
    monkeypatch.setattr(tar_members, "scan_tar", lambda file: scans.append(file) or scan_tar(file))
    assert TarMembers.of(tar) == first and not scans
    os.utime(tar, ns=(0, 1))
    assert TarMembers.of(tar) == first and scans == [tar]
    tar_index_file(tar).write_bytes(b"damaged")
    assert TarMembers.of(tar) == first and scans == [tar, tar]
    tar_of(tar, members_of(range(3)))
    assert list(TarMembers.of(tar)) == list(members_of(range(3)))


def test_the_index_goes_into_a_cache_where_one_is_named(tar: Path, tmp_path: Path) -> None:
    TarMembers.of(tar, tmp_path / "cache")
    assert not tar_index_file(tar).exists() and tar_index_file(tar, tmp_path / "cache").is_file()
    with np.load(tar_index_file(tar, tmp_path / "cache"), allow_pickle=False) as kept:
        assert kept["names"][0] == "000000000.jpg"


def test_a_place_for_the_index_that_cannot_be_written_is_named(tar: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError,
        match=r"file/00000-.*\.index\.npz, the index of a tar, cannot be written .*; name a folder for indices",
    ):
        TarMembers.of(tar, tmp_path / "file")


@pytest.mark.parametrize(("cut", "kept"), [("data", 2), ("header", 3), ("boundary", 3)])
def test_members_before_a_break_are_kept(tar: Path, cut: str, kept: int) -> None:
    """Cut in the third member's data, in the fourth's header, and between the two."""
    third, fourth = list(TarMembers.of(tar).values())[2:4]
    end = {"data": third[0] + 3, "header": fourth[0] - 100, "boundary": fourth[0] - 512}[cut]
    tar.write_bytes(tar.read_bytes()[:end])
    members = TarMembers.of(tar)
    assert list(members) == list(members_of(range(6)))[:kept]
    assert members.problem.startswith("truncated or damaged") and f"{kept} members before the break" in members.problem
    assert TarMembers.of(tar).problem == members.problem  # also from the index


def test_a_damaged_header_ends_the_tar(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    third = list(TarMembers.of(tar).values())[2][0]
    content[third - 512 : third] = b"\7" * 512
    tar.write_bytes(content)
    members = TarMembers.of(tar)
    assert len(members) == 2 and "truncated or damaged (no end mark)" in members.problem


@pytest.mark.parametrize(("mode", "program"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_tars_are_refused_with_the_way_out(tmp_path: Path, mode: str, program: str) -> None:
    tar_of(tmp_path / "00000.tar", members_of(range(2)), mode)
    with pytest.raises(ValueError, match=rf"00000\.tar is compressed with .*uncompress it once \(`{program}` makes"):
        TarMembers.of(tmp_path / "00000.tar")


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tar: no such file; expected an uncompressed tar"):
        TarMembers.of(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_text("text " * 300)
    with pytest.raises(ValueError, match=r"text\.tar is no tar .*fetch or make it again"):
        TarMembers.of(tmp_path / "text.tar")
