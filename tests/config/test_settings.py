"""Every key of every group has a type, a range and its choices, and the check refuses what is outside of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Interval
from pydantic import Field
from typing_extensions import TypedDict

from posegen.config import groups
from posegen.config.app import Command
from posegen.config.checking.annotations import json_schema, mismatches, words
from posegen.config.checking.settings import Setting, settings
from posegen.config.compose import composed
from posegen.config.schema import VERBS
from posegen.config.sweep import axes
from posegen.errors import UserError
from posegen.ranges import AtLeastOne, BelowOne, Positive, ZeroToOne

#: Keys that the user gives, whose type the class that they go to knows once they are given; and foreign classes' own.
OPEN = {"data.root", "data.folder", "task.autoencoder", "task.estimator", "adapter.teacher", "estimator.finder"}
OPEN |= {"loss.teacher"}
SWEPT = ("adapter", "data", "estimator", "protocol", "sampler", "logger", "task", "loss", "backbone")


def every_setting() -> Iterator[Setting]:
    """The settings of all verbs, and of all options of the groups of a cell."""
    known = groups.groups()
    most = max(len(known[group]) for group in SWEPT)
    asked: list[tuple[str, list[str]]] = [(verb, []) for verb in VERBS if verb not in ("evaluate", "prepare")]
    options = {group: list(known[group]) for group in SWEPT}
    asked += [("train", [f"{group}={names[i % len(names)]}" for group, names in options.items()]) for i in range(most)]
    for verb, overrides in asked:
        with composed(verb, overrides) as cfg:
            yield from settings(cfg, verb)


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Setting]:
    return {(setting.key, str(setting.annotation)): setting for setting in every_setting()}


def test_every_key_has_a_type(found: dict[tuple[str, str], Setting]) -> None:
    keys = {setting.key for setting in found.values() if setting.annotation is Any}
    assert {key for key in keys if "tags[" not in key} - OPEN == set()
    assert len(found) > 300


def test_every_number_refuses_what_is_none_and_every_right_value_passes(found: dict[tuple[str, str], Setting]) -> None:
    numbers = [setting for setting in found.values() if {"integer", "number"} & set(setting.kinds)]
    assert len(numbers) > 100
    for setting in numbers:
        for value in (float("nan"), float("inf"), -float("inf"), "nonsense", {"a": 1}):
            allowed = isinstance(value, str) and "string" in setting.kinds
            assert allowed or replace(setting, value=value).problems(), f"{setting.key}={value} passes"
    assert [problem for setting in found.values() for problem in setting.problems()] == []


def test_names_are_refused_where_there_are_choices(found: dict[tuple[str, str], Setting]) -> None:
    chosen = [s for s in found.values() if s.choices and "string" in s.kinds and s.key != "trainer.devices"]
    assert {"optim.optimizer", "compute.checkpointing", "adapter.style"} <= {setting.key for setting in chosen}
    for setting in chosen:
        [problem] = replace(setting, value="nonsense").problems()
        assert str(setting.choices[0]) in problem.expected, setting.key


class Point(TypedDict, total=False):
    x: BelowOne


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (AtLeastOne, "an integer from 1 to 10000000"),
        (ZeroToOne | None, "a number from 0 to 1, or null"),
        (Positive, "a number above 0"),
        (BelowOne, "a number of at least 0 and below 1"),
        (Annotated[int, Field(ge=3)], "an integer of at least 3"),  # of a third party
        (Annotated[float, Ge(0)] | None, "a number of at least 0, or null"),
        (Literal["a", "b"] | None, "one of a, b, or null"),
        (int | None, "an integer or null"),
        (tuple[ZeroToOne, ZeroToOne], "a list of 2 numbers from 0 to 1"),
        (list[str], "a list of strings"),
        (dict[str, int], "a mapping"),
        (bool, "true or false"),
        (Annotated[int, Interval(ge=1, le=3)] | Literal["auto", -1], "an integer from 1 to 3 or one of auto, -1"),
        (Any, "a value"),
    ],
)
def test_annotations_in_words(annotation: Any, expected: str) -> None:
    assert words(json_schema(annotation)).replace(", or one", " or one") == expected


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ([0.5, 2], tuple[ZeroToOne, ZeroToOne], (("1",), "a number from 0 to 1")),
        ("AP", list[str] | None, ((), "a list of strings or null, for instance [AP]")),
        ({"a": {"x": 3}}, dict[str, Point], (("a", "x"), "a number of at least 0 and below 1")),
        (float("nan"), float, ((), "a finite number")),
    ],
)
def test_what_was_expected_where(value: Any, annotation: Any, expected: tuple[tuple[str, ...], str]) -> None:
    [(place, said, *_)] = mismatches(value, annotation, finite=True)
    assert (place, said.replace(", or null", " or null")) == expected


@pytest.mark.parametrize(
    ("verb", "override", "expected"),
    [
        ("train", "optim.optimizer=lion", "expected one of adamw, muon, adamw8bit"),
        ("train", "budget.steps=-1", "expected an integer from 1 to 10000000"),
        ("train", "budget.steps=1000000000", "expected an integer from 1 to 10000000"),
        ("train", "budget.ema=nan", "expected a finite number"),
        ("train", "compute.workers=1000", "expected an integer from 0 to 128"),
        ("train", "trainer.strategy=dpp", "expected one of auto, ddp"),
        ("train", "~optim.batch", "optim.batch: this key is missing"),
        ("train", "sampler.skip=30", "sampler.skip is 30"),
        ("train", "sampler.scheduler=Nope", "expected a scheduler of diffusers"),
        ("train", "data.train.split=trian", "split 'trian' is not one of"),
        ("train", "adapter=null", "adapter=null: expected the name of an option"),
        ("evaluate", "protocol.hidden=[nope]", "the protocol has no column nope"),
        ("sample", "images=100000000", "expected an integer from 1 to 10000"),
        ("sample", "poses=[a,b]", "poses=['a', 'b']: expected a string or null"),
        ("benchmark", "headline=AP", "headline=AP: expected a list of strings or null, for instance [AP]"),
        ("benchmark", "reproduction={tolerence:{AP:1}}", "expected no such key, but some of source, tolerance"),
        ("report", "side=1", "expected an integer from 16"),
        ("power", "alpha=1", "alpha=1: expected a number above 0 and below 1"),
    ],
)
def test_a_wrong_setting_is_named(verb: str, override: str, expected: str) -> None:
    found = [str(problem) for problem in Command.read(verb, [override]).check()[0]]
    assert len(found) == 1 and expected in found[0].replace(", or null", " or null"), found


def test_a_setting_that_many_splits_share_is_told_once_where_it_stands(tmp_path: Path) -> None:
    words = ["data=folder", f"data.root={tmp_path}", "data.size=0"]
    found = [str(problem) for problem in Command.read("train", words).check()[0]]
    assert len(found) == 1 and found[0].startswith("data.size=0: expected an integer from 1 to 65536")


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("adapter=none,none", "adapter=none,none: adapter=none stands there 2 times"),
        ("optim.lr=1e-3,0.001", "stands there 2 times"),
        ("adapter=glob(zzz*)", "adapter=glob(zzz*): a sweep without any value; available: "),
        ("seed=range(3,1)", "a sweep without any value"),
        ("seed=range(0,3,0)", "expected a range with a step other than 0"),
        ("seed=range(0,100000000)", "at most 10000 values"),
    ],
)
def test_a_sweep_of_nothing_or_of_the_same_cell_twice_is_refused(sweep: str, expected: str) -> None:
    [problem], _ = Command.read("train", ["-m", sweep]).check()
    assert expected in str(problem)
    command = Command.read("train", ["-m", sweep])
    with pytest.raises(UserError, match="expected a range|without any value|stands there"):
        axes({}, command.keys, command.known)


def test_glob_finds_options() -> None:
    command = Command.read("train", ["-m", "adapter=glob(h*)"])
    assert [axis.words for axis in axes({}, command.keys, command.known)] == [["adapter=humansd"]]


BOMB = "\n".join(["a: &a0 [1, 1]", *(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\n\tb: 2\n", "theirs.yaml, line 2: this is no yaml"),
        (b"a: [1,\n", "line 2: this is no yaml"),
        (b"a: !foo 1\n", "line 1: this is no yaml: could not determine a constructor for the tag"),
        (b"a: &a [*a]\n", "theirs.yaml: its aliases (*name) stand for what they stand in"),
        (BOMB.encode(), "theirs.yaml: its aliases (*name) stand for more than 100,000 values"),
        (b"", "adapter: names no class"),
        (b"- 1\n- 2\n", "adapter=[1, 2]: expected a mapping ("),
        (b"a: 1\na: 2\n", "line 2: this is no yaml: found duplicate key a"),
        ("a: caf\xe9\n".encode("latin-1"), "theirs.yaml, line 1: this is no text in UTF-8"),
        ("a: 1\n".encode("utf-16"), "theirs.yaml, line 1: this is no text in UTF-8"),
        (b"a: 1\0\n", "theirs.yaml, line 1: this is no yaml: a character that no text has"),
        (b"null: 1\n", "theirs.yaml: Incompatible key type"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "theirs.yaml: its values are nested too deeply"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_the_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "theirs.yaml").write_bytes(content)
    found = [str(p) for p in Command.read("train", ["--config-dir", str(tmp_path), "adapter=theirs"]).check()[0]]
    assert len(found) == 1 and expected in found[0], found


def test_aliases_within_reason_stay(tmp_path: Path) -> None:
    (tmp_path / "sampler").mkdir()
    text = "_target_: &name posegen.runner.sampler.Sampler\nnegative_prompt: *name\n"
    (tmp_path / "sampler" / "theirs.yaml").write_text(text)
    with composed("train", [f"hydra.searchpath=[file://{tmp_path}]", "sampler=theirs"]) as cfg:
        assert cfg.sampler.negative_prompt == json.loads('"posegen.runner.sampler.Sampler"')
