"""``posegen VERB [group=option] [key=value] [Hydra's flags]``.

Each verb is a Hydra application whose primary configuration is ``conf/VERB.yaml``, or a plain function of its arguments. Nothing heavy is imported before a
verb runs: help, listing and completion answer at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module

import yaml

from posegen.config import groups as listing
from posegen.config.problems import misspelt
from posegen.verbs.registry import VERBS

EXAMPLES = """\
  posegen benchmark                                          a table in minutes, offline
  posegen train adapter=controlnet seed=1                    one method, one seed
  posegen train -m adapter=controlnet,humansd seed=0,1       a sweep; the same command again resumes it
  posegen list adapters                                      the methods and their papers
  posegen check train adapter=controlnet optim.lr=1e-4       what is wrong, before anything is loaded"""

#: Flags that ask about a configuration instead of running it; Hydra answers them for every verb that has one.
QUESTIONS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"posegen {version('posegen')}")
        return 0
    verb, rest = split(words)
    if verb not in VERBS:
        print(f"posegen: {misspelt(verb, 'no such verb', verb, VERBS)}", file=sys.stderr)
        return 2
    try:
        return run(verb, rest)
    except KeyboardInterrupt:
        print(f"\nposegen {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def split(words: list[str]) -> tuple[str, list[str]]:
    """The verb and what stands behind it; processes that Lightning starts name the verb as Hydra does, with ``--config-name``."""
    for flag in ("--config-name", "-cn"):
        if words[0] == flag and len(words) > 1:
            return words[1], words[2:]
    if words[0] in ("-sc", "--shell-completion"):
        return "completion", words[1:]
    return words[0], words[1:]


def run(verb: str, rest: list[str]) -> int:
    """Runs a verb; errors that a user can mend have been printed as one message when it returns."""
    chosen = VERBS[verb]
    asks = any(word.split("=")[0] in QUESTIONS for word in rest) and verb in listing.primaries()
    if chosen.takes != "arguments" or asks:
        from posegen.config.app import run_hydra

        return run_hydra(verb, chosen.target, rest, spread=chosen.takes == "keys")
    if {"--help", "-h"} & set(rest) and (file := listing.conf_dir() / "hydra" / "help" / f"{verb}.yaml").is_file():
        print(yaml.safe_load(file.read_text(encoding="utf-8"))["header"])
        return 0
    module, _, function = chosen.target.partition(":")
    given: object = rest
    if verb == "parity":
        from omegaconf import OmegaConf

        given = OmegaConf.create({"cases": rest})
    try:
        return getattr(import_module(module), function)(given) or 0
    except Exception as error:
        from posegen.config.app import tell, traceback_wanted

        return tell(error, verb, rest, traceback_wanted())


def help_text() -> str:
    """Examples, verbs and groups, read from the file tree."""
    column = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{column}}  {verb.summary}" for name, verb in VERBS.items())
    found = {
        name: options
        for name, options in listing.groups().items()
        if not name.startswith("hydra/") or name in ("hydra/launcher", "hydra/sweeper")
    }
    return f"""posegen compares pose-guided human image generators.

{EXAMPLES}

usage: posegen VERB [group=option ...] [key=value ...] [-m to sweep over values] [--cfg job to see the configuration]

Verbs (posegen VERB --help tells more):
{verbs}

Groups (posegen list GROUP tells what each option is):
{listing.overview(found, shutil.get_terminal_size((120, 24)).columns)}

Tab completion: eval "$(posegen completion bash)" """.rstrip()


if __name__ == "__main__":
    sys.exit(main())
