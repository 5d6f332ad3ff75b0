"""``hydra/sweeper=optuna``: hyper-parameters by Optuna's ask-and-tell interface, an equal budget for every method.

Hydra's Optuna plugin is held at Optuna 2, and treats a list of methods as one more thing to tune. Here a list is swept
as always, and each combination gets a study with the same number of trials; an interval is tuned. Nothing is stored but
the cells: the trials are a function of the seed and of the results of earlier trials, so an interrupted study repeats
them, and finished cells answer at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from posegen.config.groups import groups
from posegen.config.sweep import Axis, axes, combinations
from posegen.errors import UserError
from posegen.io.atomic import write_text


@dataclass
class Study:
    """The trials of one combination."""

    fixed: tuple[str, ...]  # the combination, as overrides
    optuna: Any  # proposes values
    # one per finished trial: tuned values as text, and the objective (None: failed)
    rows: list[tuple[dict[str, str], float | None]] = field(default_factory=list)

    @property
    def best(self) -> tuple[dict[str, str], float | None] | None:
        """The trial with the largest objective, None where all failed."""
        return max((row for row in self.rows if row[1] is not None), key=lambda row: row[1] or 0.0, default=None)


class OptunaSweeper(Sweeper):
    """Asks for ``at_once`` of a study's ``trials`` together; ``params`` are those of the basic sweeper."""

    def __init__(
        self, trials: int, at_once: int, seed: int, sampler: Callable[..., Any], params: Mapping[str, str] | None = None
    ) -> None:
        if trials < 1 or at_once < 1:
            given = f"hydra.sweeper.trials={trials} and hydra.sweeper.at_once={at_once}"
            raise UserError(f"{given}: expected 1 or more of each")
        self.trials, self.at_once, self.seed = trials, at_once, seed
        self.sampler, self.params = sampler, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder = Path(config.hydra.sweep.dir)
        self.runs: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        found = axes(self.params, arguments, groups())
        intervals = {axis.key: distribution(axis) for axis in found if axis.override.is_interval_sweep()}
        if not intervals:
            example = "'optim.lr=tag(log, interval(1e-4, 1e-2))'"
            raise UserError(f"nothing is tuned: give a key an interval, for instance {example}")
        fixed = combinations([axis for axis in found if axis.key not in intervals])
        optuna = optuna_package()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        new: dict[str, Any] = {"direction": "maximize"}
        studies = [Study(words, optuna.create_study(**new, sampler=self.sampler(seed=self.seed))) for words in fixed]
        errors: list[Exception] = []
        for first in range(0, self.trials, self.at_once):
            count = min(self.at_once, self.trials - first)
            asked = [(study, study.optuna.ask(intervals)) for study in studies for _ in range(count)]
            tuned = [tuned_texts(trial.params) for _, trial in asked]
            jobs = [[*study.fixed, *map("=".join, t.items())] for (study, _), t in zip(asked, tuned, strict=True)]
            returns = self.runs.launch(jobs, initial_job_idx=first * len(studies))
            for (study, trial), texts, job in zip(asked, tuned, returns, strict=True):
                study.rows.append((texts, self.tell(study, trial, job, errors)))
            self.report(studies)
        if errors:
            raise errors[0]

    def tell(self, study: Study, trial: Any, job: Any, errors: list[Exception]) -> float | None:
        """Passes a job's objective on to the study; a failed job is a failed trial, one without objective an error."""
        try:
            value = job.return_value
        except Exception as error:  # of the job; the others go on
            errors.append(error)
            study.optuna.tell(trial, state=optuna_package().trial.TrialState.FAIL)
            return None
        if not isinstance(value, float):
            text = f"a trial returned {value!r} instead of a number"
            raise UserError(f"{text}; set objective=headline, or a column of the protocol")
        study.optuna.tell(trial, value)
        return value

    def report(self, studies: Sequence[Study]) -> None:
        """Writes ``tuned.csv``, a line per trial, and prints the best of each study so far."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["study", "trial", *studies[0].rows[0][0], "objective", "best"])
        for study in studies:
            others = [other for other in studies if other is not study]
            name = " ".join(word for word in study.fixed if not others or any(word not in o.fixed for o in others))
            best = study.best
            for number, row in enumerate(study.rows):
                objective = "" if row[1] is None else row[1]
                writer.writerow([name, number, *row[0].values(), objective, int(row is best)])
            found = f"{' '.join(f'{k}={v}' for k, v in best[0].items())} reaches {best[1]:.5g}" if best else None
            so_far = f"after {len(study.rows)} of {self.trials} trials {found or 'every trial failed'}"
            print(f"{name or 'study'}: {so_far}", flush=True)
        write_text(self.folder / "tuned.csv", text.getvalue())


def distribution(axis: Axis) -> Any:
    """Optuna's distribution of an interval: integers where both ends are, logarithmic where it is tagged ``log``."""
    optuna = optuna_package()
    interval: Any = axis.override.value()
    whole = isinstance(interval.start, int) and isinstance(interval.end, int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    try:
        return kind(interval.start, interval.end, log="log" in interval.tags)
    except ValueError as error:
        raise UserError(f"{axis.override.input_line}: {error}") from error


def tuned_texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in params.items()}  # for short folder names


def tpe(seed: int, **settings: Any) -> Any:
    """Optuna's tree-structured Parzen estimator; Hydra can name it where optuna is missing."""
    return optuna_package().samplers.TPESampler(seed=seed, **settings)


def optuna_package() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("hydra/sweeper=optuna needs the extra: pip install 'posegen[optuna]'") from error
    return optuna
