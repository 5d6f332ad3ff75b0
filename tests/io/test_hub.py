"""Fetching from the Hub: one format, one commit, whole files; and what is said where that fails."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.file_download as downloading
import pytest
from huggingface_hub import constants, snapshot_download

from posegen.errors import UserError
from posegen.io.hub import HubPlace, fetched, pinned
from tests.hub_server import TOKEN, Hub, Repository, connect, serving

BIG = bytes(range(256)) * 400
MODEL = {
    "model_index.json": b"{ }",
    "README.md": b"# A model",
    "v1-5-pruned.safetensors": BIG,
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": BIG + b"unet",
    "unet/diffusion_pytorch_model.fp16.safetensors": BIG[:9],
    "unet/diffusion_pytorch_model.non_ema.safetensors": BIG[:10],
    "unet/diffusion_pytorch_model.bin": BIG[:11],
    "unet/diffusion_flax_model.msgpack": BIG[:12],
    "unet/model.onnx": BIG[:13],
    "text_encoder/config.json": b"[]",
    "text_encoder/model.fp16.safetensors": BIG[:14],
    "text_encoder/pytorch_model.fp16.bin": BIG[:15],
    "tokenizer/vocab.json": b"0",
    "tokenizer/merges.txt": b"a b",
    "safety_checker/model.safetensors": BIG[:16],
}
WANTED = ("unet/", "text_encoder/", "tokenizer/")
NEEDED = [
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]
PLACE = HubPlace.of("hub:owner/model")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "posegen"))
    with serving() as server:
        connect(monkeypatch, server, tmp_path / "hub")
        monkeypatch.setattr(time, "sleep", lambda _: None)  # before another attempt
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        server.repositories["owner/model"] = Repository()
        server.repositories["owner/model"].commit(MODEL)
        yield server


def refused(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        fetched(*arguments, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_only_what_is_needed_is_fetched_and_once(hub: Hub) -> None:
    folder, place = fetched(PLACE, WANTED)
    assert place.revision == hub.repositories["owner/model"].branches["main"] == folder.name
    assert str(place) == f"hub:owner/model@{folder.name}"
    assert sorted(hub.fetched()) == NEEDED
    assert all((folder / name).read_bytes() == MODEL[name] for name in NEEDED)
    hub.asked.clear()
    assert fetched(PLACE, WANTED) == (folder, place) and hub.fetched() == []


def test_a_file_that_is_named_comes_alone_and_as_it_is(hub: Hub) -> None:
    file, place = fetched(HubPlace.of("hub:owner/model/unet/diffusion_pytorch_model.bin"))
    assert file.read_bytes() == MODEL["unet/diffusion_pytorch_model.bin"] and len(hub.fetched()) == 1
    assert HubPlace.of(str(place)) == place


def test_a_revision_is_a_branch_or_commit_and_stays(hub: Hub) -> None:
    repository = hub.repositories["owner/model"]
    first = repository.branches["main"]
    second = repository.commit({**MODEL, "unet/config.json": b"2"})
    repository.commit({**MODEL, "unet/config.json": b"1"}, "v1")
    found = {
        text: (fetched(HubPlace.of(f"hub:owner/model{text}"), WANTED)[0] / "unet/config.json").read_bytes()
        for text in ("", f"@{first}", f"@{second}", "@v1")
    }
    assert found == {"": b"2", f"@{first}": b"{}", f"@{second}": b"2", "@v1": b"1"}


def test_a_study_reads_one_commit_although_the_branch_moves(hub: Hub, tmp_path: Path) -> None:
    record, repository = tmp_path / "study" / "hub.json", hub.repositories["owner/model"]
    first = repository.branches["main"]
    assert pinned("hub:owner/model", record) == f"hub:owner/model@{first}"
    second = repository.commit({})
    assert pinned("hub:owner/model", record) == f"hub:owner/model@{first}"
    assert json.loads(record.read_text()) == {"hub:owner/model": first}
    assert pinned(f"hub:owner/model@{second}", record).endswith(second)  # whoever names a commit gets it
    record.unlink()
    assert pinned("hub:owner/model", record, {"hub:owner/model": first}).endswith(first)  # as the cell had it


def test_a_broken_transfer_goes_on_where_it_broke(hub: Hub) -> None:
    hub.repositories["owner/model"].cut = {"unet/diffusion_pytorch_model.safetensors": 2}
    folder, _ = fetched(PLACE, WANTED)
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == BIG + b"unet"
    spans = [line for line in hub.asked if line.endswith("-")]
    assert len(spans) == 2 and spans[0].endswith(" bytes=51000-")


def test_a_transfer_that_keeps_breaking_is_named_and_whole_files_are_kept(hub: Hub) -> None:
    name, repository = "unet/diffusion_pytorch_model.safetensors", hub.repositories["owner/model"]
    repository.cut = {name: 1000}
    text = refused(PLACE, WANTED)
    assert f"the transfer with {hub.url} failed" in text and "files that arrived whole are kept" in text
    repository.cut, hub.asked[:] = {}, []
    fetched(PLACE, WANTED)
    assert name in hub.fetched() and len(hub.fetched()) < len(NEEDED)


def test_a_file_with_another_hash_is_removed_and_comes_again(hub: Hub) -> None:
    name, repository = "unet/diffusion_pytorch_model.safetensors", hub.repositories["owner/model"]
    repository.damaged = {name}
    text = refused(PLACE, WANTED)
    right = hashlib.sha256(MODEL[name]).hexdigest()
    assert "diffusion_pytorch_model.safetensors has SHA-256" in text and right[:16] in text
    repository.damaged = set()
    folder, _ = fetched(PLACE, WANTED)
    assert (folder / name).read_bytes() == MODEL[name]
    (folder / name).resolve().write_bytes(MODEL[name][:-1] + b"?")  # or on this disk, later
    assert "has SHA-256" in refused(PLACE, WANTED)


def test_gated_private_and_missing_repositories_say_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = hub.repositories["owner/model"]
    repository.gated = True
    text = refused(PLACE, WANTED)
    assert f"owner/model is gated: accept its terms on {hub.url}/owner/model, log in with hf auth login" in text
    fetched(PLACE, WANTED, token=TOKEN)
    repository.gated, repository.private = False, True
    assert "there is no repository owner/model" in (text := refused(PLACE, WANTED, cache_dir="other"))
    assert "or it is private" in text and "HF_TOKEN" in text
    assert "no token is stored" in refused(PLACE, WANTED, token=True, cache_dir="other")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched(PLACE, WANTED)
    assert "there is no repository owner/other" in refused(HubPlace.of("hub:owner/other"), WANTED)
    assert "has no revision v9" in refused(HubPlace.of("hub:owner/model@v9"), WANTED)
    assert "has none of vae/" in refused(PLACE, ("vae/",))


@pytest.mark.parametrize(
    "text", ["hub:", "hub:model", "hub:a/b@", "hub:owner/mo del", "hub:https://x.co/a/b", "hub:/a/b"]
)
def test_what_names_nothing_is_refused_before_anybody_is_asked(text: str, hub: Hub) -> None:
    with pytest.raises(UserError, match="names nothing on the Hub; expected hub:OWNER/NAME"):
        HubPlace.of(text)


def test_a_name_that_the_hub_does_not_allow(hub: Hub) -> None:
    assert "'owner/a--b' is no name of a repository" in refused(HubPlace.of("hub:owner/a--b"), WANTED)


def test_pickles_alone_are_refused_with_the_way_to_read_them(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/old"] = Repository()
    hub.repositories["owner/old"].commit({"unet/config.json": b"{}", "unet/diffusion_pytorch_model.bin": BIG})
    text = refused(HubPlace.of("hub:owner/old"), ("unet/",))
    assert "the weights of unet as pickles alone (unet/diffusion_pytorch_model.bin)" in text
    assert "hf download owner/old --local-dir FOLDER" in text and hub.fetched() == []
    snapshot_download("owner/old", local_dir=tmp_path / "old")  # what that command does
    assert (tmp_path / "old/unet/diffusion_pytorch_model.bin").read_bytes() == BIG


def test_without_a_connection_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not in" in (text := refused(PLACE, WANTED, local_files_only=True)) and "local_files_only=True" in text
    found = fetched(PLACE, WANTED)
    asked = len(hub.asked)
    assert fetched(PLACE, WANTED, local_files_only=True) == found and len(hub.asked) == asked
    pin = found[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched(PLACE, WANTED) == fetched(pin, WANTED) == found and len(hub.asked) == asked
    text = refused(HubPlace.of("hub:owner/other"), WANTED)
    assert "HF_HUB_OFFLINE=1 forbids to reach the Hub; unset it" in text
    assert "is not in" in refused(PLACE, ("unet/", "safety_checker/"))  # the listing tells that the cache lacks it
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.down = True
    assert fetched(PLACE, WANTED) == fetched(pin, WANTED) == found
    for name, value in (
        ("ENDPOINT", "http://127.0.0.1:9"),
        ("HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}"),
    ):
        monkeypatch.setattr(constants, name, value)
    assert fetched(PLACE, WANTED) == fetched(pin, WANTED) == found
    text = refused(HubPlace.of("hub:owner/other"), WANTED)
    assert "the transfer with http://127.0.0.1:9 failed" in text and "check the connection" in text


def test_a_snapshot_that_an_older_program_left_serves_without_a_connection(hub: Hub, tmp_path: Path) -> None:
    folder, place = fetched(PLACE, WANTED)
    for listing in (tmp_path / "hub").rglob("trees/*.json"):
        listing.unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert fetched(PLACE, WANTED, local_files_only=True) == (folder, place)
    text = refused(PLACE, ("vae/",), local_files_only=True)
    assert "has none of vae/; nothing was fetched. Expected a connection, to fetch them" in text


def test_a_full_disk_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloading, "http_get", full)
    text = refused(PLACE, WANTED)
    assert "the disk is full. Free space there and run the same command again" in text and str(tmp_path / "hub") in text
