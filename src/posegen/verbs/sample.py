"""Generate images from poses and prompts."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.cell import Cell
from posegen.runner.components import Components
from posegen.runner.experiment import announce, weights_of, with_checkpoint, with_long_prompts
from posegen.runner.generate import Generation
from posegen.runner.stage import UNFINISHED, Stage, complete
from posegen.runner.user_requests.prompts import Illustration, with_prompts
from posegen.train.loop import set_threads


def main(cfg: DictConfig) -> None:
    """Generates the images of ``data.test``, or of a prompt, with a trained method."""
    cfg = with_checkpoint(with_long_prompts(with_prompts(cfg)))
    set_threads(cfg)
    components = Components(cfg)
    cell = Cell.of(cfg, components.content("test"))
    stages: list[Stage] = [Generation(components, cell.folder, weights_of(cfg, cell.folder))]
    if cfg.prompt is not None or cfg.prompts is not None:
        stages.append(Illustration(components, cell.folder))
    announce(cfg, stages[0], cell)
    finished = complete(cell, stages, components.shard)
    print(f"{cell.folder / 'samples'}{'' if finished else UNFINISHED}")
