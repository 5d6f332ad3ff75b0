"""Tab completion behind a verb: verbs, options of groups from the file tree, keys from the configuration composed so far."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from posegen.config import groups as listing
from posegen.errors import UserError
from posegen.verbs.registry import VERBS

HELP = """Print the completion script of a shell; put the line into the shell's start file to have it always.

  eval "$(posegen completion bash)"
  eval "$(posegen completion zsh)\""""

# Bash completes what stands behind the last of its word breaks, which include '=' and ':', so the part before is cut off every choice.
BASH = r"""_posegen() {
    local line="${COMP_LINE:0:COMP_POINT}" choice
    local word="${line##* }" breaks="${COMP_WORDBREAKS//[^=:]/}"
    local cut=""
    [[ -n "$breaks" && "$word" == *["$breaks"]* ]] && cut="${word%"${word##*["$breaks"]}"}"
    COMPREPLY=()
    while IFS= read -r choice; do
        COMPREPLY+=("${choice#"$cut"}")
    done < <(COMP_LINE="$line" posegen completion query 2>/dev/null)
}
complete -o nospace -o default -F _posegen posegen"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
SCRIPTS = {"bash": BASH, "zsh": ZSH + BASH}
FLAGS = ("--help", "--multirun", "--cfg", "--info", "--config-dir", "--hydra-help")


def main(argv: Sequence[str]) -> int:
    """``posegen completion SHELL``; ``query`` answers for the line in COMP_LINE."""
    word = argv[0].removeprefix("install=") if argv else "--help"
    if word in ("-h", "--help"):
        print(HELP)
    elif word in SCRIPTS:
        print(SCRIPTS[word])
    elif word.removesuffix("=bash") == "query":
        print("\n".join(complete(os.environ.get("COMP_LINE", "posegen "))))
    else:
        raise UserError(f"{word}: no completion for this shell; available: {', '.join(SCRIPTS)}")
    return 0


def complete(line: str) -> list[str]:
    """What may stand at the end of a command line; names that are complete end in a space."""
    words = line.split()
    word = "" if line.endswith(" ") or len(words) < 2 else words.pop()
    if len(words) < 2:
        return matching(word, (f"{verb} " for verb in VERBS))
    verb, before = words[1], words[2:]
    if verb == "list":
        return matching(word, (f"{group} " for group in listing.groups()))
    if verb == "completion":
        return matching(word, (f"{shell} " for shell in SCRIPTS))
    if verb == "check":
        if not before:
            return matching(word, (f"{name} " for name in sorted(listing.primaries() & set(VERBS))))
        verb, before = before[0], before[1:]
    return overrides(verb, before, word) if verb in listing.primaries() else []


def overrides(verb: str, before: Sequence[str], word: str) -> list[str]:
    """Options, groups and keys that ``word`` may become."""
    if word.startswith("-"):
        return matching(word, FLAGS)
    groups = listing.groups(listing.roots(_extra(before)))
    key, equals, value = word.partition("=")
    prefix, name = key[: len(key) - len(key.lstrip("+~"))], key.lstrip("+~")
    if equals and name in groups:
        done = value.rpartition(",")[0]  # options before the last comma of a sweep
        return matching(word, (f"{key}={done},{option}" if done else f"{key}={option}" for option in groups[name]))
    cfg = _composed(verb, before)
    if equals:
        return matching(word, (f"{key}={value}" for value in values(cfg, name)))
    own = [f"{group}=" for group in groups if "/" not in group or name.startswith("hydra")]
    return sorted({f"{prefix}{match}" for match in (*matching(name, own), *matching(name, keys(cfg, name)))})


def keys(cfg: Any, name: str) -> list[str]:
    """The keys at the place that a dotted name has come to; containers end in a dot."""
    from omegaconf import DictConfig, OmegaConf

    place = name.rpartition(".")[0]
    node = OmegaConf.select(cfg, place, throw_on_resolution_failure=False) if place else cfg
    if not isinstance(node, DictConfig):
        return []
    found = [
        (str(key), node._get_node(key))
        for key in node
        if not str(key).startswith("_") and (key != "hydra" or name.startswith("hydra"))
    ]
    return [
        f"{place}.{key}{end}".lstrip(".")
        for key, child in found
        for end in ("." if isinstance(child, DictConfig) else "=",)
    ]


def values(cfg: Any, name: str) -> list[str]:
    """What a key may be set to: the two truth values, or what it is now."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False) if cfg is not None else None
    if isinstance(value, bool):
        return ["false", "true"]
    return [] if value is None or OmegaConf.is_config(value) else [str(value)]


def _composed(verb: str, before: Sequence[str]) -> Any:
    """The configuration of the words so far, or of the verb alone where they do not compose yet; None if that does not either."""
    from posegen.config.app import Request
    from posegen.config.overrides import examine

    try:
        return examine(Request.parse(verb, [word for word in before if "," not in word]))[1].compose()
    except (Exception, SystemExit):  # a half-typed line may be wrong in any way, and completion must stay silent
        return None


def _extra(before: Sequence[str]) -> list[str]:
    folders = [after for flag, after in pairwise(before) if flag in ("--config-dir", "-cd")]
    return folders + [
        entry for word in before if word.startswith("hydra.searchpath=") for entry in listing.searchpath(word)
    ]


def matching(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
