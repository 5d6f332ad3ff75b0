"""Training: one Lightning fit per cell, resumable at every saved step."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from posegen.errors import UserError
from posegen.io.text import read_json, write_json
from posegen.runner.batches import Needs, StepBatches, training_loader
from posegen.runner.cell import Cell
from posegen.runner.components import Parts
from posegen.runner.devices import device_of
from posegen.runner.encodings import cached_latents, cached_text
from posegen.runner.precision import precision
from posegen.runner.progress import Progress
from posegen.train.ema import EMA
from posegen.train.fsdp import whole
from posegen.train.launch import Crew, train_together
from posegen.train.tasks import AdapterTask, Task


def train(cfg: DictConfig) -> float | None:
    """The verb ``posegen train``: trains the configured cell, continues it where it was interrupted, or says that it is finished.

    Returns:
        The cell's objective for sweepers, None where nobody asks for one.
    """
    cell = Cell.of(cfg, ["train"])
    cell.check()
    if cell.finished():
        print(f"{cell.folder} is finished; nothing to do")
        return answered(cfg, cell.folder)
    if Crew.of(cfg).node:
        assist(cfg, cell.folder)
        return None
    with cell.working():
        if not cell.finished():  # by another process that was waited for
            prepare_threads(cfg)
            fit(Parts(cfg), cell.folder)
    print(f"{cell.folder} finished")
    return answered(cfg, cell.folder)


def answered(cfg: DictConfig, folder: Path) -> float | None:
    """The objective of a finished cell, where one is wanted."""
    from posegen.train.validation import objective

    if cfg.objective is None:
        return None
    prepare_threads(cfg)
    return objective(cfg, folder)


def prepare_threads(cfg: DictConfig) -> None:
    """Fixes the thread count, on which results depend."""
    torch.set_num_threads(cfg.trainer.threads)


def assist(cfg: DictConfig, folder: Path) -> None:
    """What a cell's other machines do: they train with the first, and leave everything else to it."""
    prepare_threads(cfg)
    fit(Parts(cfg), folder)


def fit(parts: Parts, folder: Path) -> None:
    """Trains the task of ``parts`` in a cell's folder, with as many processes as it is to have, and exports it to ``folder/method`` with its averaged weights.

    Does nothing where ``method`` exists already: the export is the last thing that training does.
    """
    if (folder / "method").is_dir():
        return
    crew = Crew.of(parts.cfg)
    if crew.size > 1:
        train_together(parts.cfg, folder, crew)
    else:
        fit_here(parts, folder, crew)


def fit_here(parts: Parts, folder: Path, crew: Crew) -> None:
    """The part of `fit` that each process does."""
    cfg = parts.cfg
    task = build_task(parts)
    crew.require_normalisable(task, cfg)
    ema = EMA(cfg.trainer.ema)
    if task.count_trained():
        run(parts, task, ema, folder, crew)
    elif isinstance(task, AdapterTask) and task.adapter.trains:
        raise UserError(f"adapter={cfg.method} has nothing to train with these settings; switch some of its parts on")
    weights, ema.average = (whole(task.state_dict()), whole(ema.average)) if crew.divides else ({}, ema.average)
    if crew.rank:
        return
    if crew.divides:
        task = build_task(Parts(cfg))  # one that knows nothing of shares
        task.load_state_dict(weights, strict=False)
    with ema.applied(task):
        task.export(folder / "method")
    note_costs(folder, trained_parameters=task.count_trained())
    (folder / "last.ckpt").unlink(missing_ok=True)


def build_task(parts: Parts) -> Task:
    from hydra.utils import instantiate

    return instantiate(parts.cfg.task, _partial_=True, _convert_="all")(parts)


def run(parts: Parts, task: Task, ema: EMA, folder: Path, crew: Crew) -> None:
    """The fit itself, from the last checkpoint where there is one."""
    cfg, t = parts.cfg, parts.cfg.trainer
    checkpoint = folder / "last.ckpt"
    start = start_step(checkpoint)
    data = parts.data("train")
    data.prepare()
    batches = StepBatches(
        data,
        needs_of(task, parts),
        cfg.optim.batch // cfg.optim.accumulate,
        cfg.seed,
        start * cfg.optim.accumulate,
        crew.rank,
        crew.size,
    )
    callbacks: list[Callback] = [ema, Saver(checkpoint, t.save_every)]
    if crew.rank == 0:
        callbacks.append(Reporter(folder, t.steps, start, cfg.optim.batch, t.progress))
    if t.validate_every and crew.rank == 0 and isinstance(task, AdapterTask) and judgeable(parts, crew):
        from posegen.train.validation import LivePoseAccuracy

        callbacks.append(LivePoseAccuracy(parts, ema, folder, t.validate_every, t.validate_images))
    with quiet():
        trainer = Trainer(
            max_steps=t.steps,
            accelerator=t.accelerator,
            **crew.lightning(device_of(t.accelerator).type),
            precision=precision(t.precision),
            callbacks=callbacks,
            logger=loggers(parts, folder) if crew.rank == 0 else False,
            accumulate_grad_batches=cfg.optim.accumulate,
            gradient_clip_val=cfg.optim.clip,
            log_every_n_steps=t.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(folder),
        )
        try:
            trainer.fit(
                task,
                training_loader(batches, t.workers),
                ckpt_path=str(checkpoint) if start else None,
                weights_only=True if start else None,
            )
        except SIGTERMException as stop:  # whose exit code would be 0
            raise SystemExit(128 + signal.SIGTERM) from stop
    for logger in trainer.loggers:
        if callable(
            finish := getattr(logger.experiment, "finish", None)
        ):  # a W&B run; the next cell of this process starts its own
            finish()
    if trainer.global_step < t.steps:  # Lightning returns normally after Ctrl-C
        raise KeyboardInterrupt


def judgeable(parts: Parts, crew: Crew) -> bool:
    """Whether the protocol can judge what the backbone generates while it trains; says so where it cannot."""
    if crew.divides:
        print("no live curve: with trainer=fsdp no process holds the whole method", flush=True)
        return False
    made, judged = parts.backbone.sample, parts.protocol.sample
    if made != judged:
        print(
            f"no live curve: the backbone generates {made}s and protocol={parts.protocol.name} judges {judged}s",
            flush=True,
        )
    return made == judged


def start_step(checkpoint: Path) -> int:
    """The optimiser step of a checkpoint, 0 without one."""
    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"{checkpoint} cannot be read ({error}); delete it to train this cell from the start"
        ) from error


def needs_of(task: Task, parts: Parts) -> Needs:
    """What the task's batches must hold, with the encodings of the whole split computed once."""
    latents, text = encodings(parts, task.needs)
    negative = None
    if text is not None:
        with torch.no_grad():
            negative = parts.backbone.encode_text([""]).to("cpu")
    hint = parts.adapter.hint if isinstance(task, AdapterTask) else None
    fields = (
        task.needs if latents is not None or "latents" not in task.needs else task.needs | {"images"}
    )  # which are then encoded as they come
    return Needs(fields, hint, latents, source_latents(parts, task.needs), text, negative)


def source_latents(parts: Parts, fields: Collection[str]) -> Any:
    """Those of the training split, where ``fields`` ask for them and each image has one source that always looks the same; computed once and cached."""
    data = parts.data("train")
    if "source_latents" not in fields or data.varies or len(data.sources_of(0)) > 1:
        return None
    return cached_latents(
        data, parts.backbone, Path(parts.cfg.paths.cache), parts.cfg.trainer.progress, "source latents"
    )


def encodings(parts: Parts, fields: Collection[str] | None = None) -> tuple[Any, Any]:
    """(latents, text states) of the training split, where ``fields`` (by default, what a method trains on) ask for them; computed once and cached.

    There are no latents to keep of images that look different on every visit.
    """
    fields = {parts.backbone.trains_on, "text"} if fields is None else fields
    data, cache, mode = parts.data("train"), Path(parts.cfg.paths.cache), parts.cfg.trainer.progress
    latents = cached_latents(data, parts.backbone, cache, mode) if "latents" in fields and not data.varies else None
    text = cached_text(data, data.prompts, parts.backbone, cache, mode) if "text" in fields else None
    return latents, text


def loggers(parts: Parts, folder: Path) -> Any:
    """The configured Lightning logger, and beside every other one the csv: tables and pages are made of what lies in the cell, without a network.

    Each ``logger`` option is a function ``(parts, folder) -> Logger``; None logs nothing.
    """
    from hydra.utils import instantiate
    from lightning.pytorch.loggers import CSVLogger

    from posegen.train.loggers import csv

    if not parts.cfg.logger:
        return False
    chosen = instantiate(parts.cfg.logger, _partial_=True, _convert_="all")(parts, folder)
    return [chosen] if isinstance(chosen, CSVLogger) else [chosen, csv(parts, folder)]


def note_costs(folder: Path, **costs: float) -> None:
    """Adds to ``costs.json``: numbers that may differ between identical runs."""
    path = folder / "costs.json"
    write_json(path, {**(read_json(path) if path.is_file() else {}), **costs})


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice on what this runner does on purpose (no workers, an endless loader, a resumed epoch) is not shown."""
    chatty = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        yield
    for logger, level in zip(chatty, levels, strict=True):
        logger.setLevel(level)


class Saver(Callback):
    """Keeps one checkpoint, replaced atomically; it holds only what trains, the optimiser and the average."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.saved = path, every, 0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if (
            trainer.world_size > 1
        ):  # Lightning would tell the others in the middle of a step; whoever started these processes ends them
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or trainer.received_sigterm  # the scheduler wants the machine back
        if step > self.saved and due and step < trainer.max_steps:
            self.saved = step
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self.path)


class Reporter(Callback):
    """Progress, and the training rate as a cost."""

    def __init__(self, folder: Path, steps: int, start: int, batch: int, mode: Any) -> None:
        self.folder, self.batch, self.start = folder, batch, start
        self.progress = Progress(folder, "train", steps * batch, start * batch, "img", mode)
        self.step = start

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.progress.update(
                (trainer.global_step - self.step) * self.batch, loss=float(trainer.callback_metrics["train/loss"])
            )
            self.step = trainer.global_step

    def on_train_end(self, *_: Any) -> None:
        self.progress.close()
        note_costs(self.folder, train_images_per_s=round(self.progress.rate, 2), peak_memory_mb=peak_memory_mb())


def peak_memory_mb() -> float:
    """Largest memory of the process so far: on the GPU where one is used, else resident."""
    import resource

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
