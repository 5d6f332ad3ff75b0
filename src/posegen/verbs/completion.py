"""Print the completion script of a shell.

Tab asks ``posegen -sc SHELL`` about the command line in ``COMP_LINE``, as Hydra's scripts do. The answer has verbs,
options of groups from the file tree, keys of the configuration so far, values of keys that are chosen from a list, and
files where a key takes one. Scripts split the answer and leave quoting to their shell.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from posegen.config.app import FLAGS, Command
from posegen.config.checking.settings import Setting
from posegen.config.groups import groups, primaries
from posegen.config.nodes import has_target, target_path
from posegen.config.schema import VERBS, NodeKeys
from posegen.config.typed_text import is_place, is_text
from posegen.config.verb_files import positional, verbs
from posegen.errors import UserError

# The first line of the answer says how bash takes the others: as file names, which it quotes and ends, or as they are.
BASH = r"""_posegen() {
    local choice how
    COMPREPLY=()
    while IFS= read -r choice; do
        if [[ -z "$how" ]]; then how="$choice"; else COMPREPLY+=("$choice"); fi
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" posegen -sc bash 2>/dev/null)
    if [[ "$how" == filenames ]]; then compopt +o nospace -o filenames; fi
}
complete -o nospace -F _posegen posegen"""
ZSH = r"""(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
_posegen() {
    local choice
    local -a whole part
    while IFS= read -r choice; do
        if [[ $choice == *' ' ]]; then whole+=("${choice% }"); else part+=("$choice"); fi
    done < <(COMP_LINE="${(j: :)words[1,CURRENT-1]} $QIPREFIX$IPREFIX$PREFIX" posegen -sc zsh 2>/dev/null)
    compadd -S ' ' -a whole
    compadd -S '' -a part
}
compdef _posegen posegen"""
FISH = r"""function _posegen
    COMP_LINE=(commandline -cp | string collect) posegen -sc fish 2>/dev/null | string replace -r ' $' ''
end
complete -c posegen -f -a '(_posegen)'"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
BREAKS = "=:"  # where bash parts words, of the characters that stand in ours
FOLDER_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")


def main(cfg: DictConfig) -> None:
    if not cfg.shells:
        raise UserError(f"name a shell: posegen completion {' or '.join(SCRIPTS)}")
    for shell in cfg.shells:
        print(SCRIPTS[shell])


def answer(shell: str) -> None:
    """Prints what may stand at the end of ``COMP_LINE``, for a shell's script."""
    line = Line.read(os.environ.get("COMP_LINE", "posegen "))
    choices = [choice for choice in completions(line) if "\n" not in choice]
    if shell == "bash":
        files = choices and all(map(is_file_choice, choices))
        cut = [choice[line.cut :] for choice in choices]
        choices = ["filenames", *(choice.rstrip(" /") or choice for choice in cut)] if files else ["words", *cut]
    sys.stdout.buffer.write(b"".join(os.fsencode(f"{choice}\n") for choice in choices))


@dataclass(frozen=True)
class Line:
    """A command line up to the cursor, as shells part it."""

    words: list[str]  # before the last one, without quotes
    last: str  # the begun word, without quotes; empty behind a space
    cut: int = 0  # how many of its characters bash keeps: it completes behind the last `BREAKS` and quotation mark

    @classmethod
    def read(cls, text: str) -> Line:
        words, last, begun, cut = list[str](), "", False, 0
        quote, escaped, opened = "", False, 0
        for mark in text:
            if escaped or (quote and mark != quote and not (mark == "\\" and quote == '"')):
                last, escaped = last + mark, False
            elif mark == "\\":
                begun = escaped = True
            elif mark in "'\"":
                quote, begun, opened = "" if quote else mark, True, len(last)
            elif mark.isspace():
                words, last, begun, cut = [*words, last] if begun or last else words, "", False, 0
            else:
                last += mark
                cut = len(last) if mark in BREAKS and mark in os.environ.get("COMP_WORDBREAKS", BREAKS) else cut
        return cls(words, last, opened if quote else cut)


def completions(line: Line | str) -> list[str]:
    """What the last word may become; what is complete ends in a space, a folder in a slash."""
    line = Line.read(line) if isinstance(line, str) else line
    word = line.last
    if len(line.words) < 2:
        return starting_with(word, (f"{verb} " for verb in verbs()))
    verb, before = line.words[1], line.words[2:]
    if verb in ("list", "completion") or (verb == "check" and not before):
        names = groups() if verb == "list" else SCRIPTS if verb == "completion" else primaries() & set(verbs())
        return starting_with(word, (f"{name} " for name in sorted(names)))
    if verb == "check":
        verb, before = before[0], before[1:]
    if before and before[-1] in FOLDER_FLAGS:
        return files_at(word)
    if verb not in primaries():
        return []
    return [*(files_at(word) if positional(verb) else ()), *override_choices(verb, before, word)]


def override_choices(verb: str, before: Sequence[str], word: str) -> list[str]:
    """Flags, options, groups and keys that ``word`` may become, and the values of a key."""
    if word.startswith("-"):
        return starting_with(word, sorted(FLAGS))
    try:
        command = Command.read(verb, before)
    except UserError:  # a flag is misspelt
        return []
    known = command.known
    key, equals, value = word.partition("=")
    prefix, name = key[: len(key) - len(key.lstrip("+~"))], key.lstrip("+~")
    if equals and name in known:
        return sweep_choices(key, value, known[name])
    if equals and is_place(name) and is_text(name, verb):
        return files_at(value, f"{key}=")
    if equals and (listed := schema_choices(verb, name)):
        return sweep_choices(key, value, listed)
    try:
        cfg = command.readable()[1].base()
    except Exception:  # a half-typed line may be wrong in any way, and completion must stay silent
        return []
    if equals:
        return sweep_choices(key, value, value_choices(cfg, name))
    if positional(verb) and not word:
        return []  # files alone
    shown = [f"{group}=" for group in known if "/" not in group or name.startswith("hydra")]
    return sorted({f"{prefix}{match}" for match in starting_with(name, [*shown, *key_choices(cfg, name)])})


def sweep_choices(key: str, value: str, choices: Iterable[Any]) -> list[str]:
    """``key=choice``, behind the last comma of a sweep."""
    done, comma, last = value.rpartition(",")
    words = (str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)
    return [f"{key}={done}{comma}{choice}" for choice in starting_with(last, words)]


def schema_choices(verb: str, name: str) -> list[Any]:
    """The values that the schema of a verb lists for a key; empty where it lists none."""
    kind: Any = VERBS[verb]
    for part in name.split("."):
        keys = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, NodeKeys)]
        kind = get_type_hints(keys[0], include_extras=True).get(part) if keys else None
    setting = Setting(name, None, kind)
    return [] if kind is None else list(setting.choices) or [False, True] * ("boolean" in setting.kinds)


def value_choices(cfg: DictConfig, name: str) -> list[Any]:
    """The values that the class of a node lists for a key; of other keys the value that they have."""
    with suppress(Exception):  # of a half-typed line
        found, node = OmegaConf.select(cfg, name), OmegaConf.select(cfg, name.rpartition(".")[0] or name)
        if listed := literals(str(target_path(node)), name.rpartition(".")[2]) if has_target(node) else []:
            return list(listed)
        if not OmegaConf.is_config(found):
            return [False, True] if isinstance(found, bool) else [] if found is None else [found]
    return []


def literals(target: str, argument: str) -> list[str]:
    """The values in the annotation ``Literal[...]`` of an argument of a class, read without importing it."""
    parts = target.split(".")
    root = Path(__file__).resolve().parents[2]
    files = [root.joinpath(*parts[:i]).with_suffix(".py") for i in range(len(parts) - 1, 0, -1)]
    file = next((file for file in files if file.is_file()), None)
    tree = ast.parse(file.read_text(encoding="utf-8") if file else "")
    for owner in [node for node in ast.walk(tree) if getattr(node, "name", None) in parts[-2:]]:
        for node in ast.walk(owner):
            if isinstance(node, ast.arg) and node.arg == argument and node.annotation is not None:
                return [
                    value.value
                    for literal in ast.walk(node.annotation)
                    if isinstance(literal, ast.Subscript) and getattr(literal.value, "id", "") == "Literal"
                    for value in ast.walk(literal.slice)
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                ]
    return []


def files_at(start: str, before: str = "") -> list[str]:
    """The files and folders whose paths begin with ``start``, each behind ``before``."""
    folder, slash, name = start.rpartition("/")
    with suppress(OSError, ValueError):
        entries = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)
        found = [entry for entry in entries if entry.name.startswith(name) and (name or entry.name[0] != ".")]
        return [f"{before}{folder}{slash}{entry.name}{'/' if entry.is_dir() else ' '}" for entry in found]
    return []


def is_file_choice(choice: str) -> bool:
    place = choice[:-1] if choice[-1:] in " /" else ""
    return bool(place) and os.path.lexists(os.path.expanduser(place.rpartition("=")[2] or place))


def key_choices(cfg: Any, name: str) -> list[str]:
    """The keys at the place that a dotted name has come to; containers end in a dot."""
    place = name.rpartition(".")[0]
    node = OmegaConf.select(cfg, place, throw_on_resolution_failure=False) if place else cfg
    if not isinstance(node, DictConfig):
        return []
    hidden = {"positional"} | ({"hydra"} if not name.startswith("hydra") else set())
    found = [str(key) for key in node if not str(key).startswith("_") and key not in hidden]
    ends = {key: "." if isinstance(node._get_node(key), DictConfig) else "=" for key in found}
    return [f"{place}.{key}{end}".lstrip(".") for key, end in ends.items()]


def starting_with(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
