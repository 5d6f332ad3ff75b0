"""Hydra takes its plugins from the package ``hydra_plugins`` alone; posegen's is written in `posegen.runner.tuning`."""

from posegen.runner import tuning


class OptunaSweeper(tuning.OptunaSweeper):
    """``hydra/sweeper=optuna``."""
