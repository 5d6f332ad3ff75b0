"""Text on the command line: prompts, names and paths arrive as they were typed, without quotes for Hydra.

Hydra reads ``key=value`` by a grammar, in which commas, quotes, brackets and numbers have meanings. The values of the
keys in `TEXT` are quoted before it sees them. Quotes that Hydra understands, ``null``, lists and, with ``-m``, sweeps
stay what they are.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from posegen.config import nodes
from posegen.config.schema import VERBS, CellKeys
from posegen.errors import UserError

#: Sentences. ``${`` is text in them, and brackets around a single text belong to it.
SENTENCE = re.compile(r"(^|\.)(prompt|negative_prompt|title|message)$")
#: Places on the disk. In these and in `TEXT`, ``${...}`` is Hydra's.
PLACE = re.compile(
    r"^(source|target|weights|poses|picture|mask|prompts|overlays|joint_vectors|out|expected|checkpoints)$"
    r"|(^|\.)(path|folder|file|root|checkpoint|cache|autoencoder|names)$|^(paths|files)\."
    r"|^data\.(poses|prompts|images|mapping|exclude)$"
    r"|^estimator\.(config|weights|detector_path)$"
)
#: Names of things.
NAME = re.compile(
    r"^(study|repo|revision|name)$|^logger\.(project|entity|name|group|notes|job_type|save_dir)$|(^|\.)id$"
    r"|^data\.(strip|add)_prefix$"
)
#: All keys whose values are text.
TEXT = re.compile(rf"{SENTENCE.pattern}|{PLACE.pattern}|{NAME.pattern}")
#: Those that can be lists.
LISTED = re.compile(rf"{PLACE.pattern}|^prompt$")
ELSEWHERE = re.compile(r"^\w{2,}:")  # hub:owner/name, https://...
ASKS = re.compile(r"\$\{[^}]*\}")
MARKS = frozenset("'\"\\[]{}()$")  # with any of these, a list's parts are left to Hydra's grammar


def hydra_text(word: str, sweeps: Callable[[], bool], verb: str = "train") -> str:
    """The override ``word`` of a verb with its value quoted where it is text that Hydra would read as something else.

    ``sweeps`` says whether the command is a sweep, where ``a,b`` is two values. Values of other keys are quoted only
    where they are an existing path with characters of Hydra's grammar.
    """
    key, equals, value = word.partition("=")
    if not equals or value in ("", "null"):
        return word
    if not is_text(key, verb):
        return (
            f"{key}={quoted(value)}"
            if exists(value) and (set("=,") & set(value) or hydra_value(value) is None)
            else word
        )
    sentence, there = is_sentence(key), exists(value)
    if sentence and not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{key}={value!a} is no UTF-8; set the terminal or the file it comes from to UTF-8")
    found = hydra_value(value)
    if isinstance(found, QuotedString):
        return word
    if isinstance(found, Sweep) and not there and key.lstrip("+") != "title" and sweeps():
        return f"{key}={quoted_parts(value)}" if isinstance(found, ChoiceSweep) else word
    if isinstance(found, list) and not there and LISTED.search(key.lstrip("+")) and may_be_list(found, sentence):
        return f"{key}=[{quoted_parts(value.strip()[1:-1])}]"
    if not sentence and isinstance(found, dict | str) and not there and value == value.strip():
        return word
    return f"{key}={quoted(as_literal(value) if sentence or there or not ASKS.search(value) else value)}"


def is_text(key: str, verb: str = "train") -> bool:
    name = key.lstrip("+")  # the report's ``poses`` is a number
    return TEXT.search(name) is not None and typing.get_type_hints(VERBS.get(verb, CellKeys)).get(name) is not int


def is_sentence(key: str) -> bool:
    return SENTENCE.search(key.lstrip("+")) is not None


def is_place(key: str) -> bool:
    return PLACE.search(key.lstrip("+")) is not None


def hydra_value(value: str) -> Any:
    """What Hydra's grammar reads in a value; None where it cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")._value
    except HydraException:
        return None


def as_hydra_writes(value: str) -> str:
    """A value as Hydra hands it to the jobs of a sweep, ``{a: b}`` as ``{a:b}``; what it cannot read stays."""
    try:
        return OverridesParser.create().parse_override(f"key={value}").get_value_element_as_str()
    except HydraException:
        return value


def may_be_list(found: list[Any], sentence: bool) -> bool:
    """Whether a list of plain values is meant, and not a sentence in brackets."""
    plain = not any(isinstance(part, list | dict) for part in found)
    return plain and not (sentence and len(found) == 1 and not isinstance(found[0], QuotedString))


def quoted_parts(value: str) -> str:
    """The parts of a list or a choice, quoted so that numbers among them stay text."""
    if MARKS & set(value) or not value.strip():
        return value
    return ",".join(quoted(part.strip()) for part in value.split(","))


def quoted(value: str) -> str:
    return str(QuotedString(value, Quote.single).with_quotes())


def as_literal(value: Any) -> Any:
    """Plain values as OmegaConf is to hold them: ``${`` in a text, however deep, is text and asks for nothing."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: as_literal(each) for key, each in value.items()}
    return [as_literal(each) for each in value] if isinstance(value, list | tuple) else value


def resolve_config(cfg: DictConfig) -> None:
    """As OmegaConf's, which would take ``${`` in a text that it has resolved for a question, the next time."""
    leaves = [leaf for _, leaf in nodes.leaf_nodes(cfg)]
    texts = []
    if any("\\${" in str(leaf._value()) for leaf in leaves):
        values = [(leaf, nodes.value_of(leaf)) for leaf in leaves]
        texts = [(leaf, value) for leaf, value in values if isinstance(value, str) and "${" in value]
    for leaf, _ in texts:
        leaf._set_value("")
    OmegaConf.resolve(cfg)
    for leaf, value in texts:
        leaf._set_value(as_literal(value))


def exists(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or the home of nobody
        return False
