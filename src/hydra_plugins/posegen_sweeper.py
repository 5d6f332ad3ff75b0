"""Hydra takes its plugins from the package ``hydra_plugins`` alone; posegen's is written in
`posegen.config.sweeper`."""

from posegen.config import sweeper as tuning


class OptunaSweeper(tuning.OptunaSweeper):
    """``hydra/sweeper=optuna``."""
