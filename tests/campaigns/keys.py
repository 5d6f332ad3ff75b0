"""Every key of every verb with bad values: what its schema forbids is refused by name, what it allows runs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from posegen.config.typed_text import is_text
from tests.campaigns.study import Study, cell_of
from tests.campaigns.trying import Campaign, Child, Try, posegen

RUN = ("train", "benchmark", "evaluate", "sample", "report", "power", "annotate", "prepare")
VERBS = (*RUN, "transfer", "convert", "profile", "demo", "table", "parity")
VALUES: tuple[Any, ...] = (
    -1, 0, 1, -2.5, 0.5, 10**6, 10**18, 10**400, 1e-300, math.nan, math.inf, -math.inf, True, False, None, "", "text", "nan", "none,none", "../x", [], [1], [[]], ["a", None], {}, {"a": 1}, {"_target_": "os.system"}, {1: 2},
)  # fmt: skip
SCALARS = {"integer": int, "number": (int, float), "boolean": bool, "string": str}
KINDS = SCALARS | {"array": (list, tuple), "object": dict, "null": type(None)}


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    study.finished  # noqa: B018 - before the dice
    found = described(study)
    return [*refusals(campaign, found), *runs(campaign, study, found, dice)]


def described(study: Study) -> dict[str, dict[str, Any]]:
    """Verb -> key -> its setting, each key with the first verb that has it."""
    from posegen.config.checking.settings import settings
    from posegen.config.compose import composed

    words = {"benchmark": ["benchmark=smoke"], "sample": ["prior=gunet"]}
    found: dict[str, dict[str, Any]] = {}
    for verb in VERBS:
        with composed(verb, words.get(verb, [])) as cfg:
            known = {key for keys in found.values() for key in keys}
            found[verb] = {each.key: each for each in settings(cfg, verb) if each.key not in known}
    return found


def allowed(setting: Any, value: Any) -> bool | None:
    """Whether a value is right by what the setting says of itself; None where a conversion or a range decides."""
    if "any" in setting.kinds:
        return None
    if isinstance(value, float) and not math.isfinite(value) and setting.finite:
        return False
    kinds = [kind for kind in setting.kinds if kind in KINDS]
    fits = any(isinstance(value, KINDS[kind]) and (not isinstance(value, bool) or kind == "boolean") for kind in kinds)
    if not fits:
        lenient = "string" in kinds if isinstance(value, str | int) else isinstance(value, float) and value.is_integer()
        return None if lenient else False
    if setting.choices and isinstance(value, str | int | float | bool):
        return value in setting.choices or (None if len(kinds) > 1 else False)
    return None


def faults(setting: Any) -> Iterator[str]:
    """Wrong values that a setting accepts, or refuses without its name; an integer that may be any."""
    for value in VALUES:
        problems = "".join(map(str, replace(setting, value=value).problems()))
        if allowed(setting, value) is False and not problems:
            yield f"{setting.key}, {setting.words}: accepts {value!r:.40}"
        if problems and setting.key not in problems:
            yield f"{setting.key} is not named: {problems}"
    if set(setting.kinds) - {"null"} == {"integer"} and not setting.range:
        yield f"{setting.key} has no range"


def refusals(campaign: Campaign, found: dict[str, dict[str, Any]]) -> Iterator[Try]:
    """In a child for each verb: what the check says about each value of each key."""
    for verb, keys in found.items():

        def attack(keys: dict[str, Any] = keys) -> str:
            def ask() -> int:
                wrong = [fault for setting in keys.values() for fault in faults(setting)]
                print(f"{len(wrong)} faults in {len(keys)} keys", *wrong, sep="\n      ")
                return bool(wrong)

            ending = Child(ask).end()
            return campaign.fault(ending) or (ending.text.strip() if ending.code else "")

        yield Try(f"check {verb}: {len(keys)} keys with {len(VALUES)} values", attack, always=True)


def runs(campaign: Campaign, study: Study, found: dict[str, dict[str, Any]], dice: random.Random) -> Iterator[Try]:
    """Through the command line: refused by name, or run to an end with finite weights."""
    asked = [(verb, key) for verb in RUN for key in found[verb]]
    for (verb, key), value in product(asked, VALUES):

        def attack(verb: str = verb, key: str = key, value: Any = value) -> str:
            place = study.copy(study.finished)
            words = [verb, *start(study, place, verb), f"{key}={typed(value)}"]
            ending = posegen(words, place).end(90)
            if fault := campaign.fault(ending):
                return fault
            if ending.code:
                return campaign.refused(ending, key.rpartition(".")[2])
            given = typed(value) if is_text(key, verb) else value  # false is a word where words are expected
            if problems := replace(found[verb][key], value=given).problems():
                return f"exit 0, although the check says {problems[0]}"
            return not_finite(place / "o")

        yield Try(f"posegen {verb} {key}={typed(value)}", attack)


def start(study: Study, place: Any, verb: str) -> list[str]:
    """A command of the verb that runs in a second or two."""
    cells = [f"paths.output={place / 'o'}", f"paths.cache={place / 'cache'}"]
    folder = place / "outputs/benchmark/smoke"
    judge = next(word for word in study.world if word.startswith("estimator"))
    return {
        "train": [*study.world, *cells, "budget.steps=2"],
        "benchmark": [*study.command(place)[1:], "adapter=none", f"paths.output={place / 'o'}"],
        "evaluate": [*study.world, *cells, "adapter=none"],
        "sample": [*study.world, *cells, f"checkpoint={cell_of(place, 'controlnet')}"],
        "report": [str(folder)],
        "power": [str(cell_of(place, "none")), str(cell_of(place, "controlnet"))],
        "annotate": [f"source={cell_of(place, 'none') / 'samples'}", f"target={place / 'found.json'}", judge],
        "prepare": [*[word for word in study.world if word.startswith("data")], f"paths.cache={place / 'cache'}"],
    }[verb]


def typed(value: Any) -> str:
    """The value as Hydra's grammar has it."""
    if isinstance(value, str):
        return value if value.isalpha() or not value else f"'{value}'"
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def not_finite(output: Any) -> str:
    from safetensors.torch import load_file

    from posegen.io.weights import not_finite as bad

    for file in output.rglob("*.safetensors"):
        if names := bad(load_file(file)):
            return f"exit 0, and {len(names)} tensors of {file.name} are not finite"
    return ""
