"""ControlNet in one run beside diffusers: its pipeline, and a training step as its users write it.

    python experiments/profile/against_diffusers.py sample [theirs=bf16|bf16-compiled] [posegen profile's overrides]
    python experiments/profile/against_diffusers.py train [theirs=bf16|bf16-compiled] [posegen profile's overrides]

Both sides have the same weights, random ones of the size of Stable Diffusion 1.5, and the same noise; what they compute
is compared. They take turns, ``repeats`` times after a warm-up; the medians count.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, DDPMScheduler, StableDiffusionControlNetPipeline
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.config.compose import composed
from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.io.tables import csv_text
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.components import Components
from posegen.runner.precision import PRECISIONS, arrange, autocast
from posegen.train.profiling import STANDING_PERSON, MeasuredMethod, in_fresh_process, process_peak_mb
from posegen.verbs.profile import conditions_note, device_name, text_table

USUAL = ("adapter=controlnet", "backbone=sd15", "backbone.initialise=random", "backbone.path=null", "size=256")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: As diffusers computes unless it is asked for something else.
PLAIN = {
    "compute": {"channels_last": False, "compile": False, "packed": False, "checkpointing": "none"},
    "trainer": {"precision": "32-true"},
}
Build = Callable[[DictConfig], Components]
STEPS, GUIDANCE = 2, 7.5  # of a sampling call
PROMPT, NEGATIVE = "a photo of a dancer on a beach", "blurred"


@dataclass(frozen=True)
class Spent:
    """Seconds of processor and wall time, and numbers to compare."""

    cpu: float
    wall: float
    result: Tensor


def spent(compute: Callable[[], Tensor], device: torch.device) -> Spent:
    """What one call takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = compute()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return Spent(time.process_time() - cpu, time.perf_counter() - wall, result.float().cpu())


def type_and_compiled(theirs: str) -> tuple[torch.dtype, bool]:
    """The type of diffusers' weights, and whether its repeated blocks are compiled."""
    precision, _, way = theirs.partition("-")
    if precision not in TYPES or way not in ("", "compiled"):
        raise UserError(
            f"theirs={theirs} is no way of computing; expected {' or '.join(TYPES)}, with or without -compiled"
        )
    return TYPES[precision], bool(way)


def with_weights_of(network: nn.Module, dtype: torch.dtype, compiled: bool = False) -> Any:
    """A copy in plain memory layout, without anything that posegen arranged, that shares the weights where it can."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in network.parameters()}
    copy = deepcopy(network, shared)
    for module in copy.modules():
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    copy = copy.to(dtype).to(memory_format=torch.contiguous_format)
    arrange(copy, compile=compiled)
    return copy


def seeded(method: MeasuredMethod) -> None:
    """Gives the zero convolutions weights, so that the branch acts, the same in every process."""
    with torch.no_grad():
        for p in method.adapter.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p))


class Sampling:
    """A call of posegen's pipeline, and one of diffusers' with the same weights, for the same latents."""

    def __init__(self, cfg: DictConfig, theirs: str, build: Build = Components) -> None:
        plain = OmegaConf.merge(cfg, PLAIN)
        method = MeasuredMethod(plain, 1, build(plain))
        self.device, body, side = method.device, method.backbone, cfg.size
        seeded(method)
        scheduler = DDIMScheduler.from_config(body.process.config)
        parts = {"unet": body.unet, "vae": body.autoencoder, "text_encoder": body.text_encoder}
        parts["controlnet"] = method.adapter.branch.network
        copies = {name: with_weights_of(part, *type_and_compiled(theirs)) for name, part in parts.items()}
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        self.theirs: Any = StableDiffusionControlNetPipeline(
            **copies, tokenizer=body.tokenizer, scheduler=scheduler, **nothing
        )
        for network in (method.adapter, body):
            network.to(torch.bfloat16 if PRECISIONS[cfg.trainer.precision] else torch.float32)
        self.ours = PoseGuidedPipeline(method.adapter, scheduler=scheduler)
        self.ours.arrange(**{key: cfg.compute[key] for key in ("channels_last", "compile", "packed")})
        del method
        gc.collect()
        for pipe in (self.ours, self.theirs):
            pipe.set_progress_bar_config(disable=True)
        pose = self.ours.adapter.hint(self.person(side), (side, side))
        self.pose = Image.fromarray((pose * 255).round().astype("uint8").transpose(1, 2, 0))
        noise = torch.randn(cfg.batch, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
        self.settings = {
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "latents": noise.bfloat16().to(self.device),
            "output_type": "latent",
            "height": side,
            "width": side,
            "negative_prompt": [NEGATIVE] * cfg.batch,
        }
        self.prompts = [PROMPT] * cfg.batch

    @staticmethod
    def person(side: int) -> Any:
        import numpy as np

        joints = np.array(STANDING_PERSON, np.float32) * side
        return np.concatenate([joints, np.full((17, 1), 2, np.float32)], 1)[None]

    def of(self, pipe: Any) -> Callable[[], Tensor]:
        images = [self.pose] * len(self.prompts)
        steps = torch.float32 if pipe is self.ours else pipe.unet.dtype  # posegen's scheduler is in single precision
        settings = {**self.settings, "latents": self.settings["latents"].to(steps)}
        return lambda: pipe(self.prompts, image=images, **settings).images


def sampled(config: dict[str, Any], theirs: str) -> dict[str, Any]:
    """Seconds per step of both pipelines, in turns, and how far their latents are apart."""
    cfg = OmegaConf.create(config)
    both = Sampling(cfg, theirs)
    calls = {"posegen": both.of(both.ours), "diffusers": both.of(both.theirs)}
    found: dict[str, list[Spent]] = {name: [] for name in calls}
    for _ in range(cfg.warmup + cfg.repeats):
        for name, call in calls.items():
            found[name].append(spent(call, both.device))
    seconds = {
        name: [(each.cpu / STEPS, each.wall / STEPS) for each in times[cfg.warmup :]] for name, times in found.items()
    }
    ours, reference = (times[-1].result for times in found.values())
    return {"seconds": seconds, "difference": relative(ours, reference)}


def relative(found: Tensor, expected: Tensor) -> float:
    """How large the difference is beside what was expected."""
    return ((found - expected).norm() / expected.norm()).item()


class PosegenTraining:
    """posegen's training step: latents and text are encoded beforehand, which is not part of the step."""

    def __init__(self, cfg: DictConfig, _theirs: str, build: Build = Components) -> None:
        self.method = MeasuredMethod(cfg, 1, build(cfg))
        seeded(self.method)
        self.network, self.device = self.method.adapter.branch.network, self.method.device
        batch = self.method.batch
        built = self.method.task.configure_optimizers()
        self.optimizer, self.schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
        self.clip = cfg.optim.clip
        with torch.no_grad():
            self.method.batch = replace(batch, latents=self.method.backbone.to_latents(batch.images))
        for part in (self.method.backbone.autoencoder, self.method.backbone.text_encoder):
            part.to("meta")  # training has no more use for them

    def step(self) -> Tensor:
        with self.method.running("train"):
            loss = self.method.task.losses(self.method.batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return loss.detach()


class DiffusersTraining:
    """A training step of ControlNet as users of diffusers write it: images and prompts are encoded in the step."""

    def __init__(self, cfg: DictConfig, theirs: str, build: Build = Components) -> None:
        plain = OmegaConf.merge(cfg, PLAIN)
        method, (dtype, compiled) = MeasuredMethod(plain, 1, build(plain)), type_and_compiled(theirs)
        seeded(method)
        body, self.batch, self.device = method.backbone, method.batch, method.device
        self.network: ControlNetModel = method.adapter.branch.network.train()
        self.precision = "32-true" if dtype == torch.float32 else "bf16-mixed"
        for network in (self.network, body.unet):
            arrange(network, compile=compiled)
        self.unet, self.vae, self.text = (part.to(dtype) for part in (body.unet, body.autoencoder, body.text_encoder))
        self.tokens = body.tokenizer(list(self.batch.prompts), padding="max_length", return_tensors="pt").input_ids
        self.scheduler = DDPMScheduler.from_config(body.process.config)
        recipe = method.task.recipe
        self.clip = cfg.optim.clip
        settings = {"lr": recipe.lr, "betas": tuple(recipe.betas), "weight_decay": recipe.weight_decay}
        self.optimizer = torch.optim.AdamW(self.network.parameters(), **settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.factor)

    def step(self) -> Tensor:
        batch, dtype = self.batch, self.unet.dtype
        with torch.no_grad():
            latents = self.vae.encode(batch.images.to(dtype)).latent_dist.mode() * self.vae.config.scaling_factor
            text = self.text(self.tokens.to(self.device)).last_hidden_state
        noise = batch.randn("noise", latents.shape[1:]).to(latents)
        count = self.scheduler.config.num_train_timesteps
        times = (batch.rand("timesteps") * count).long().clamp(max=count - 1).to(latents.device)
        noisy = self.scheduler.add_noise(latents.float(), noise.float(), times).to(dtype)
        with autocast(self.precision, self.device):
            down, middle = self.network(
                noisy, times, encoder_hidden_states=text, controlnet_cond=batch.hint, return_dict=False
            )
            predicted = self.unet(
                noisy,
                times,
                encoder_hidden_states=text,
                down_block_additional_residuals=[each.to(dtype) for each in down],
                mid_block_additional_residual=middle.to(dtype),
                return_dict=False,
            )[0]
            loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


SIDES: dict[str, Any] = {"posegen": PosegenTraining, "diffusers": DiffusersTraining}
PER_PROCESS = 1  # measured steps of one process


def trained(config: dict[str, Any], side: str, theirs: str) -> dict[str, Any]:
    """Seconds and peak memory of a few training steps of one side, and some of the weights behind them."""
    cfg = OmegaConf.create(config)
    training = SIDES[side](cfg, theirs)
    before = some_weights(training.network)
    times = [spent(training.step, training.device) for _ in range(cfg.warmup + PER_PROCESS)]
    return {
        "seconds": [(each.cpu, each.wall) for each in times[cfg.warmup :]],
        "memory": process_peak_mb(training.device),
        "losses": [each.result.item() for each in times],
        "moved": some_weights(training.network) - before,
    }


def some_weights(network: nn.Module, each: int = 200) -> Tensor:
    """The first weights of every tensor, to compare processes by."""
    return torch.cat([p.detach().float().flatten()[:each].cpu() for p in network.parameters()])


def trained_in_turns(config: dict[str, Any], theirs: str) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(config["repeats"]):
        for side, of_side in found.items():
            of_side.append(in_fresh_process(trained, config, side, theirs))
            print(side, of_side[-1]["seconds"], of_side[-1]["losses"], f"{of_side[-1]['memory']:.0f} MiB", flush=True)
    seconds = {side: [pair for each in runs for pair in each["seconds"]] for side, runs in found.items()}
    ours, reference = (runs[-1] for runs in found.values())
    memory = {side: median(each["memory"] for each in runs) for side, runs in found.items()}
    losses = [run["losses"][-1] for run in (ours, reference)]
    moved = relative(ours["moved"], reference["moved"])
    return {"seconds": seconds, "memory": memory, "difference": moved, "losses": losses}


PHASES: dict[str, tuple[str, Callable[[dict[str, Any], str], dict[str, Any]]]] = {
    "sample": ("guided step, s", sampled),
    "train": ("training step, s", trained_in_turns),
}


def table(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per clock, and one of the memory."""
    rows = []
    for index, clock in enumerate(("processor", "wall")):
        ours, theirs = (median(pair[index] for pair in pairs) for pairs in found["seconds"].values())
        rows.append({"what": f"{name}, {clock}", "posegen": ours, "diffusers": theirs, "ratio": theirs / ours})
    if "memory" in found:
        ours, theirs = found["memory"].values()
        rows.append({"what": "peak memory, MiB", "posegen": ours, "diffusers": theirs, "ratio": theirs / ours})
    return rows


def main(words: Sequence[str]) -> None:
    """Compares, prints a table, and writes it as csv."""
    if not words or words[0] not in PHASES:
        raise UserError(f"expected {' or '.join(PHASES)} first, then overrides of posegen profile")
    phase, *overrides = words
    theirs = next((word.partition("=")[2] for word in overrides if word.startswith("theirs=")), None)
    usual = [*USUAL, "optim.drop_text=0", f"phases=[{phase}]"]
    with composed("profile", (*usual, *(word for word in overrides if not word.startswith("theirs=")))) as cfg:
        theirs = theirs or ("bf16" if PRECISIONS[cfg.trainer.precision] else "fp32")
        type_and_compiled(theirs)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        what, measure = PHASES[phase]
        found = in_fresh_process(measure, config, theirs) if phase == "sample" else measure(config, theirs)
        rows = table(what, found)
        compared = "latents" if phase == "sample" else "changes of the weights"
        notes = [
            f"diffusers in {theirs}; {conditions_note(config).rpartition(';')[0]}; medians of {cfg.repeats} in turns",
            f"relative difference of the two sides' {compared}: {found['difference']:.1e}",
        ]
        if "losses" in found:
            notes.append("losses of the last step: {:.7g} and {:.7g}".format(*found["losses"]))
        print("\n".join([*text_table(rows), "", *notes]))
        facts = {"precision": config["trainer"]["precision"], "theirs": theirs, "difference": found["difference"]}
        facts |= {key: config["compute"][key] for key in ("channels_last", "compile", "packed", "checkpointing")}
        facts |= {"size": cfg.size, "batch": cfg.batch, "device": device_name(cfg)}
        lines = [{**row, **facts} for row in rows]
        out = Path(f"{cfg.out}-against-diffusers-{phase}.csv")
        write_text(out, csv_text(lines[0], (list(line.values()) for line in lines)))
        print(f"\n{out}")


if __name__ == "__main__":
    main(sys.argv[1:])
