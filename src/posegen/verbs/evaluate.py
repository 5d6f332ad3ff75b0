"""Judge a trained method."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from posegen.config.app import Command
from posegen.report.formats import row_terminal
from posegen.report.rows import row_of
from posegen.report.wandb import ResultsOnDashboard, tell_offline_runs
from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.experiment import announce, splits_of, weights_of, with_checkpoint
from posegen.runner.generate import Generation
from posegen.runner.judge import Judging
from posegen.runner.stage import UNFINISHED, complete
from posegen.train.loop import set_threads
from posegen.verbs.judge import judge_further


def start(command: Command) -> int:
    """The cells by the first judge of ``estimator=[a,b]``, then their pictures by the others; the highest exit code."""
    first, *others = judges = command.judges()
    code = first.run()
    if not others or code:
        return code
    cells = [Path(cfg.paths.cell) for cfg, _ in first.cells()]
    return judge_further(judges, cells, first.base())


def main(cfg: DictConfig) -> None:
    """Samples the test split with a trained method, judges it and prints the metrics."""
    cfg = with_checkpoint(cfg)
    set_threads(cfg)
    components = Components(cfg)
    components.protocol.check()
    cell = Cell.of(cfg, components.content(*splits_of(cfg)))
    generation = Generation(components, cell.folder, weights_of(cfg, cell.folder))
    stages = [generation, Judging(components, cell.folder), ResultsOnDashboard(components, cell.folder)]
    announce(cfg, generation, cell)
    if not complete(cell, stages, components.shard):
        print(f"{cell.folder}{UNFINISHED}")
        return
    row, _ = row_of([cell.folder], components.protocol)
    print(row_terminal(row, components.protocol.headline()))
    tell_offline_runs(cfg)
