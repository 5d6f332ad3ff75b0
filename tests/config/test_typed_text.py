"""Prompts, names and paths arrive from the command line as they were typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from posegen.config import groups
from posegen.config.app import Command
from posegen.config.compose import composed
from posegen.config.typed_text import as_literal, is_text, resolve_config
from posegen.errors import UserError

SENTENCES = [
    "a woman's dance", "a person (smiling)", "best quality, 4k", 'a "red" shirt', "2024", "true", "1e3", "nan", "-5",
    "NULL", "yes", "💃 dancing", "танец", "踊る人", "x = y", "$5", "${x}", "cost ${", "\\${x}", "a \\ b\\", "#1", "a [b]",
    "[a dancer]", "[2024]", "[a [b]]", "  blanks  ", "{a: b}", "a: b", "'", '"hi" she said "bye"', "a\nb", "a\tb",
    "(masterpiece:1.2) a dancer", "range(3)", "choice(a,b)", "str(3)", "it's [a, b]", "~", "@%", "[" * 500,
    " ".join(f"word{i}," for i in range(1000)),
]  # fmt: skip


def typed(verb: str, *words: str) -> OmegaConf:
    """The resolved configuration of a command."""
    command = Command.read(verb, words)
    with composed(*command.asking(command.readable()[1].keys)) as cfg:
        resolve_config(cfg)
        return cfg


def test_a_sentence_arrives_as_it_was_typed() -> None:
    for text in SENTENCES:
        (word,) = Command.read("sample", [f"prompt={text}"]).keys
        assert groups_value(word) == text


def test_the_resolved_configuration_and_its_file_keep_the_text() -> None:
    texts = "it's $5, ${x} [or] cost ${", "\\${a}"
    cfg = typed("sample", f"prompt={texts[0]}", f"sampler.negative_prompt={texts[1]}", "study=1e3")
    for each in (cfg, OmegaConf.create(OmegaConf.to_yaml(cfg))):  # as the cell's config.yaml
        assert (each.prompt, each.sampler.negative_prompt, each.study) == (*texts, "1e3")


@settings(max_examples=30, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(lambda t: t != "null")
)
def test_any_text_is_one_override_that_means_it(text: str) -> None:
    """Apart from quotes for Hydra and lists of two and more, which are read as such."""
    (word,) = Command.read("sample", [f"sampler.negative_prompt={text}"]).keys
    value = groups_value(word)
    quoted = text[0] in "'\"" and text[-1] == text[0] and len(text) > 1
    assert quoted or value == text


def groups_value(word: str) -> object:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    cfg = OmegaConf.create({"value": OverridesParser.create().parse_override(word).value()})
    resolve_config(cfg)
    return cfg.value


def test_what_is_quoted_for_hydra_stays_so_and_a_second_reading_changes_nothing() -> None:
    for text in ("'a man, smiling'", '"a man, smiling"', "'it\\'s'"):
        assert Command.read("sample", [f"prompt={text}"]).keys == (f"prompt={text}",)
    for text in SENTENCES:
        once = Command.read("sample", [f"prompt={text}"]).keys
        assert Command.read("sample", once).keys == once, "as processes of Lightning read it"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("prompt=[a dancer, a boxer]", ["a dancer", "a boxer"]),
        ("prompt=[2024, true]", ["2024", "true"]),
        ("prompt=['a man, smiling']", ["a man, smiling"]),
        ("source=[front.png,2.png]", ["front.png", "2.png"]),
        ("source=[front.png]", ["front.png"]),
        ("prompt=null", None),
    ],
)
def test_lists_and_null_stay_what_they_are(word: str, value: object) -> None:
    (key,) = Command.read("sample", [word]).keys
    assert groups_value(key) == value


@pytest.mark.parametrize(
    "name", ["pose (1).json", "it's mine.json", "a,b=c.json", "Fotos Müller.json", "[1].json", "1e3"]
)
def test_paths_that_exist_and_paths_to_write_need_no_quotes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    words = [f"poses={name}", f"checkpoint={name}", f"+adapter.path={name}", f"paths.output=new {name}", "prompt=a"]
    read = [groups_value(word) for word in Command.read("sample", words).keys]
    assert read == [name, name, name, f"new {name}", "a"]
    (key,) = Command.read("convert", [f"target=new, {name}"]).keys
    assert groups_value(key) == f"new, {name}"


def test_names_that_look_like_numbers_are_names() -> None:
    for text in ("2024", "true", "1.5", "1e3", "nan", "off"):
        assert groups_value(*Command.read("train", [f"study={text}"]).keys) == text


def test_with_m_a_comma_parts_values_and_text_without_one_stays_text() -> None:
    words = ["-m", "prompt=a man, 2024", "study=1,2", "checkpoint=null"]
    swept = Command.read("sample", words)
    assert swept.keys == ("prompt='a man','2024'", "study='1','2'", "checkpoint=null")
    assert [len(axis.words) for axis in swept.axes() or ()] == [2, 2, 1]
    assert Command.read("sample", ["-m", "prompt='a man, smiling'"]).keys == ("prompt='a man, smiling'",)
    (key,) = Command.read("sample", ["-m", "prompt=a woman's dance"]).keys
    assert groups_value(key) == "a woman's dance"
    table = Command.read("benchmark", ["adapter.path=A,B", "title=ours, second try"])
    assert table.keys == ("adapter.path='A','B'", "title='ours, second try'")
    assert Command.read("train", ["experiment=tune", "study=a,b"]).keys[1] == "study='a','b'"


def test_interpolations_in_paths_are_hydras() -> None:
    (word,) = Command.read("sample", ["paths.output=${oc.env:HOME}/x y"]).keys
    assert not str(groups_value(word)).startswith("$")


def test_a_prompt_that_is_no_utf8_is_one_error() -> None:
    with pytest.raises(UserError, match="is no UTF-8"):
        Command.read("sample", ["prompt=caf\udce9"])


def test_literal_text_survives_whatever_stands_before_it() -> None:
    for text in ("${a}", "\\${a}", "\\\\${a}", "x ${", "${${a}}", "\\"):
        assert OmegaConf.create({"text": as_literal(text)}).text == text


def test_every_text_at_the_top_of_a_verb_is_known_as_such() -> None:
    """A new key of a verb that takes text must be added to the list, or named here."""
    others = {"headline", "reproduction", "objective", "size", "count", "canvas", "port", "splits", "title", "column",
              "wandb", "progress", "accelerator", "baseline", "garment", "what", "practice", "positional", "method", "dataset", "long_prompts", "private", "topology"}  # fmt: skip
    for file in groups.conf_dir().glob("*.yaml"):
        for key, value in re.findall(r"^([a-z_]+): *(\S*)", file.read_text(), re.MULTILINE):
            text = value in ("null", "???") or (value and not re.match(r"[\d\[{&$]|true|false", value))
            assert not text or is_text(key) or key in others, f"{file.name}: {key}"
