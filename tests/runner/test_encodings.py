"""Cached texts: parts that only some backbones have, what an interruption leaves, and files of today's backbones."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from posegen.backbones.text import Text
from posegen.runner.encodings import Encoded, cached_text

PROMPTS = ["b", "a", "b"]
DATA: Any = SimpleNamespace(name="world", split="train")


class Towers:
    """Encodes a prompt as its letter's code; counts its calls."""

    def __init__(self, pooled: bool) -> None:
        self.pooled, self.calls = pooled, 0

    def encoding_key(self, of: str) -> str:
        return f"{of}-{self.pooled}"

    def encode_text(self, prompts: list[str]) -> Text:
        self.calls += 1
        tokens = torch.tensor([float(ord(prompt)) for prompt in prompts]).view(-1, 1, 1).expand(-1, 2, 3)
        return Text(tokens, tokens[:, 0] + 1, tokens[..., 0] > 97) if self.pooled else Text(tokens)


@pytest.mark.parametrize("pooled", [True, False])
def test_every_part_of_a_text_is_kept_once(tmp_path: Path, pooled: bool) -> None:
    towers: Any = Towers(pooled)
    for _ in range(2):
        text = pickle.loads(pickle.dumps(cached_text(DATA, PROMPTS, towers, tmp_path, "none")))([0, 1])
    assert towers.calls == 1 and text.tokens[:, 0, 0].tolist() == [98, 97] and text.tokens.dtype == torch.float32
    assert (text.pooled is None) == (text.mask is None) == (not pooled)
    if pooled:
        assert text.pooled[:, 0].tolist() == [99, 98] and text.mask.tolist() == [[True, True], [False, False]]  # type: ignore[index, union-attr]
    names = {file.name for file in tmp_path.rglob("*.npy")}
    assert names == {"00000.npy"} | ({"00000.pooled.npy", "00000.mask.npy"} if pooled else set())


def test_a_shard_without_its_main_array_is_computed_again(tmp_path: Path) -> None:
    seen = []

    def encode(rows: range) -> dict[str, np.ndarray]:
        seen.append(rows)
        return {"": np.zeros((len(rows), 1)), "pooled": np.ones((len(rows), 1))}

    Encoded(tmp_path, 3).fill(encode, "text", "none")
    (tmp_path / "00000.npy").unlink()
    encoded = Encoded(tmp_path, 3).fill(encode, "text", "none")
    assert seen == [range(3)] * 2
    assert encoded.beside("pooled")[2] == 1 and encoded.beside("mask") is None  # type: ignore[index]


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def not_a_number(file: Path) -> None:
    np.save(file, np.load(file) * np.nan)


@pytest.mark.parametrize("name", ["00000.npy", "00000.pooled.npy"])
@pytest.mark.parametrize("harm", [truncated, flipped, folder, not_a_number, Path.unlink])
def test_a_damaged_shard_is_named_and_encoded_again(
    tmp_path: Path, name: str, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def encode(rows: range) -> dict[str, np.ndarray]:
        seen.append(rows)
        return {"": np.ones((len(rows), 1)), "pooled": np.full((len(rows), 1), 2.0)}

    Encoded(tmp_path, 3).fill(encode, "text", "none")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix in (".npy", ".sha256")}
    harm(tmp_path / name)
    Encoded(tmp_path, 3).fill(encode, "text", "none")
    assert len(seen) == 2 and ".npy is damaged or too short: it is encoded again" in capsys.readouterr().out
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    (tmp_path / "00000.sha256").unlink()  # as earlier versions left it
    Encoded(tmp_path, 3).fill(encode, "text", "none")
    assert len(seen) == 2 and (tmp_path / "00000.sha256").read_bytes() == before["00000.sha256"]


def test_processes_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posegen.runner.encodings.SHARD", 1)
    computed: list[int] = []
    both = Barrier(2, timeout=60)

    def encode(rows: range) -> dict[str, np.ndarray]:
        computed.append(rows.start)
        if len(computed) <= 2:
            both.wait()  # each works on a shard of its own, so neither waits for the other's
        return {"": np.full((1, 1), rows.start)}

    with ThreadPoolExecutor(2) as pool:
        filled = list(pool.map(lambda _: Encoded(tmp_path, 6).fill(encode, "text", "none"), range(2)))
    assert sorted(computed) == list(range(6))
    assert all([int(encoded[i][0]) for i in range(6)] == list(range(6)) for encoded in filled)
