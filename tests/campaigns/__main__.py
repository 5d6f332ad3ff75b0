"""``python -m tests.campaigns [CAMPAIGN ...] [tries=N|all] [seed=K] [only=TEXT] [place=FOLDER]``"""

from __future__ import annotations

import os
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

#: Campaign -> tries of an ordinary run, beside those that are always made.
CAMPAIGNS = {
    "readers": 0,
    "kills": 4,
    "states": 25,
    "keys": 15,
    "malicious": 30,
    "together": 10,
    "disk": 4,
    "typed": 15,
}


def main(words: list[str]) -> int:
    """Runs the campaigns, prints what fell, and returns 1 where something did."""
    import tests.conftest  # noqa: F401  (threads, no network)
    from tests.campaigns.trying import warm

    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word] or list(CAMPAIGNS)
    with TemporaryDirectory(prefix="campaigns") as folder:
        root = Path(options.get("place", folder))
        os.environ["XDG_CACHE_HOME"] = str(root / "home")
        warm()
        fell = [
            run(name, root, options.get("seed", "0"), options.get("only", ""), options.get("tries")) for name in names
        ]
    return int(any(fell))


def run(name: str, root: Path, seed: str, only: str, tries: str | None) -> int:
    """Runs one campaign; returns how many tries fell."""
    from tests.campaigns.study import Study
    from tests.campaigns.trying import Campaign, some

    start, used = time.monotonic(), sum(os.times()[:4])
    campaign, study, dice = Campaign(name, root / "canary"), Study(root / name), random.Random(f"{name} {seed}")
    found = import_module(f"tests.campaigns.{name}").tries(campaign, study, dice)
    count = tries or ("all" if only else str(CAMPAIGNS[name]))
    campaign.run(some([each for each in found if only in each.name], None if count == "all" else int(count), dice))
    spent = f"{time.monotonic() - start:.0f} s, {sum(os.times()[:4]) - used:.0f} s of the processor"
    print(f"{campaign.summary}; seed {seed}, {spent}", flush=True)
    return len(campaign.fell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
