"""Where caches lie: the variables POSEGEN_CACHE and XDG_CACHE_HOME, else ``.cache`` in the home folder."""

from __future__ import annotations

import os
from pathlib import Path

from posegen.errors import UserError


def cache_folder() -> Path:
    """posegen's cache; a `UserError` where no variable says where it is, as in containers and jobs without HOME."""
    if chosen := os.environ.get("POSEGEN_CACHE"):
        return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "posegen"
    if home := os.environ.get("HOME") or os.environ.get("USERPROFILE"):  # the latter on Windows
        return Path(home) / ".cache" / "posegen"
    raise UserError("HOME is not set; say where caches go with POSEGEN_CACHE=FOLDER or XDG_CACHE_HOME=FOLDER")
