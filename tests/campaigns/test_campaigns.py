"""Each campaign with a few tries; ``python -m tests.campaigns NAME tries=1000 seed=7`` runs longer ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.__main__ import CAMPAIGNS
from tests.campaigns.trying import Campaign, Child

ENVIRONMENT = {"tries": "POSEGEN_CAMPAIGN", "seed": "POSEGEN_SEED"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_nothing_falls(name: str, tmp_path: Path) -> None:
    options = [f"{key}={os.environ[variable]}" for key, variable in ENVIRONMENT.items() if variable in os.environ]
    command = [sys.executable, "-m", "tests.campaigns", name, f"place={tmp_path}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def crash() -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def test_what_counts_as_a_fall(tmp_path: Path) -> None:
    """The engine notices code that was run, crashes, hangs, tracebacks, and refusals that help nobody."""
    campaign = Campaign("engine", tmp_path / "canary")

    def fault(action: object, limit: float = 20.0) -> str:
        return campaign.fault(Child(action).end(limit))  # type: ignore[arg-type]

    def said(text: str, code: int = 1) -> str:
        return campaign.refused(Child(lambda: print(text) or code).end(), "poses.json")

    assert fault(lambda: 0) == ""
    assert "was run" in fault(lambda: campaign.canary.touch())
    assert "crash" in fault(crash)
    assert "traceback" in fault(lambda: 1 // 0)
    assert "no end" in fault(lambda: signal.pause() or 0, 0.5)
    assert said("posegen sample: poses.json is empty; name another file") == ""
    assert "exit 0" in said("poses.json", 0)
    assert "does not name poses.json" in said("posegen sample: the file is empty")
    assert "words for programmers" in said("posegen sample: poses.json: list indices must be integers")
