"""Where curves go; each function is a ``logger`` option, ``(parts, cell folder) -> Lightning logger``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from posegen.runner.errors import UserError
from posegen.runner.parts import Parts


def csv(parts: Parts, folder: Path) -> Any:
    """``metrics.csv`` in the cell's folder; a resumed run appends."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(str(folder), name="", version="curves")
