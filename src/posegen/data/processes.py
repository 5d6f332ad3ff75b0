"""Many calls of one function in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

from posegen.io.start_method import known_start_method

R = TypeVar("R")


def run_in_processes(function: Callable[..., R], calls: Sequence[tuple], workers: int) -> Iterator[R]:
    """The results of ``function(*call)`` for all calls, as they are finished; one call, or worker, needs no process."""
    if min(workers, len(calls)) <= 1:
        yield from (function(*call) for call in calls)
        return
    with (
        known_start_method(),
        ProcessPoolExecutor(min(workers, len(calls)), mp_context=get_context("spawn")) as pool,
    ):
        jobs = [pool.submit(function, *call) for call in calls]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
