"""List all mistakes of a configuration without running it."""

from __future__ import annotations

import re
import sys

from posegen.config.app import Command
from posegen.config.groups import primaries, roots
from posegen.config.problems import misspelt, problem_report
from posegen.errors import UserError


def start(command: Command) -> int:
    """``posegen check [VERB] WORDS`` checks what ``posegen VERB WORDS`` would run; 0 where nothing is wrong."""
    words = list(command.words)
    verb = words.pop(0) if words and re.fullmatch(r"[a-z]+", words[0]) else "train"
    asked = Command.read(verb, words)
    if verb not in (names := primaries(roots(asked.search, asked.main))):
        raise UserError(str(misspelt(verb, "no such verb to check", verb, names)))
    problems, count = asked.check()
    if problems:
        print(problem_report(problems), file=sys.stderr)
        return 1
    print(f"posegen {verb}: {f'{count} combinations are' if count > 1 else 'the configuration is'} fine")
    return 0
