"""Hydra takes its plugins from the package ``hydra_plugins`` alone; posegen's are written in
`posegen.config.launchers.local`, `posegen.config.launchers.slurm` and `posegen.config.launchers.ray`."""

from typing import Any

from hydra.plugins.launcher import Launcher

from posegen.config.launchers import local, ray
from posegen.errors import UserError

try:
    from posegen.config.launchers import slurm
except ImportError:
    slurm = None  # type: ignore[assignment]


class LocalLauncher(local.LocalLauncher):
    """``hydra/launcher=local``."""


class SlurmLauncher(slurm.SlurmLauncher if slurm else Launcher):  # type: ignore[misc]
    """``hydra/launcher=slurm``."""

    def __init__(self, **params: Any) -> None:
        if slurm is None:
            raise UserError("hydra/launcher=slurm needs the extra: pip install 'posegen[sweep]'")
        super().__init__(**params)


class RayLauncher(ray.RayLauncher):
    """``hydra/launcher=ray``."""
