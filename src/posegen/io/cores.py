"""The processor cores that there are to use."""

import os


def cores() -> int:
    """Those that this process may use: of its job on a cluster or its container, not of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
