"""The engine of all campaigns: a command of posegen in a forked child with limits, what it left, and how it fell.

Everything is imported once, in `warm`; a child is forked for each try, so that a try costs what the command computes.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

LIMIT = 120.0  # seconds of a try, unless its campaign knows better
MEMORY = 6 << 30  # bytes that a try may take beyond what the campaign itself has
OUTPUT = 1 << 16  # characters of a child's output that are looked at, from its end
#: What Python and libraries say to programmers; a user cannot mend "range() arg 3 must not be zero".
FOREIGN_WORDS = re.compile(
    r"zip\(\) argument|range\(\) arg|weights_only|allow_pickle|is not subscriptable|object is not|unhashable type"
    r"|list indices must|string indices must|has no attribute|not supported between|unsupported operand"
    r"|can't (?:de|en)code|codec can't|maximum recursion|Exceeds the limit|not enough values|too many values"
    r"|unexpected keyword|positional argument|invalid literal|could not convert|must be str, not|expected str, bytes"
)


@dataclass(frozen=True)
class Ending:
    """How a try ended: its exit code (negative: the signal; None: its time was over) and what it printed."""

    code: int | None
    text: str
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The last lines, for reports."""
        return self.text.strip()[-600:]


class Child:
    """A forked process that runs ``action``, in a session of its own, its output in a file."""

    def __init__(self, action: Callable[[], int | None], folder: Path | None = None) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(action, folder)

    def _run(self, action: Callable[[], int | None], folder: Path | None) -> None:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(self.output.fileno(), 1)
            os.dup2(1, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                os.chdir(folder)
            code = action() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 255)

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self, limit: float = LIMIT) -> Ending:
        """Waits for the process, at most until the limit, and ends what it left running."""
        while self.running() and time.monotonic() - self.started < limit:
            time.sleep(0.01)
        late = self.running()
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet in its own session, or gone
            self.kill()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - OUTPUT))
        text = self.output.read().decode(errors="replace")
        self.output.close()
        return Ending(None if late else code, text, time.monotonic() - self.started)


def posegen(words: Sequence[str], folder: Path | None = None) -> Child:
    """Starts ``posegen words`` in ``folder``."""
    return Child(lambda: import_module("posegen.cli").main(list(words)), folder)


@dataclass(frozen=True)
class Try:
    """One attack: what a person does to repeat it, and the attack itself, which says how posegen fell ("": it held)."""

    name: str
    attack: Callable[[], str]
    always: bool = False  # cheap, and not left to the dice


@dataclass
class Campaign:
    """What became of the tries of one campaign."""

    name: str
    canary: Path
    tried: int = 0
    fell: list[str] = field(default_factory=list)

    def fault(self, ending: Ending) -> str:
        """How a command fell whatever it was asked: code was run, a crash, a hang, a traceback."""
        if self.canary.exists():
            self.canary.unlink()
            return "code of a file was run"
        if ending.code is None:
            return f"no end within {ending.seconds:.0f} s: {ending.message}"
        if ending.code < 0 or ending.code in (134, 139):
            return f"crash with code {ending.code}: {ending.message}"
        if "Traceback (most recent call last)" in ending.text:
            return f"traceback: {ending.message[-300:]}"
        return ""

    def refused(self, ending: Ending, *named: str) -> str:
        """As `fault`, and the command must have refused, in words for its user that hold everything ``named``."""
        if fault := self.fault(ending):
            return fault
        if ending.code == 0:
            return f"exit 0 for what is to be refused: {ending.message}"
        if foreign := FOREIGN_WORDS.search(ending.text):
            return f"words for programmers ({foreign[0]}): {ending.message}"
        missing = [name for name in named if name not in ending.text]
        return f"the message does not name {', '.join(missing)}: {ending.message}" if missing else ""

    def run(self, tries: Iterable[Try]) -> None:
        """Runs the tries one after the other; prints what falls at once, and every minute how far it is."""
        shown = time.monotonic()
        for each in tries:
            try:
                reason = each.attack()
            except Exception:  # of the campaign itself
                reason = f"the campaign failed: {traceback.format_exc()}"
            if self.canary.exists():
                self.canary.unlink()
                reason = reason or "code of a file was run"
            self.tried += 1
            if reason:
                self.fell.append(f"{each.name}\n    {reason}")
                print(f"fell: {self.fell[-1]}", flush=True)
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(self.summary, flush=True)

    @property
    def summary(self) -> str:
        return f"{self.name}: {self.tried} tried, {self.tried - len(self.fell)} held, {len(self.fell)} fell"


def some(tries: Sequence[Try], count: int | None, dice: random.Random) -> list[Try]:
    """The tries that are always made, and ``count`` of the others in an order of the dice; all of them with None."""
    first, others = [each for each in tries if each.always], [each for each in tries if not each.always]
    return first + dice.sample(others, len(others) if count is None else min(count, len(others)))


def warm() -> None:
    """Imports what the verbs import, before the first child is forked."""
    from posegen.config.verb_files import verbs

    for verb in verbs().values():
        import_module(verb.module)
    import_module("posegen.pipeline")
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # no thread that a child would not have
