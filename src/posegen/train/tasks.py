"""What is trained: one Lightning module per task, all run by the same trainer in the same cells."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.hooks import remove_hook_from_module
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posegen.backbones.base import Backbone, Injection, Step
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch, PoseData
from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.losses.base import TrainingLoss
from posegen.ranges import NotNegative, Positive
from posegen.runner.components import Components, build_node
from posegen.runner.method_folder import save_method
from posegen.runner.precision import arranged, waiting_parts
from posegen.train.fsdp import divide_weights
from posegen.train.loggers import log_settings
from posegen.train.optimisers import UpdatesInBackward, build_optimizer, with_own_rates
from posegen.train.recipe import Recipe, hyperparameters, recipe_of


class Task(LightningModule):
    """The shared part: optimiser, schedule, logging, and checkpoints that hold only what trains."""

    needs: frozenset[str] = frozenset()  # optional `PoseBatch` fields that `losses` reads
    divisible: ClassVar[bool] = True  # False where parts outside of the U-Net train, which trainer=fsdp cannot divide
    updates: UpdatesInBackward | None = None  # where ``optim.in_backward`` asks for them

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.components, self.seed = components, int(components.cfg.seed)
        self.strict_loading = False

    @cached_property
    def recipe(self) -> Recipe:
        """Optimiser settings; asked for only where something trains."""
        return recipe_of(self.components, int(self.trainer.estimated_stepping_batches))

    @property
    def batch_size(self) -> int:
        """Images per optimiser step, over all processes."""
        return int(self.components.cfg.optim.batch)

    @property
    def due(self) -> bool:
        """Whether Lightning's loggers get the values of this step."""
        every = self.trainer.log_every_n_steps
        return bool(every) and (self.trainer.global_step + 1) % every == 0

    def require(self, data: PoseData) -> None:
        """Raises a UserError for data that the task cannot train on, before anything is encoded."""

    @abstractmethod
    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Named losses of a batch; ``loss`` is minimised."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes what the task is for; called with the averaged weights in place."""

    def training_step(self, batch: PoseBatch, index: int) -> Tensor:
        # What draws from the global generator (dropout, say) is a function of the step, so that a resumed run repeats
        # it; processes that share a batch must not all drop the same.
        place = self.current_epoch * int(self.trainer.num_training_batches) + index
        torch.manual_seed(self.seed * 1_000_003 + place + (self.global_rank << 40))
        losses = self.losses(batch)
        logged, several = {f"train/{k}": v.detach() for k, v in losses.items()}, self.trainer.world_size > 1
        self.log_dict(logged, batch_size=len(batch), sync_dist=several)  # the mean over all processes
        if self.due:
            groups = self.trainer.optimizers[0].param_groups
            alike = len({group["initial_lr"] for group in groups}) == 1
            names = ["lr"] if alike else [f"lr/{group.get('name', f'pg{i}')}" for i, group in enumerate(groups, 1)]
            self.log_dict({name: group["lr"] for name, group in zip(names, groups, strict=False)})
        return losses["loss"]

    def configure_model(self) -> None:
        """Lightning's hook for dividing weights, which ``trainer=fsdp`` does."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            if self.recipe.optimizer == "muon":
                divided = "optim.optimizer=muon works on whole matrices, which trainer=fsdp divides"
                raise UserError(f"{divided}; use trainer=ddp or optim.optimizer=adamw")
            unet = getattr(getattr(self, "backbone", None), "unet", None)
            divide_weights(self, unet, strategy.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        log_settings(self.loggers, hyperparameters(self))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.updates is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.updates.backward(loss, measure=self._trainer is not None and self.due)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's hook; the logged norm is that of the gradients before, which clipping computes in any case."""
        if self.updates is not None:  # they were clipped, used and freed in the backward pass
            if self.due:
                self.log("train/grad_norm", self.updates.norm())
            return
        plugin = self.trainer.precision_plugin
        usual = type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm  # others clip in ways of their own
        parameters = list(plugin.main_params(optimizer))
        if usual and gradient_clip_val and gradient_clip_algorithm != "value":
            norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if self.due and p.grad is not None])
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.due and usual:
            self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        groups = self.parameter_groups()
        if recipe.lr_of:
            groups = with_own_rates(groups, recipe.lr_of, self.named_parameters())
        optimizer = build_optimizer(recipe, groups)
        if recipe.in_backward:
            self.updates = UpdatesInBackward(optimizer, self.components.cfg.trainer.gradient_clip_val)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that trains, as torch's optimisers take it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors of modules that train: their parameters and their buffers."""
        state = super().state_dict(*args, **kwargs)
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        parents = {name.rpartition(".")[0] for name in kept}
        buffers = {name: name.rpartition(".")[0] for name, _ in self.named_buffers()}
        kept |= {name for name, parent in buffers.items() if parent in parents or name.startswith("adapter.")}
        return {name: value for name, value in state.items() if name in kept}

    def transfer_batch_to_device(self, batch: PoseBatch, device: torch.device, dataloader_idx: int) -> PoseBatch:
        return batch.to(device)

    def count_trained(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class DiffusionTask(Task):
    """What every diffusion training step shares: clean latents, noise and timesteps from the images' own generators,
    and the U-Net's prediction."""

    backbone: Backbone

    def step(self, batch: PoseBatch, text: Text, inject: Any, timestep: int | None = None) -> Step:
        """One noising and one prediction; ``inject`` is ``(noisy, timesteps) -> Injection``. Each image has a timestep
        of its own, unless one is given."""
        process = self.backbone.process
        with torch.no_grad():
            clean = batch.latents
            if clean is None:
                samples = batch.images if self.backbone.sample == "image" else batch.poses
                clean = self.backbone.to_latents(samples, batch.generators("posterior"))
            noise = batch.randn("noise", clean.shape[1:]).to(clean)
            tokens = clean[0, 0].numel() // self.backbone.geometry.patch**2
            timesteps = process.sample_times(batch.rand("timesteps"), tokens).to(clean.device)
            if timestep is not None:
                timesteps = torch.full_like(timesteps, timestep)
            noisy, target = process.add_noise(clean, noise, timesteps), process.target(clean, noise, timesteps)
        prediction = self.backbone.predict(noisy, timesteps, text, inject(noisy, timesteps))
        return Step(prediction, target, noisy, clean, noise, timesteps)

    def keep_text(self, batch: PoseBatch) -> Tensor:
        """``[B]`` true where the text is kept in this step."""
        return (batch.rand("drop") >= self.recipe.drop_text).to(self.device)


class AdapterTask(DiffusionTask):
    """Trains a pose-guidance method on its backbone.

    Where batches bring latents and text, the backbone's encoders wait in the CPU's memory: accelerate's hooks bring
    them to the GPU for whoever asks (live validation), and the next step sends them back."""

    waiting: Sequence[Any] = ()  # accelerate's hooks
    rewardable: ClassVar[bool] = True  # what ``loss=`` adds to the method's own loss is minimised, too

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self.adapter, self.backbone = components.adapter, components.backbone
        components.sampler.unset(self.backbone)  # it samples while it trains: a scheduler that does not fit says so now
        self.loss: TrainingLoss = build_node(components.cfg.get("loss")) or TrainingLoss()  # cells of old have none
        fields = self.adapter.reads | self.backbone.reads | self.loss.reads
        self.needs = frozenset({self.backbone.trains_on, "text"}) | fields

    def require(self, data: PoseData) -> None:
        self.loss.require(self.backbone, data)

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        state = self.adapter.drop(self.adapter.encode(batch), self.keep_text(batch))
        step = self.step(batch, state.text, lambda noisy, timesteps: self.adapter.inject(state, noisy, timesteps))
        return self.loss(self.adapter.loss(step, state, batch), step, batch, self.backbone)

    def on_fit_start(self) -> None:
        self.waiting = waiting_parts(self.backbone.encoders, self.device)

    def on_train_batch_start(self, batch: PoseBatch, batch_idx: int) -> None:
        for hook in self.waiting:
            hook.offload()

    def on_before_backward(self, loss: Tensor) -> None:
        self.waiting = [
            hook for hook in self.waiting if next(hook.model.parameters()).device.type == "cpu"
        ]  # the rest takes part in steps

    def on_fit_end(self) -> None:
        for part in self.backbone.encoders:
            remove_hook_from_module(part)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.adapter.parameter_groups(self.recipe)

    def export(self, folder: Path) -> None:
        sampler = OmegaConf.to_container(self.components.cfg.sampler, resolve=True)
        save_method(folder, self.adapter, self.backbone, sampler=sampler)


class TextToImageTask(DiffusionTask):
    """Trains a backbone's U-Net and text encoder from captions alone; the autoencoder stays as it is.

    The weight of a step is min(SNR, min_snr) / (SNR + 1), the Min-SNR rule for v-prediction (Hang et al. 2023, section
    3.4); without ``min_snr`` all steps weigh the same.
    """

    needs = frozenset({"latents"})
    divisible = False

    def __init__(self, components: Components, min_snr: Positive | None = None) -> None:
        super().__init__(components)
        torch.manual_seed(self.seed)
        self.backbone, self.min_snr = components.backbone, min_snr
        if min_snr is not None and self.backbone.process.prediction_type == "velocity":
            fix = "set task.min_snr=null; backbone.density says how often each level of noise is trained"
            raise UserError(
                f"task.min_snr={min_snr} weighs steps of variance-preserving noise, not flow matching; {fix}"
            )
        self.needs = self.needs | self.backbone.reads
        self.backbone.requires_grad_(False)
        self.backbone.network.requires_grad_(True).float()
        self.backbone.text_encoder.requires_grad_(True).float()
        arranged(self.backbone, components.cfg.compute)

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        keep = self.keep_text(batch).tolist()
        text = self.backbone.encode_text([prompt if k else "" for prompt, k in zip(batch.prompts, keep, strict=True)])
        step = self.step(batch, replace(text, sizes=batch.sizes), lambda noisy, timesteps: Injection())
        error = (step.prediction.float() - step.target.float()).square().mean(dim=(1, 2, 3))
        plain = error.mean()
        if self.min_snr is None:
            return {"loss": plain}
        snr = self.backbone.process.snr(step.timesteps)
        return {"loss": (error * snr.clamp(max=self.min_snr) / (snr + 1)).mean(), "plain": plain.detach()}

    def export(self, folder: Path) -> None:
        """A diffusers folder in fp16, without the autoencoder."""
        with replacing(folder) as temporary:
            self.backbone.half().save(temporary)
            self.backbone.float()


class AutoencoderTask(Task):
    """Trains a deterministic autoencoder of images: squared and absolute error, plus the absolute error of image
    gradients, which keeps thin lines."""

    needs = frozenset({"images"})
    divisible = False

    def __init__(self, components: Components, autoencoder: nn.Module, edges: NotNegative = 1.0) -> None:
        super().__init__(components)
        self.autoencoder, self.edges = autoencoder, edges

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        latents = self.autoencoder.encode(batch.images, return_dict=False)[0]
        difference = self.autoencoder.decode(latents, return_dict=False)[0] - batch.images
        mse = difference.square().mean()
        edges = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
        loss = 4 * mse + difference.abs().mean() + self.edges * edges
        return {"loss": loss, "psnr": 10 * (math.log10(4) - mse.detach().log10())}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """A diffusers folder in fp16 whose ``scaling_factor`` gives the latents of validation images unit variance."""
        data = self.components.data("validation")
        images = torch.stack([data[i].tensor for i in range(min(len(data), 500))]).split(50)
        latents = [self.autoencoder.encode(chunk.to(self.device), return_dict=False)[0] for chunk in images]
        self.autoencoder.register_to_config(scaling_factor=round(1 / torch.cat(latents).std().item(), 5))
        with replacing(folder) as temporary:
            self.autoencoder.half().save_pretrained(temporary)
            self.autoencoder.float()


class EstimatorTask(Task):
    """Trains a pose estimator, the judge, on real images only."""

    needs = frozenset({"images"})
    divisible = False

    def __init__(self, components: Components, estimator: nn.Module) -> None:
        super().__init__(components)
        self.estimator = estimator

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        targets = move_data_to_device(self.estimator.targets(batch.samples), self.device)
        return self.estimator.loss(batch.images, **targets)

    def export(self, folder: Path) -> None:
        self.estimator.save(folder)
