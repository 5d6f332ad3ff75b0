"""Change a person's clothes to those of another picture, and nothing else."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.experiment import announce, weights_of, with_checkpoint, with_long_prompts
from posegen.runner.stage import UNFINISHED, complete
from posegen.runner.user_requests.transfer import Transfer, with_picture
from posegen.train.loop import set_threads


def main(cfg: DictConfig) -> None:
    """Dresses the person in ``picture``, or people of the test split, and writes pictures, a comparison and records."""
    cfg = with_checkpoint(with_long_prompts(with_picture(cfg)))
    set_threads(cfg)
    components = Components(cfg)
    cell = Cell.of(cfg, components.content("test"))
    stage = Transfer(components, cell.folder, weights_of(cfg, cell.folder))
    announce(cfg, stage, cell)
    if not complete(cell, [stage], components.shard):
        print(f"{cell.folder}{UNFINISHED}")
        return
    summary = (cell.folder / "summary.csv").read_text(encoding="utf-8")
    print(f"{stage.samples}\n{cell.folder / 'comparison.png'}\n{summary}", end="")
