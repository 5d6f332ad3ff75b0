"""Training: one Lightning fit per cell, continued from its last checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.errors import record

from posegen.errors import UserError
from posegen.io.locks import locked
from posegen.runner.batches import Needs
from posegen.runner.components import Components
from posegen.runner.encodings import cached_latents, cached_text
from posegen.runner.precision import device_of
from posegen.runner.progress import note_costs
from posegen.runner.stage import Stage
from posegen.train.callbacks import CHECKPOINT
from posegen.train.ema import EMA
from posegen.train.fsdp import whole
from posegen.train.launch import Processes, run_together
from posegen.train.loggers import CellCSVLogger, keep_curves, with_curves
from posegen.train.tasks import AdapterTask, Task
from posegen.train.training_batches import EpochBatches, Share, training_loader

#: Lightning's ddp for methods of which not every part takes part in every step.
DDP = "ddp_find_unused_parameters_true"


class Training(Stage):
    """Trains the task of a cell and exports it to ``folder/method`` with its averaged weights."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    def todo(self) -> Sequence[str]:
        return (
            [] if (self.folder / "method").is_dir() else ["method"]
        )  # the export is the last thing that training does

    def run(self) -> None:
        with locked(self.folder / ".training"):  # processes that share the cell train it once
            if self.todo():
                fit(self.components, self.folder)


def fit(components: Components, folder: Path) -> None:
    """Trains a cell, with as many processes as ``trainer`` asks for."""
    group = Processes.of(components.cfg)
    set_threads(components.cfg)
    if group.size > 1:
        run_together(train_process, components.cfg, folder, group)
    else:
        fit_here(components, folder)


def set_threads(cfg: DictConfig) -> None:
    """Fixes the thread count, on which results depend."""
    torch.set_num_threads(cfg.budget.threads)


@record
def train_process(config: dict[str, Any], folder: Path) -> None:
    """One of several processes that train a cell together."""
    cfg = OmegaConf.create(config)
    set_threads(cfg)
    fit_here(Components(cfg), folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def fit_here(components: Components, folder: Path, rank: int = 0, size: int = 1) -> None:
    """The part of `fit` that each of ``size`` processes does."""
    task = build_task(components)
    require_normalisable(task, components.cfg, size)
    if task.count_trained():
        weights, average, complete = run(components, task, folder, Share(rank, size))
        if not complete:
            return
    elif isinstance(task, AdapterTask) and task.adapter.trains:
        raise UserError(
            f"adapter={components.cfg.method} has nothing to train with these settings; switch some of its parts on"
        )
    else:
        weights, average = {}, {}
    if rank:
        return
    if weights:  # divided ones, put together
        task = build_task(Components(components.cfg))
        task.load_state_dict(weights, strict=False)
    if average:
        task.load_state_dict(average, strict=False)
    task.export(folder / "method")
    note_costs(folder, trained_parameters=task.count_trained())
    (folder / CHECKPOINT).unlink(missing_ok=True)


def build_task(components: Components) -> Task:
    """The configured task, a LightningModule."""
    return instantiate(components.cfg.task, _convert_="all")(components)


def run(
    components: Components, task: Task, folder: Path, share: Share
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], bool]:
    """The fit itself, from the last checkpoint where there is one.

    Returns:
        The weights if the strategy divided them, the averaged weights if a callback averages, and whether the
        training came to its end (``fast_dev_run`` does not).
    """
    cfg = components.cfg
    checkpoint = folder / CHECKPOINT
    resumed = Resumed.read(checkpoint)
    data = components.data("train")
    data.prepare()
    accumulate = cfg.optim.accumulate
    batches = EpochBatches(len(data), cfg.optim.batch // accumulate, cfg.seed, accumulate, resumed.place, share)
    loader = training_loader(data, needs_of(task, components), batches, cfg.compute.workers)
    if share.rank == 0:
        keep_curves(folder)
    with quiet():
        trainer = build_trainer(cfg, folder, share.count)
        for logger in trainer.loggers:
            if not isinstance(logger, CellCSVLogger):  # config.yaml stands in the cell already
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        try:
            trainer.fit(task, loader, ckpt_path=str(checkpoint) if resumed.step else None, weights_only=True)
        except SIGTERMException as stop:  # its exit code would be 0
            raise SystemExit(128 + signal.SIGTERM) from stop
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits by itself, deaf to further Ctrl-C
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from stop
            raise
        finally:
            finish_loggers(trainer.loggers)
    average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA(0.0))
    divided = share.count > 1 and not isinstance(cfg.trainer.strategy, str)
    weights = whole(task.state_dict()) if divided else {}
    return weights, whole(average.averaged()), not trainer.fast_dev_run


def build_trainer(cfg: DictConfig, folder: Path, processes: int = 1) -> Trainer:
    """Lightning's Trainer with the configured callbacks and loggers."""
    nodes = (cfg.get("callbacks") or {}).values()
    callbacks: list[Callback] = [instantiate(node, _convert_="all") for node in nodes if node]
    added: dict[str, Any] = {"plugins": [TorchElasticEnvironment() if processes > 1 else LightningEnvironment()]}
    if processes > 1 and cfg.trainer.strategy == "auto":
        added["strategy"] = DDP
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        added["enable_checkpointing"] = False  # no file of Lightning's default where the user removed ours
    added = {name: value for name, value in added.items() if name == "strategy" or name not in cfg.trainer}
    configured = instantiate(cfg.logger, _convert_="all") if cfg.get("logger") else None
    logger = with_curves(configured, folder)
    return instantiate(
        cfg.trainer, callbacks=callbacks, logger=logger, default_root_dir=str(folder), **added, _convert_="all"
    )


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Ends runs that stay open, as W&B's do; the next cell of this process starts another."""
    for logger in loggers:
        if callable(finish := getattr(logger.experiment, "finish", None)):
            finish()


@dataclass(frozen=True)
class Resumed:
    """Where a checkpoint was saved.

    Attributes:
        step: optimiser steps.
        place: (epoch, batches of it that were seen).
    """

    step: int = 0
    place: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, checkpoint: Path) -> Resumed:
        """The place of a checkpoint, the start without one."""
        if not checkpoint.is_file():
            return cls()
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            seen = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
            return cls(int(state["global_step"]), (int(state["epoch"]), int(seen)))
        except Exception as error:  # torch raises many kinds for a damaged file
            raise UserError(
                f"{checkpoint} cannot be read ({error}); delete it to train this cell from the start"
            ) from error


def require_normalisable(task: Task, cfg: DictConfig, processes: int) -> None:
    """Refuses batch statistics of a share: torch puts them together on GPUs alone."""
    trained = {name.rpartition(".")[0] for name, p in task.named_parameters() if p.requires_grad}
    kind = torch.nn.modules.batchnorm._BatchNorm
    normed = [name for name, module in task.named_modules() if isinstance(module, kind) and name in trained]
    if processes > 1 and normed and device_of(cfg.trainer.accelerator).type == "cpu":
        raise UserError(
            f"adapter={cfg.method} normalises over the batch ({len(normed)} times, first in {normed[0]}), and "
            "processes on "
            "the CPU cannot share its statistics; train it with trainer.devices=1 or on GPUs"
        )


# What the batches hold.


def needs_of(task: Task, components: Components) -> Needs:
    """What the task's batches must hold, with the encodings of the whole split computed once."""
    latents, text = encodings(components, task.needs)
    negative = None
    if text is not None:
        with torch.no_grad():
            negative = components.backbone.encode_text([""]).to("cpu")
    hint = components.adapter.hint if isinstance(task, AdapterTask) else None
    encoded = latents is not None or "latents" not in task.needs  # otherwise images are encoded as they come
    fields = task.needs if encoded else task.needs | {"images"}
    return Needs(fields, hint, latents, source_latents(components, task.needs), text, negative)


def source_latents(components: Components, fields: Collection[str]) -> Any:
    """Latents of the sources of the training split, where each image has one source that always looks the same;
    computed once and cached."""
    data = components.data("train")
    if "source_latents" not in fields or data.varies or len(data.sources_of(0)) > 1:
        return None
    cache, mode = Path(components.cfg.paths.cache), components.cfg.progress
    return cached_latents(data, components.backbone, cache, mode, "source latents")


def encodings(components: Components, fields: Collection[str] | None = None) -> tuple[Any, Any]:
    """(latents, text states) of the training split, where ``fields`` (by default, what a method trains on) ask for
    them; computed once and cached. Images that look different on every visit have no latents to keep."""
    fields = {components.backbone.trains_on, "text"} if fields is None else fields
    data, cache, mode = components.data("train"), Path(components.cfg.paths.cache), components.cfg.progress
    keeps = "latents" in fields and not data.varies
    latents = cached_latents(data, components.backbone, cache, mode) if keeps else None
    text = cached_text(data, data.prompts, components.backbone, cache, mode) if "text" in fields else None
    return latents, text


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Lightning's advice on what posegen does on purpose (no workers, a resumed epoch)."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    chatty = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        yield
    for logger, level in zip(chatty, levels, strict=True):
        logger.setLevel(level)
