"""What is trained: one Lightning module per task, all run by the same trainer in the same cells."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import OmegaConf
from torch import Tensor, nn

from posegen.backbones.base import Backbone, Injection, Step
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.runner.components import Components
from posegen.runner.method_folder import save_method
from posegen.runner.precision import arranged
from posegen.train.fsdp import divide_weights
from posegen.train.muon import Muon
from posegen.train.recipe import Recipe, recipe_of


class Task(LightningModule):
    """The shared part: optimiser, schedule, logging, and checkpoints that hold only what trains.

    Attributes:
        needs: optional `PoseBatch` fields that `losses` reads.
    """

    needs: frozenset[str] = frozenset()

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
        logged = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(
            logged, batch_size=len(batch), sync_dist=self.trainer.world_size > 1
        )  # the mean over all processes
        return losses["loss"]

    def configure_model(self) -> None:
        """Lightning's hook for dividing weights, which ``trainer=fsdp`` does."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            if self.recipe.optimizer == "muon":
                raise UserError(
                    "optim.optimizer=muon works on whole matrices, which trainer=fsdp divides; use trainer=ddp or "
                    "optim.optimizer=adamw"
                )
            backbone = getattr(self, "backbone", None)
            divide_weights(self, getattr(backbone, "unet", None), strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        build: Any = Muon if self.recipe.optimizer == "muon" else torch.optim.AdamW
        optimizer = build(
            self.parameter_groups(), lr=self.recipe.lr, betas=self.recipe.betas, weight_decay=self.recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that trains, as torch's optimisers take it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors of modules that train: their parameters and their buffers."""
        state = super().state_dict(*args, **kwargs)
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        parents = {name.rpartition(".")[0] for name in trained}
        buffers = {
            name
            for name, _ in self.named_buffers()
            if name.rpartition(".")[0] in parents or name.startswith("adapter.")
        }
        return {name: value for name, value in state.items() if name in trained or name in buffers}

    def transfer_batch_to_device(self, batch: PoseBatch, device: torch.device, dataloader_idx: int) -> PoseBatch:
        return batch.to(device)

    def count_trained(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class DiffusionTask(Task):
    """What every diffusion training step shares: clean latents, noise and timesteps from the images' own generators,
    and the U-Net's prediction."""

    backbone: Backbone

    def step(self, batch: PoseBatch, text: Text, inject: Any) -> Step:
        """One noising and one prediction.

        Args:
            text: the prompts.
            inject: ``(noisy, timesteps) -> Injection``.
        """
        process = self.backbone.process
        with torch.no_grad():
            clean = batch.latents if batch.latents is not None else self.encoded(batch)
            noise = batch.randn("noise", clean.shape[1:]).to(clean)
            timesteps = process.sample_times(batch.rand("timesteps")).to(clean.device)
            noisy, target = process.add_noise(clean, noise, timesteps), process.target(clean, noise, timesteps)
        prediction = self.backbone.predict(noisy, timesteps, text, inject(noisy, timesteps))
        return Step(prediction, target, noisy, clean, noise, timesteps)

    def encoded(self, batch: PoseBatch) -> Tensor:
        """Clean latents of a batch that brings none."""
        samples = batch.images if self.backbone.sample == "image" else batch.poses
        return self.backbone.to_latents(samples, batch.generators("posterior"))

    def keep_text(self, batch: PoseBatch) -> Tensor:
        """``[B]`` true where the text is kept in this step."""
        return (batch.rand("drop") >= self.recipe.drop_text).to(self.device)


class AdapterTask(DiffusionTask):
    """Trains a pose-guidance method on its backbone."""

    def __init__(self, components: Components) -> None:
        super().__init__(components)
        self.adapter, self.backbone = components.adapter, components.backbone
        self.needs = frozenset({self.backbone.trains_on, "text"}) | self.adapter.reads

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        state = self.adapter.drop(self.adapter.encode(batch), self.keep_text(batch))
        step = self.step(batch, state.text, lambda noisy, timesteps: self.adapter.inject(state, noisy, timesteps))
        return self.adapter.loss(step, state, batch)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.adapter.parameter_groups(self.recipe)

    def export(self, folder: Path) -> None:
        sampler = OmegaConf.to_container(self.components.cfg.sampler, resolve=True)
        save_method(folder, self.adapter, self.backbone, sampler=sampler)


class TextToImageTask(DiffusionTask):
    """Trains a backbone's U-Net and text encoder from captions alone; the autoencoder stays as it is.

    Args:
        min_snr: weight of a step is min(SNR, min_snr) / (SNR + 1), the Min-SNR rule for v-prediction (Hang et al. 2023,
            section 3.4); null weighs all alike.
    """

    def __init__(self, components: Components, min_snr: float | None = None) -> None:
        super().__init__(components)
        torch.manual_seed(self.seed)
        self.backbone, self.min_snr = components.backbone, min_snr
        backbone = self.backbone
        self.needs = frozenset({"latents"})
        backbone.requires_grad_(False)
        backbone.unet.requires_grad_(True)
        backbone.text_encoder.requires_grad_(True)
        arranged(backbone, components.cfg.compute)

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        keep = self.keep_text(batch).tolist()
        text = self.backbone.encode_text([prompt if k else "" for prompt, k in zip(batch.prompts, keep, strict=True)])
        step = self.step(batch, text, lambda noisy, timesteps: Injection())
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

    def __init__(self, components: Components, autoencoder: nn.Module, edges: float = 1.0) -> None:
        super().__init__(components)
        self.autoencoder, self.edges = autoencoder, edges

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        difference = self.restore(batch.images) - batch.images
        mse = difference.square().mean()
        edges = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
        loss = 4 * mse + difference.abs().mean() + self.edges * edges
        return {"loss": loss, "psnr": 10 * (math.log10(4) - mse.detach().log10())}

    def restore(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` through the autoencoder."""
        return self.autoencoder.decode(self.autoencoder.encode(images, return_dict=False)[0], return_dict=False)[0]

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """A diffusers folder in fp16 whose ``scaling_factor`` gives the latents of validation images unit variance."""
        data = self.components.data("validation")
        images = torch.stack([data[i].tensor for i in range(min(len(data), 500))])
        latents = torch.cat(
            [self.autoencoder.encode(chunk.to(self.device), return_dict=False)[0] for chunk in images.split(50)]
        )
        self.autoencoder.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        with replacing(folder) as temporary:
            self.autoencoder.half().save_pretrained(temporary)
            self.autoencoder.float()


class EstimatorTask(Task):
    """Trains a pose estimator, the judge, on real images only."""

    needs = frozenset({"images"})

    def __init__(self, components: Components, estimator: nn.Module) -> None:
        super().__init__(components)
        self.estimator = estimator

    def losses(self, batch: PoseBatch) -> dict[str, Tensor]:
        targets = {name: _to(value, self.device) for name, value in self.estimator.targets(batch.samples).items()}
        return self.estimator.loss(batch.images, **targets)

    def export(self, folder: Path) -> None:
        self.estimator.save(folder)


def _to(value: Any, device: torch.device) -> Any:
    return {name: tensor.to(device) for name, tensor in value.items()} if isinstance(value, dict) else value.to(device)
