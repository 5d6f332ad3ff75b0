"""``python -m tests.campaigns [CAMPAIGN ...] [tries=N|all] [seed=K] [only=TEXT] [place=FOLDER]``"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

#: Campaign -> tries of an ordinary run.
CAMPAIGNS = {
    "readers": 20,
    "kills": 6,
    "states": 40,
    "keys": 100,
    "malicious": 50,
    "together": 10,
    "disk": 6,
    "typed": 25,
}


def main(words: list[str]) -> int:
    import tests.conftest  # noqa: F401  (threads, no network)
    from tests.campaigns.study import Study
    from tests.campaigns.trying import Campaign, some, warm

    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word] or list(CAMPAIGNS)
    root = Path(options.get("place") or tempfile.mkdtemp(prefix="campaigns"))
    os.environ["XDG_CACHE_HOME"] = str(root / "home")
    start = time.monotonic()
    warm()
    print(f"warm after {time.monotonic() - start:.0f} s")
    code = 0
    for name in names:
        dice = random.Random(f"{name} {options.get('seed', 0)}")
        campaign, study = Campaign(name, root / "canary"), Study(root / name)
        start = time.monotonic()
        found = import_module(f"tests.campaigns.{name}").tries(campaign, study, dice)
        print(f"{name}: {len(found)} tries prepared after {time.monotonic() - start:.0f} s", flush=True)
        found = [each for each in found if options.get("only", "") in each.name]
        count = options.get("tries", CAMPAIGNS[name])
        campaign.run(some(found, None if count == "all" else int(count), dice))
        print(f"{campaign.summary}; seed {options.get('seed', 0)}, {time.monotonic() - start:.0f} s", flush=True)
        code |= bool(campaign.fell)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
