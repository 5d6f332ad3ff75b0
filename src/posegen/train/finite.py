"""A training stops where its loss or its weights are no longer numbers."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from posegen.errors import UserError
from posegen.io.weights import not_finite
from posegen.train.callbacks import CHECKPOINT
from posegen.train.ema import EMA
from posegen.train.resume import saved_place


class RequireFinite(Callback):
    """Ends a training with a UserError when its loss, its weights or their average are NaN or infinite.

    The loss is looked at where Lightning logs it, weights before a checkpoint is written and at the end. So no step
    waits for a GPU, and a finite checkpoint is never replaced by another kind.

    It also ends one of which Lightning takes a StopIteration for the end of an epoch.
    """

    step = 0  # of the last look at the loss
    overflows = 0  # looks, one after the other, at losses that are not finite

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps
        if every and step % every == 0 and step > self.step:
            self.step = step
            self.require_loss(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        require_finite_weights(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready != batches.completed:
            raise RuntimeError(f"a callback or method raised StopIteration in batch {batches.ready} of an epoch")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.require_loss(trainer)
        require_finite_weights(trainer, module)

    def require_loss(self, trainer: Trainer) -> None:
        loss = float(trainer.callback_metrics.get("train/loss", 0.0))
        self.overflows = 0 if math.isfinite(loss) else self.overflows + 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None  # it leaves out a step that overflows
        if self.overflows > int(scaled):
            raise not_a_number(trainer, f"the loss is {loss}")


def require_finite_weights(trainer: Trainer, module: LightningModule) -> None:
    """Raises a UserError where what trains, or its average, is not finite; of divided weights each process looks at
    its part."""
    averages = [callback.average for callback in trainer.callbacks if isinstance(callback, EMA)]
    for what, tensors in (("weights", module.state_dict()), *(("averaged weights", each) for each in averages)):
        here = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        if bad := not_finite(here):
            many = f"{len(bad)} of {len(here)} tensors of the {what} are not finite"
            raise not_a_number(trainer, f"{many}, for instance {bad[0]}")


def not_a_number(trainer: Trainer, found: str) -> UserError:
    """The error of a training that diverged: the step, the learning rate, what to change, and what is kept."""
    rate = max(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)
    step, checkpoint = trainer.global_step, Path(trainer.default_root_dir) / CHECKPOINT
    change = "With these settings it stops there again: lower optim.lr or raise optim.warmup"
    first = "where the loss is not finite from the first step on, look at the data and the adapter's settings"
    kept, saved = "No checkpoint was written before", saved_place(checkpoint)[0]
    if saved:
        way = f"posegen train with the same words and optim.lr={rate / 10:.2g} checkpoint={quote(str(checkpoint))}"
        kept = f"The checkpoint of step {saved} is kept; {way} starts from its weights"
    return UserError(f"training stopped at step {step}: {found} (learning rate {rate:.3g}). {change}; {first}. {kept}")
