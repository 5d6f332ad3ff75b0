"""What happens to files on bad days."""

from __future__ import annotations

from pathlib import Path


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def folder(file: Path) -> None:
    """A folder with something in it, in the file's place."""
    file.unlink()
    (file / "inside").mkdir(parents=True)
