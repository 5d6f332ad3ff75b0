"""A scheduler's notice: the signal by which it says that it will soon end a job.

submitit asks Slurm for SIGUSR2; its handler queues the job again and exits wherever the program is. Slurm sends the
signal to every process of a job, also to those that would die of it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TERM, USR2 = signal.SIGTERM, getattr(signal, "SIGUSR2", None)  # Windows has the first alone
PATIENCE = 90  # seconds for the end of a step, of the 120 that hydra.launcher.signal_delay_s leaves


class Notice:
    """Puts off what SIGTERM and SIGUSR2 do, between `listen` and `restore`, until somebody calls `obey`."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.before: dict[int, Any] = {}

    def listen(self, tell: Callable[[], None] = lambda: None) -> None:
        """``tell`` is called when the notice comes. SIGUSR2 is put off only where somebody handles it."""
        if threading.current_thread() is not threading.main_thread():
            return

        def note(number: int, _: Any) -> None:
            self.came.append(number)
            if number == USR2:
                signal.signal(signal.SIGALRM, lambda *_: self.obey())
                signal.alarm(PATIENCE)
            tell()

        handlers = {number: signal.getsignal(number) for number in (TERM, USR2) if number is not None}
        self.before = {
            n: handler for n, handler in handlers.items() if callable(handler) or (n == TERM and handler == 0)
        }
        self.came = []
        for number in self.before:
            signal.signal(number, note)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
            if number == USR2:
                signal.alarm(0)

    def obey(self) -> None:
        """Does what the signals would have done: queues the job again, where submitit does, and exits."""
        self.restore()
        if USR2 in self.came:
            self.before[USR2](USR2, None)
        raise SystemExit(128 + TERM)


def outlive(_: int) -> None:
    """Lets a loader's worker go on after SIGTERM, which Slurm sends to all processes, until the training has saved."""
    if hasattr(signal, "alarm"):
        signal.signal(TERM, lambda *_: signal.alarm(PATIENCE))


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes that start within the block inherit that SIGUSR2 is blocked. A thread hears it for this one, whose
    handlers run in the main thread all the same."""
    if USR2 is None or not callable(signal.getsignal(USR2)):
        yield
        return
    done, number = threading.Event(), USR2

    def hear() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        done.wait()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    threading.Thread(target=hear, daemon=True).start()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()
