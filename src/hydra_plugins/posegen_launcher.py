"""Hydra takes its plugins from the package ``hydra_plugins`` alone; posegen's is written in
`posegen.config.launcher`."""

from posegen.config import launcher as sweeps


class LocalLauncher(sweeps.LocalLauncher):
    """``hydra/launcher=local``."""
