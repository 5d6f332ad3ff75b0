"""The browser that tests of pages use."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
needs_browser = pytest.mark.skipif(
    not CHROMIUM.is_file(), reason=f"no {CHROMIUM}: the Debian package chromium is missing"
)
