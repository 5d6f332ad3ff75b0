"""Reading weights runs nothing, whatever the file is."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posegen.io import inert_pickle
from posegen.io.hashes import sha256_of
from posegen.io.weights import WeightsError, first_line, read_tensors

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2, dtype=torch.float16)}


class ModelCheckpoint:
    """Stands for a callback that a trainer pickled beside the weights."""

    def __init__(self) -> None:
        self.best, self.paths = 0.5, {"a": [1, 2]}


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> object:
        return self.call


def assert_equal(read: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor] = WEIGHTS) -> None:
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[key], wanted[key]) and read[key].dtype == wanted[key].dtype for key in wanted)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt", "pth", "bin"])
def test_every_format_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    save_file(WEIGHTS, file) if suffix == "safetensors" else torch.save(WEIGHTS, file)
    assert_equal(read_tensors(file))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_callbacks_beside_the_weights_is_read(tmp_path: Path, zipped: bool) -> None:
    content = {
        "state_dict": OrderedDict({key: torch.nn.Parameter(value) for key, value in WEIGHTS.items()}),
        "callbacks": {ModelCheckpoint: ModelCheckpoint(), "list": [ModelCheckpoint()]},
        "dtype": torch.float16,
        "global_step": 470000,
    }
    torch.save(content, tmp_path / "official.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "official.ckpt", weights_only=True)
    assert_equal(read_tensors(tmp_path / "official.ckpt"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, os.popen])
def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path: Path, function: object, zipped: bool) -> None:
    trace = tmp_path / "trace"
    argument = f"touch {trace}" if function in (os.system, os.popen) else f"open({str(trace)!r}, 'w')"
    attack = Attack(function, argument) if function is not getattr else Attack(function, "text", "upper")
    torch.save({"state_dict": WEIGHTS, "hook": attack}, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"evil\.ckpt.*asks to run .*{function.__name__}.*nothing in it was run"):  # type: ignore[attr-defined]
        read_tensors(tmp_path / "evil.ckpt")
    assert not trace.exists()


def test_a_foreign_class_is_never_made_and_its_methods_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(ModelCheckpoint, "__setstate__", lambda self, state: ran.append(state), raising=False)
    torch.save({"state_dict": WEIGHTS, "hook": ModelCheckpoint()}, tmp_path / "a.ckpt")
    read_tensors(tmp_path / "a.ckpt")
    assert not ran


def test_a_program_in_torchscript_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's permissive loader would run it, so that one must not be asked."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the program was loaded"))
    with pytest.raises(WeightsError, match=r"program\.pt.*nothing in it was run"):
        read_tensors(tmp_path / "program.pt")


def test_a_plain_pickle_that_is_no_torch_file_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Attack(os.system, f"touch {trace}")))
    with pytest.raises(WeightsError, match=r"evil\.bin"):
        read_tensors(tmp_path / "evil.bin")
    assert not trace.exists()


def test_a_pickle_cannot_change_what_later_files_are_read_with(tmp_path: Path) -> None:
    """Setting an attribute of a function that torch rebuilds tensors with must not outlive the file."""
    evil = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x06\x00\x00\x00poisonX\x01\x00\x00\x00xsb."
    with pytest.raises(TypeError):
        inert_pickle.load(io.BytesIO(evil))
    assert not hasattr(torch._utils._rebuild_tensor_v2, "poison")


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("keep", [0, 20, -20])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: int) -> None:
    file = tmp_path / f"weights.{suffix}"
    save_file(WEIGHTS, file) if suffix == "safetensors" else torch.save(WEIGHTS, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"weights\.{suffix}.*fetch it again"):
        read_tensors(file)


def test_a_file_without_tensors_or_none_at_all_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"steps": 3}}, tmp_path / "empty.pt")
    with pytest.raises(WeightsError, match="no named tensors"):
        read_tensors(tmp_path / "empty.pt")
    with pytest.raises(WeightsError, match="no such file"):
        read_tensors(tmp_path / "absent.pt")


def test_a_hash_depends_on_content_and_order_and_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posegen.io import hashes as files

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    a, b, copy = tmp_path / "a", tmp_path / "b", tmp_path / "copy"
    a.write_bytes(b"one"), b.write_bytes(b"two"), copy.write_bytes(b"one")
    assert sha256_of([a, b]) == sha256_of([copy, b]) != sha256_of([b, a])
    known = sha256_of([a, b])
    monkeypatch.setattr(files, "file_hash", lambda file: pytest.fail(f"{file} was read again"))
    assert sha256_of([a, b]) == known
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    b.write_bytes(b"three")
    assert sha256_of([a, b]) != known


def test_hashing_works_where_nothing_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(sha256_of([tmp_path / "a"])) == 64


# What a file is stands in its first bytes, not in its name.


@pytest.mark.parametrize("name", ["pose.ckpt", "POSE.SAFETENSORS", "pose.bin", "pose"])
def test_safetensors_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert_equal(read_tensors(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_named_safetensors_are_read_and_run_nothing(tmp_path: Path, zipped: bool) -> None:
    torch.save(WEIGHTS, tmp_path / "pickled.safetensors", _use_new_zipfile_serialization=zipped)
    assert_equal(read_tensors(tmp_path / "pickled.safetensors"))
    attack = {"state_dict": WEIGHTS, "hook": Attack(os.system, f"touch {tmp_path / 'trace'}")}
    torch.save(attack, tmp_path / "evil.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="asks to run"):
        read_tensors(tmp_path / "evil.safetensors")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of git-lfs.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "a web page, not weights"),
        (b'{"weight_map": {}}', "a json file, not weights"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x1f\x8b\x08\0", "packed archive; unpack it"),
        (b"", "fetch it again"),
        ((2**40).to_bytes(8, "little") + b'{"a"', "fetch it again"),
        ((2**20).to_bytes(8, "little") + b'{"a": ', "fetch it again"),
    ],
)
def test_what_is_often_saved_as_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.safetensors.*{message}") as told:
        read_tensors(tmp_path / "w.safetensors")
    assert not re.search("weights_only|torch.load|trust|re-run", str(told.value), re.IGNORECASE)


def test_a_zip_of_other_files_names_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("model/weights.safetensors", b"")
    with pytest.raises(WeightsError, match=r"zip archive with model/weights.safetensors; unpack it"):
        read_tensors(tmp_path / "w.bin")


def test_numbers_of_8_bits_and_sparse_tensors_become_plain_ones(tmp_path: Path) -> None:
    values = torch.tensor([[0.0, 1.5], [-2.0, 0.25]])
    content = {"a.weight": values.to(torch.float8_e4m3fn), "b.weight": values.to_sparse(), "steps": torch.tensor(3)}
    torch.save(content, tmp_path / "w.pt")
    read = read_tensors(tmp_path / "w.pt")
    assert all(torch.equal(read[key], values) for key in ("a.weight", "b.weight")) and read["steps"] == 3
    save_file({"a.weight": values.to(torch.float8_e5m2)}, tmp_path / "w.safetensors")
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["a.weight"], values)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2, dtype=torch.int8), r"a\.weight holds int8, it is quantised"),
        (torch.ones(2, 2, dtype=torch.bool), r"a\.weight holds bool"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"a\.weight holds qint8, it is quantised"),
        (torch.empty(2, 2, device="meta"), r"a\.weight has a shape and no values"),
        (torch.tensor([1.0, float("nan")]), r"a\.weight holds NaN"),
        (torch.ones(1).expand(2**40), r"a\.weight would fill 4096 GiB"),
        (torch.sparse_coo_tensor([[0], [0]], [1.0], (2**25, 2**20)), r"a\.weight would fill"),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else value[:24],
)
def test_weights_that_no_network_computes_with_are_named(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    torch.save({"a.weight": tensor}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        read_tensors(tmp_path / "w.pt")


def test_a_message_passes_no_advice_to_load_unsafely_on() -> None:
    advice = RuntimeError(
        "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` ...\nbad"
    )
    assert first_line(advice) == "bad"
    assert first_line(ValueError("set allow_pickle=True")) == "ValueError"
