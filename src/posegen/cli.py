"""``posegen VERB [group=option] [key=value] [Hydra's flags]``.

Each verb is a file of ``posegen/verbs`` and a Hydra application with the primary configuration ``conf/VERB.yaml``, see
`posegen.config.verb_files`. Nothing heavy is imported before a verb runs, so that the help answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from posegen.config import groups
from posegen.config.problems import misspelt
from posegen.config.verb_files import verbs

EXAMPLES = """\
  posegen benchmark                                          a table in minutes, offline
  posegen train adapter=controlnet seed=1                    one method, one seed
  posegen train -m adapter=controlnet,humansd seed=0,1       a sweep; the same command again resumes it
  posegen list adapters                                      the methods and their papers
  posegen check train adapter=controlnet optim.lr=1e-4       what is wrong, before anything is loaded"""


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
    if words[0] in ("-sc", "--shell-completion"):  # the question of the shell's script, in Hydra's words
        from posegen.verbs.completion import answer  # composes with Hydra, which the help must not wait for

        answer(words[-1])
        return 0
    if words[0] in ("--config-name", "-cn") and len(words) > 1:  # a process of Lightning names the verb as Hydra does
        words = words[1:]
    (name, *rest), known = words, verbs()
    if name not in known:
        print(f"posegen: {misspelt(name, 'no such verb', name, known)}", file=sys.stderr)
        return 2
    try:
        from posegen.config.app import run_verb  # imports Hydra

        return run_verb(known[name], rest)
    except KeyboardInterrupt:
        print(f"\nposegen {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def help_text() -> str:
    """Examples, verbs and groups, read from the file tree."""
    known, found = verbs(), groups.groups()
    column = max(map(len, known))
    for name in [name for name in found if name.startswith("hydra/")]:
        if name not in ("hydra/launcher", "hydra/sweeper"):
            del found[name]
    listed = "\n".join(f"  {name:<{column}}  {verb.summary}" for name, verb in known.items())
    return f"""posegen compares pose-guided human image generators.

{EXAMPLES}

usage: posegen VERB [group=option ...] [key=value ...] [-m to sweep over values] [--cfg job to see the configuration]

Verbs (posegen VERB --help tells more):
{listed}

Groups (posegen list GROUP tells what each option is):
{groups.group_lines(found, shutil.get_terminal_size((120, 24)).columns)}

Tab completion: eval "$(posegen completion bash)", or see posegen completion --help""".rstrip()


if __name__ == "__main__":
    sys.exit(main())
