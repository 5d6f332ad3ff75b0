"""Print the completion script of a shell.

Tab asks ``posegen -sc query``, as Hydra's script does. The answer has verbs, options of groups from the file tree, and
keys of the configuration so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.app import FLAGS, Command
from posegen.config.groups import groups, primaries
from posegen.config.verb_files import verbs
from posegen.errors import UserError

# Bash completes the part behind its last word break, '=' or ':' say, so the part before is cut off every choice.
BASH = r"""_posegen() {
    local line="${COMP_LINE:0:COMP_POINT}" choice
    local word="${line##* }" breaks="${COMP_WORDBREAKS//[^=:]/}"
    local cut=""
    [[ -n "$breaks" && "$word" == *["$breaks"]* ]] && cut="${word%"${word##*["$breaks"]}"}"
    COMPREPLY=()
    while IFS= read -r choice; do
        COMPREPLY+=("${choice#"$cut"}")
    done < <(COMP_LINE="$line" posegen -sc query 2>/dev/null)
}
complete -o nospace -o default -F _posegen posegen"""
SCRIPTS = {"bash": BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"}


def main(cfg: DictConfig) -> None:
    if not cfg.shells:
        raise UserError(f"name a shell: posegen completion {' or '.join(SCRIPTS)}")
    for shell in cfg.shells:
        print(SCRIPTS[shell])


def completions(line: str) -> list[str]:
    """What may stand at the end of a command line; names that are complete end in a space."""
    words = line.split()
    word = "" if line.endswith(" ") or len(words) < 2 else words.pop()
    if len(words) < 2:
        return starting_with(word, (f"{verb} " for verb in verbs()))
    verb, before = words[1], words[2:]
    if verb in ("list", "completion") or (verb == "check" and not before):
        names = groups() if verb == "list" else SCRIPTS if verb == "completion" else primaries() & set(verbs())
        return starting_with(word, (f"{name} " for name in sorted(names)))
    if verb == "check":
        verb, before = before[0], before[1:]
    return override_choices(verb, before, word) if verb in primaries() else []


def override_choices(verb: str, before: Sequence[str], word: str) -> list[str]:
    """Flags, options, groups and keys that ``word`` may become."""
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
        done = value.rpartition(",")[0]  # options before the last comma of a sweep
        return starting_with(word, (f"{key}={done},{option}" if done else f"{key}={option}" for option in known[name]))
    try:
        cfg = command.readable()[1].base()
    except Exception:  # a half-typed line may be wrong in any way, and completion must stay silent
        return []
    if equals:
        found = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
        if found is None or OmegaConf.is_config(found):
            return []
        return starting_with(word, [f"{key}={v}" for v in (("false", "true") if isinstance(found, bool) else (found,))])
    shown = [f"{group}=" for group in known if "/" not in group or name.startswith("hydra")]
    return sorted({f"{prefix}{match}" for match in starting_with(name, [*shown, *key_choices(cfg, name)])})


def key_choices(cfg: Any, name: str) -> list[str]:
    """The keys at the place that a dotted name has come to; containers end in a dot."""
    place = name.rpartition(".")[0]
    node = OmegaConf.select(cfg, place, throw_on_resolution_failure=False) if place else cfg
    if not isinstance(node, DictConfig):
        return []
    found = [str(key) for key in node if not str(key).startswith("_") and (key != "hydra" or name.startswith("hydra"))]
    ends = {key: "." if isinstance(node._get_node(key), DictConfig) else "=" for key in found}
    return [f"{place}.{key}{end}".lstrip(".") for key, end in ends.items()]


def starting_with(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
