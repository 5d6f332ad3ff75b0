"""Training: one Lightning fit per cell, continued from its last checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.errors import record

from posegen.errors import UserError
from posegen.io.atomic import set_aside
from posegen.io.locks import locked
from posegen.runner.batches import Needs
from posegen.runner.components import Components
from posegen.runner.encodings import cached_latents, cached_text, tell_cut_prompts
from posegen.runner.method_folder import load_into
from posegen.runner.precision import device_of
from posegen.runner.progress import note_costs
from posegen.runner.stage import Stage, only_signals_stop
from posegen.train.callbacks import CHECKPOINT
from posegen.train.ema import EMA
from posegen.train.finite import RequireFinite
from posegen.train.fsdp import whole
from posegen.train.launch import Processes, SameCell, end_group, joined, require_gpus, run_together
from posegen.train.logger_runs import log_as, logger_nodes, logger_of
from posegen.train.loggers import close_runs, keep_curves, open_runs, with_curves
from posegen.train.notice import unheard_by_children
from posegen.train.resume import (
    AFTER_TRAINING,
    WholeCheckpoints,
    kept_training,
    load_start,
    read_checkpoint,
    saved_place,
    unusable,
)
from posegen.train.tasks import AdapterTask, Task
from posegen.train.training_batches import EpochBatches, Share, training_loader

Weights = dict[str, torch.Tensor]


class Training(Stage):
    """Trains the task of a cell and exports it to ``folder/method`` with its averaged weights."""

    def __init__(self, components: Components, folder: Path) -> None:
        self.components, self.folder = components, folder

    def todo(self) -> Sequence[str]:
        done = (self.folder / "method").is_dir()  # the export is the last thing that training does
        return [] if done else ["method"]

    def lost(self) -> Sequence[Path]:
        # Once a cell is sampled, its weights may be deleted to save space.
        kept = [self.folder / name for name in ("method", "samples", "records.csv")]
        return [] if any(place.exists() for place in kept) else [self.folder / "method"]

    def run(self) -> None:
        with locked(self.folder / ".training"):  # processes that share the cell train it once
            if self.todo():
                fit(self.components, self.folder)
                if self.todo():  # a process of several left early
                    raise RuntimeError(f"the training of {self.folder} ended without a method")

    def mend(self) -> None:
        """Sets damaged weights aside, with all that came from them, or a damaged checkpoint."""
        checkpoint, method = self.folder / CHECKPOINT, self.folder / "method"
        with locked(self.folder / ".training"):
            try:
                if method.is_dir() and trains_weights(self.components):
                    load_into(self.components.adapter, self.components.backbone, method)
                elif checkpoint.is_file():
                    read_checkpoint(checkpoint, whole=True)
            except UserError as error:
                names = AFTER_TRAINING if method.is_dir() else [CHECKPOINT]
                set_aside(self.folder, names, error, "the training is done again")
                self.components = Components(self.components.cfg)  # half of the weights may be in place

    def fault(self) -> str:
        found = unusable(self.folder / "method")
        fix = "The same command again sets it aside and trains again; with a lower optim.lr it may not diverge"
        return found and f"{found}, and the cell was finished. {fix}"

    def kept(self) -> str:
        return "the trained method" if not self.todo() else kept_training(self.folder)


def fit(components: Components, folder: Path) -> None:
    """Trains a cell, with as many processes as ``trainer`` asks for."""
    group = Processes.of(components.cfg)
    set_threads(components.cfg)
    if group.size == 1:
        fit_here(components, folder)
    elif group.started is None:
        run_together(train_process, components.cfg, folder, group)
    else:
        require_gpus(group.devices, components.cfg.trainer.accelerator)
        with joined(group), only_signals_stop():
            fit_here(components, folder, group.started.rank, group.size)


def set_threads(cfg: DictConfig) -> None:
    """Fixes the thread count, on which results depend."""
    torch.set_num_threads(cfg.budget.threads)


@record
def train_process(config: dict[str, Any], folder: Path) -> None:
    """One of several processes that train a cell together."""
    cfg = OmegaConf.create(config)
    set_threads(cfg)
    if torch.cuda.is_available():  # which encodings are computed on, before Lightning chooses the same
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with only_signals_stop():
        fit_here(Components(cfg), folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    end_group()


def fit_here(components: Components, folder: Path, rank: int = 0, size: int = 1) -> None:
    """The part of `fit` that each of ``size`` processes does."""
    task = build_task(components)
    require_normalisable(task, components.cfg, size)
    if components.cfg.checkpoint is not None:
        load_start(task, Path(components.cfg.checkpoint))
    if task.count_trained():
        weights, average, complete = run(components, task, folder, Share(rank, size))
        if not complete:
            return
    elif isinstance(task, AdapterTask) and task.adapter.trains:
        nothing = f"adapter={components.cfg.method} has nothing to train with these settings"
        raise UserError(f"{nothing}; switch some of its parts on")
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


def trains_weights(components: Components) -> bool:
    """Whether the cell trains a pose-guidance method that has weights."""
    return issubclass(get_class(components.cfg.task._target_), AdapterTask) and components.bare_adapter.trainable


def build_task(components: Components) -> Task:
    """The configured task, a LightningModule."""
    return instantiate(components.cfg.task, _convert_="all")(components)


def run(components: Components, task: Task, folder: Path, share: Share) -> tuple[Weights, Weights, bool]:
    """The fit itself, from the last checkpoint where there is one.

    Returns:
        The weights if the strategy divided them, the averaged weights if a callback averages, and whether the
        training came to its end (``fast_dev_run`` does not).
    """
    cfg, checkpoint = components.cfg, folder / CHECKPOINT
    step, place = saved_place(checkpoint)
    data, accumulate = components.data("train"), cfg.optim.accumulate
    data.prepare()
    task.require(data)
    batches = EpochBatches(len(data), cfg.optim.batch // accumulate, cfg.seed, accumulate, place, share)
    loader = training_loader(data, needs_of(task, components), batches, cfg.compute.workers)
    if share.rank == 0:
        keep_curves(folder)
        tell_cut_prompts(components.backbone, data.prompts)
    with quiet():
        trainer = build_trainer(cfg, folder, share)
        open_runs(trainer.loggers, quiet=cfg.progress == "file")
        failed = True
        try:
            with unheard_by_children():  # the loader's workers
                trainer.fit(task, loader, ckpt_path=str(checkpoint) if step else None, weights_only=True)
            failed = False
        except UserError as error:
            if " in DataLoader worker process " in str(error):  # torch put its traceback around it
                raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error
            raise
        except SIGTERMException as stop:  # its exit code would be 0
            raise SystemExit(128 + signal.SIGTERM) from stop
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits by itself, deaf to further Ctrl-C
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from stop
            raise
        finally:
            close_runs(trainer.loggers, failed)
        if not trainer.fit_loop.skip:  # Lightning takes it for the end of the data
            raise RuntimeError(f"a callback, method or data set raised StopIteration in step {trainer.global_step}")
    average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), EMA(0.0))
    divided = share.count > 1 and not isinstance(cfg.trainer.strategy, str)
    weights = whole(task.state_dict()) if divided else {}
    return weights, whole(average.averaged()), not trainer.fast_dev_run


def build_trainer(cfg: DictConfig, folder: Path, share: Share) -> Trainer:
    """Lightning's Trainer with the configured callbacks and loggers."""
    processes = share.count
    nodes = (cfg.get("callbacks") or {}).values()
    callbacks: list[Callback] = [RequireFinite(), *(instantiate(node, _convert_="all") for node in nodes if node)]
    callbacks += [SameCell(cfg.paths.cell)] if processes > 1 else []
    environment = TorchElasticEnvironment() if processes > 1 else LightningEnvironment()
    added: dict[str, Any] = {"plugins": [environment, WholeCheckpoints()]}
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        added["enable_checkpointing"] = False  # no file of Lightning's default where the user removed ours
    added = {name: value for name, value in added.items() if name not in cfg.trainer}
    if processes > 1 and cfg.trainer.strategy == "auto":  # not every part of a method takes part in every step
        added["strategy"] = "ddp_find_unused_parameters_true"
    log_as(share.rank)
    loggers = [logger_of(node, folder, share.rank) for node in logger_nodes(cfg.get("logger"))]
    added |= {"callbacks": callbacks, "logger": with_curves(loggers, folder), "default_root_dir": str(folder)}
    return instantiate(cfg.trainer, **added, _convert_="all")


def require_normalisable(task: Task, cfg: DictConfig, processes: int) -> None:
    """Refuses batch statistics of a share: torch puts them together on GPUs alone."""
    trained = {name.rpartition(".")[0] for name, p in task.named_parameters() if p.requires_grad}
    kind = torch.nn.modules.batchnorm._BatchNorm
    normed = [name for name, module in task.named_modules() if isinstance(module, kind) and name in trained]
    if processes > 1 and normed and device_of(cfg.trainer.accelerator).type == "cpu":
        times = f"({len(normed)} times, first in {normed[0]})"
        why = f"normalises over the batch {times}, and processes on the CPU cannot share its statistics"
        raise UserError(f"adapter={cfg.method} {why}; train it with trainer.devices=1 or on GPUs")


def needs_of(task: Task, components: Components) -> Needs:
    """What the task's batches must hold, with the encodings of the whole split computed once and cached."""
    latents, sources, text = encodings(components, task.needs)
    negative = None
    if text is not None:
        with torch.no_grad():
            negative = components.backbone.encode_text([""]).to("cpu")
    hint = components.adapter.hint if isinstance(task, AdapterTask) else None
    encoded = latents is not None or "latents" not in task.needs  # otherwise images are encoded as they come
    return Needs(task.needs if encoded else task.needs | {"images"}, hint, latents, sources, text, negative)


def encodings(components: Components, fields: Collection[str]) -> tuple[Any, Any, Any]:
    """(latents, latents of the sources, text states) of the training split, where ``fields`` ask for them; computed
    once, on the configured device, and cached. Images that look different on every visit have no latents to keep."""
    data, backbone, cfg = components.data("train"), components.backbone, components.cfg
    where, fixed = (data, backbone, Path(cfg.paths.cache), cfg.progress), not data.varies
    home = next(backbone.parameters()).device
    backbone.to(device_of(cfg.trainer.accelerator))
    latents = cached_latents(*where) if "latents" in fields and fixed else None
    paired = "source_latents" in fields and fixed and len(data.sources_of(0)) == 1  # which always looks the same
    sources = cached_latents(*where, "source latents") if paired else None
    text = cached_text(data, data.prompts, *where[1:]) if "text" in fields else None
    backbone.to(home)
    return latents, sources, text


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Lightning's advice on what posegen does on purpose (no workers, a resumed epoch)."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
