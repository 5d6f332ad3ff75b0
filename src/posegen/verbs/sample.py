"""Generate images from poses and prompts."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.runner.cell import Cell
from posegen.runner.components import Parts
from posegen.runner.experiment import weights_of, with_checkpoint
from posegen.runner.generate import Generation
from posegen.runner.stage import UNFINISHED, Stage, complete
from posegen.runner.user_requests.prompts import Illustration, with_prompts
from posegen.train.loop import set_threads


def main(cfg: DictConfig) -> None:
    """Generates the images of ``data.test``, or of a prompt, with a trained method."""
    cfg = with_checkpoint(with_prompts(cfg))
    set_threads(cfg)
    parts = Parts(cfg)
    cell = Cell.of(cfg, parts.content("test"))
    stages: list[Stage] = [Generation(parts, cell.folder, weights_of(cfg, cell.folder))]
    if cfg.prompt is not None:
        stages.append(Illustration(parts, cell.folder))
    finished = complete(cell, stages, parts.shard)
    print(f"{cell.folder / 'samples'}{'' if finished else UNFINISHED}")
