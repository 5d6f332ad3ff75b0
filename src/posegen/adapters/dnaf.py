"""DNAF: a person in a new pose, with appearance from features of their image and from the same U-Net's pass over that image at the same noise (2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posegen.adapters.base import Adapter, Paper, State
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Backbone, Bank, Injection, Step
from posegen.backbones.blocks.image_pyramid import Pyramid, hierarchical, native_size, small_swin
from posegen.backbones.blocks.inserted_block import InsertedBlock, Kind
from posegen.backbones.blocks.self_attention import INSERTED, Junctions, level_of, transformers
from posegen.data.base import PoseBatch, generator
from posegen.io.weights import UnknownKeys, WeightsError, read_tensors

SWIN_B, SWIN_STAGES = "swin_base_patch4_window7_224", 4  # microsoft/swin-base-patch4-window7-224 in the authors' README
LARGE = 320  # width of Stable Diffusion's finest level: such U-Nets read Swin-B, smaller ones a Swin of their size

Scope = Literal["original", "all"]
Noise = Literal["independent", "shared"]
SamplingNoise = Literal["fixed", "fresh"]
Latent = Literal["mode", "sample"]
CHOICES = {
    "naf_scope": get_args(Scope),
    "naf_noise": get_args(Noise),
    "naf_sampling_noise": get_args(SamplingNoise),
    "source_latent": get_args(Latent),
    "inserted_kind": get_args(Kind),
}


class DNAF(Adapter):
    """Three ways in for the conditions, around a frozen U-Net; numbers are those of the overview figure.

    * (a) A pose adapter of T2I-Adapter's kind reads the drawn target pose; its maps are added inside the encoder.
    * (b) Noise-aware features: the source's latents are noised to the same timestep and go through the same U-Net. The keys and values of all its
      self-attentions are appended to those of the target's pass: attention to [K; K'], [V; V']. Adds no weights.
    * (c) Constant features: a trainable transformer block before each of the U-Net's own reads one stage of a Swin pyramid of the source. They do not
      depend on the timestep and are in both passes.

    The authors published neither a program nor weights. The figure, the abstract and the README give the above, and the text encoder with a fixed prompt;
    everything else, marked [I] below, is inferred from the neighbouring methods. In the published ablation B1 is read as ``naf=false`` and B2 as
    ``inserted=false`` [I].

    Several sources of one image are read together: each is noised and passes the U-Net as if it were alone, and all their keys, values and tokens are
    appended. They share their noise, so that their order does not matter.

    Guidance [I] is on the conditions, with the text in all branches: e0 + w_p (e_p - e0) + w_s (e_ps - e_p), for predictions without conditions, with the
    pose, and with pose and source. The source's pass runs once per step, for the last branch alone.

    Args:
        style: how poses are drawn, ``openpose`` or ``humansd``.
        naf: use (b).
        naf_scope: append keys and values in the U-Net's ``original`` self-attentions, or in ``all``, also those of the inserted blocks [I].
        naf_noise: the source's noise is ``independent`` of the target's, or ``shared`` with it [I].
        naf_sampling_noise: in sampling it is ``fixed`` for an image, or drawn ``fresh`` at every step [I].
        naf_detach: no gradients through the source's pass [I].
        naf_strength: weight of a key of the source relative to one of the target, in [0, 1]; 1 is the paper's concatenation, 0 leaves them out.
        source_latent: ``mode`` or ``sample`` of the autoencoder's posterior [I].
        inserted: use (c).
        inserted_kind: ``full`` transformer blocks, cross-attention and feed-forward (``cross_ff``), or cross-attention alone (``cross``) [I].
        inserted_heads: attention heads of these blocks [I].
        inserted_zero: they start as the identity [I].
        levels: which stage of the pyramid each level of the U-Net reads, the middle that of the last; None: level i reads stage i [I].
        vision: a network of timm; None: Swin-B for U-Nets as wide as Stable Diffusion's, a small Swin of the U-Net's width for others.
        vision_weights: file of its weights; None: random.
        vision_size: side that the source is resized to for it [I]; None: what the network was made for, and the image's own for the small Swin.
        vision_norm: tokens are normalised [I].
        vision_positions: side of the learned grid of positions that is added to the tokens [I]; 0: none.
        vision_train: None: where it has no weights to start from [I].
        pose_weights: file or folder of a T2I-Adapter for the same backbone, original or diffusers'; None: random.
        pose_train: train the pose adapter [I]. Without training it needs ``pose_weights``.
        fixed_text: a prompt for all images (the figure shows "person, white background"); None: each sample's own.
        drop_source, drop_pose, drop_both: shares of images that lose these conditions in training [I]; no branch of guidance lacks the text.
        pose_guidance, source_guidance: w_p and w_s; None: the sampler's guidance for both.

    Attributes:
        pose_adapter: the method T2I-Adapter, of which the features are used.
        pyramid: the vision network, with ``inserted``.
        blocks: the inserted blocks, in the order of the U-Net's transformers.

    Raises:
        ValueError: a setting is out of range, or neither (b) nor (c) is used, so that nothing would read the source.
    """

    needs = frozenset({"hint", "source"})
    places = frozenset({"encoder", "attention", "features"})
    starts_neutral = False  # the pose adapter does not start from zero
    paper = Paper(
        "DNAF: Diffusion with Noise-Aware Feature for Pose-Guided Person Image Synthesis",
        "ICME 2024, openreview.net/forum?id=VARhPBRZ58",
        "WillowKaze/DNAF@5f8f487 (README and figures, no program)",
    )

    def __init__(
        self,
        style: Literal["openpose", "humansd"] = "openpose",
        naf: bool = True,
        naf_scope: Scope = "original",
        naf_noise: Noise = "independent",
        naf_sampling_noise: SamplingNoise = "fixed",
        naf_detach: bool = True,
        naf_strength: float = 1.0,
        source_latent: Latent = "mode",
        inserted: bool = True,
        inserted_kind: Kind = "full",
        inserted_heads: int = 8,
        inserted_zero: bool = True,
        levels: Sequence[int] | None = None,
        vision: str | None = None,
        vision_weights: str | None = None,
        vision_size: int | None = None,
        vision_norm: bool = True,
        vision_positions: int = 8,
        vision_train: bool | None = None,
        pose_weights: str | None = None,
        pose_train: bool = True,
        fixed_text: str | None = None,
        drop_source: float = 0.1,
        drop_pose: float = 0.1,
        drop_both: float = 0.1,
        pose_guidance: float | None = None,
        source_guidance: float | None = None,
    ) -> None:
        super().__init__()
        self.style, self.fixed_text = style, fixed_text
        self.naf, self.naf_scope = naf, naf_scope
        self.naf_noise, self.naf_sampling_noise = naf_noise, naf_sampling_noise
        self.naf_detach, self.naf_strength, self.source_latent = naf_detach, naf_strength, source_latent
        self.inserted, self.inserted_kind = inserted, inserted_kind
        self.inserted_heads, self.inserted_zero = inserted_heads, inserted_zero
        self.levels, self.vision, self.vision_size = levels, vision, vision_size
        self.vision_norm, self.vision_positions = vision_norm, vision_positions
        self.vision_train = vision_weights is None if vision_train is None else vision_train
        self.pose_train = pose_train
        self.drop_source, self.drop_pose, self.drop_both = drop_source, drop_pose, drop_both
        self.pose_guidance, self.source_guidance = pose_guidance, source_guidance
        self._check()
        # Under names that are no arguments: a method folder holds these weights itself and must not ask for the files.
        self._start = {"vision": vision_weights, "pose": pose_weights}
        self.pose_adapter = T2IAdapter(style)
        self.hint = self.pose_adapter.hint

    def _check(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"adapter.{name} is {value!r}; expected one of {', '.join(allowed)}")
        shares = (self.drop_source, self.drop_pose, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"adapter.drop_source, drop_pose and drop_both are {shares}; expected shares of the images whose sum is at most 1"
            )
        if not 0 <= self.naf_strength <= 1:
            raise ValueError(
                f"adapter.naf_strength is {self.naf_strength}; expected a weight from 0 (no keys of the source) to 1"
            )
        if not self.inserted and not (self.naf and self.naf_strength):
            raise ValueError(
                "adapter.inserted and adapter.naf are both off, so nothing would read the source; switch one on, or use adapter=t2i_adapter"
            )

    @property
    def reads(self) -> frozenset[str]:
        """With noise-aware features also cached latents of the sources, where there are any."""
        cached = self.naf and self.naf_strength and self.source_latent == "mode"
        return self.needs | ({"source_latents"} if cached else frozenset())

    @property
    def trains(self) -> bool:
        """False in the training-free form: (b) alone, with a pose adapter from a file."""
        return self.inserted or self.pose_train or self._start["pose"] is None

    # ---------------------------------------------------------------------------------------------------------------------- modules

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.pose_adapter.attach(backbone)
        if self._start["pose"] is not None:
            start_from(self.pose_adapter, self._start["pose"])
        self.pose_adapter.requires_grad_(self.pose_train)
        self.blocks = nn.ModuleList()
        if self.inserted:
            self._insert(backbone)
        Junctions(backbone.unet, self.blocks)

    def _insert(self, backbone: Backbone) -> None:
        g, places = backbone.geometry, transformers(backbone.unet)
        levels = [min(i, SWIN_STAGES - 1) for i in range(g.levels)] if self.levels is None else list(self.levels)
        if len(levels) != g.levels:
            raise ValueError(
                f"adapter.levels has {len(levels)} stages {levels}; expected one for each of the {g.levels} levels of the U-Net"
            )
        self.stages = [levels[level_of(name, g.levels)] for name in places]
        self.pyramid = self._pyramid(g.channels[0])
        if wrong := sorted({m.in_channels for m in places.values() if m.in_channels % self.inserted_heads}):
            raise ValueError(
                f"adapter.inserted_heads is {self.inserted_heads}; expected a divisor of the U-Net's widths, here {wrong}"
            )
        self.blocks.extend(
            InsertedBlock(
                m.in_channels,
                self.pyramid.channels[stage],
                self.inserted_kind,
                self.inserted_heads,
                g.norm_groups,
                self.inserted_zero,
            )
            for m, stage in zip(places.values(), self.stages, strict=True)
        )

    def _pyramid(self, width: int) -> Pyramid:
        """The vision network for a U-Net whose finest level has ``width`` channels."""
        name = self.vision or (SWIN_B if width >= LARGE else None)
        weights = self._start["vision"]
        if name is None and weights is not None:
            raise ValueError(
                f"adapter.vision_weights={weights} is of no network; name it with adapter.vision, for instance {SWIN_B}"
            )
        network = hierarchical(name, weights) if name is not None else small_swin(width, max(self.stages) + 1)
        size = self.vision_size if self.vision_size is not None or name is None else native_size(network)
        network.requires_grad_(self.vision_train)
        return Pyramid(network, self.stages, size, self.vision_norm, self.vision_positions)

    # ------------------------------------------------------------------------------------------------------------ once per image

    def encode(self, batch: PoseBatch) -> State:
        if (sources := batch.sources) is None:
            raise ValueError(
                "adapter=dnaf reads a source person, and these samples have none; use data with pairs, for instance data=mannequin_pairs"
            )
        assert batch.hint is not None
        self._check_start()
        state = self.text_state(batch)
        everyone = torch.ones(len(batch), dtype=torch.bool)  # on the CPU, so that choosing rows waits for no device
        state = state.having(
            maps=tuple(self.pose_adapter.features(batch.hint)),
            posed=everyone,
            sourced=everyone,
            chance=batch.rand("dropped conditions"),
        )
        if self.naf:
            state = state.having(**self._noisy_source(batch, sources))
        if self.inserted:
            stages = self.pyramid(sources.flatten(0, 1))
            state = state.having(stages=tuple(tokens.unflatten(0, sources.shape[:2]) for tokens in stages.values()))
        return state

    def text_state(self, batch: PoseBatch) -> State:
        if self.fixed_text is None:
            return super().text_state(batch)
        return super().text_state(replace(batch, text=self.backbone.encode_text([self.fixed_text] * len(batch))))

    @torch.no_grad()
    def _noisy_source(self, batch: PoseBatch, sources: Tensor) -> dict[str, Tensor]:
        """The sources' clean latents ``[B, S, c, h, w]``, their noise ``[B, c, h, w]``, and where the noise of later steps comes from."""
        if batch.source_latents is not None and self.source_latent == "mode":
            clean = batch.source_latents.unsqueeze(1)
        else:
            # All sources of an image have the same noise.
            draws = zip(*(batch.generators("source") for _ in range(sources.shape[1])), strict=True)
            posterior = [draw for each in draws for draw in each] if self.source_latent == "sample" else None
            clean = self.backbone.to_latents(sources.flatten(0, 1), posterior).unflatten(0, sources.shape[:2])
        targets = (
            "noise" if self.training else "latents"
        )  # the purposes for which training and sampling draw the target's
        noise = batch.randn("source noise" if self.naf_noise == "independent" else targets, clean.shape[2:]).to(clean)
        seeds = torch.tensor([g.initial_seed() for g in batch.generators("source noise at steps")])
        return {"source": clean, "source_noise": noise, "seed": seeds}

    def _check_start(self) -> None:
        """A part that is neither trained nor read from a file would stay random."""
        untrained = {"pose": not self.pose_train, "vision": self.inserted and not self.vision_train}
        for part, stays in untrained.items():
            if self.training and stays and self._start[part] is None:
                raise ValueError(
                    f"adapter.{part}_train is false and adapter.{part}_weights is not set, so it would stay random; set one of them"
                )

    # ------------------------------------------------------------------------------------------------------------ every step

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        posed = state["posed"].to(latents.device).view(-1, 1, 1, 1)
        encoder = tuple(value * posed.to(value.dtype) for value in state.all("maps"))
        chosen = state["sourced"].nonzero().flatten()
        if not len(chosen):
            return Injection(encoder=encoder)
        rows = None if len(chosen) == len(state) else chosen.to(latents.device)
        features = None
        if self.inserted:
            stages = dict(zip(self.pyramid.stages, state.all("stages"), strict=True))
            features = tuple(picked(stages[stage], rows) for stage in self.stages)
        bank = self._source_pass(state, chosen, rows, timesteps, features) if self.naf and self.naf_strength else None
        return Injection(encoder=encoder, attention=bank, features=joined(features), rows=rows)

    def _source_pass(
        self, state: State, chosen: Tensor, rows: Tensor | None, timesteps: Tensor, features: tuple[Tensor, ...] | None
    ) -> Bank:
        """Keys and values of the U-Net's pass over the sources of these rows, noised to the target's timesteps, without the pose (overview (b))."""
        clean, steps = picked(state["source"], rows), picked(timesteps, rows)
        several = clean.shape[1]
        if not self.training and self.naf_noise == "independent" and self.naf_sampling_noise == "fresh":
            noise = self._fresh_noise(state["seed"][chosen], steps, clean[:, 0])
        else:
            noise = picked(state["source_noise"], rows)
        text = state.text if rows is None else state.text[rows]
        noise, steps = (values.repeat_interleave(several, 0) for values in (noise, steps))
        noisy = self.backbone.process.add_noise(clean.flatten(0, 1), noise, steps).to(clean.dtype)
        alone = (
            None if features is None else tuple(tokens.flatten(0, 1) for tokens in features)
        )  # no source sees another
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.naf_detach):
            bank = self.backbone.keys_and_values(noisy, steps, text.repeat(several), Injection(features=alone))
        layers = {}
        for name, pair in bank.layers.items():
            if self.naf_scope == "all" or not name.startswith(INSERTED):
                keys, values = (part.unflatten(0, (-1, several)).flatten(1, 2) for part in pair)
                layers[name] = keys, values
        return Bank(layers, self.naf_strength)

    def _fresh_noise(self, seeds: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        draws = [generator(seed, step) for seed, step in zip(seeds.tolist(), timesteps.tolist(), strict=True)]
        return torch.stack([torch.randn(like.shape[1:], generator=draw) for draw in draws]).to(like)

    # ------------------------------------------------------------------------------------------------------ guidance and training

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """w_s e_ps + (w_p - w_s) e_p + (1 - w_p) e0, without the terms that vanish; the text is in all of them, and the negative prompt in none."""
        pose, source = (guidance if own is None else own for own in (self.pose_guidance, self.source_guidance))
        nobody = torch.zeros(len(state), dtype=torch.bool)
        posed = state.having(sourced=nobody)
        weighted = [(source, state), (pose - source, posed), (1.0 - pose, posed.having(posed=nobody))]
        return [(weight, branch) for weight, branch in weighted if weight]

    def drop(self, state: State, keep: Tensor) -> State:
        """Removes the text where it is told to, and the source, the pose or both by each image's own chance."""
        chance, both = state["chance"], self.drop_both
        source = chance < both + self.drop_source
        pose = (chance < both) | (
            (chance >= both + self.drop_source) & (chance < both + self.drop_source + self.drop_pose)
        )
        return state.keep_text(keep).having(sourced=~source, posed=~pose)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Mean squared error on the target alone; where no image kept its source, gradients of what reads sources are zero rather than absent."""
        losses = super().loss(step, state, batch)
        if torch.is_grad_enabled() and not state["sourced"].any():
            losses["loss"] = losses["loss"] + sum(0.0 * p.flatten()[0] for p in self.parameters() if p.requires_grad)
        return losses


def picked(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def joined(tokens: Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
    """Each ``[R, S, N, C]`` tokens of S sources as ``[R, S N, C]``."""
    return None if tokens is None else tuple(each.flatten(1, 2) for each in tokens)


def start_from(pose_adapter: T2IAdapter, file: str) -> None:
    """Loads a T2I-Adapter, original or diffusers', into the pose adapter.

    Raises:
        WeightsError: the file is unreadable, or is of another adapter or another backbone.
    """
    own = pose_adapter.state_dict()
    try:
        tensors = {
            key.removeprefix("adapter."): value
            for key, value in pose_adapter.convert(read_tensors(Path(file).expanduser())).items()
        }
    except UnknownKeys as error:
        raise WeightsError(f"adapter.pose_weights={file}: {error}") from error
    if wrong := sorted(key for key in own if key not in tensors or tensors[key].shape != own[key].shape):
        raise WeightsError(
            f"adapter.pose_weights={file} is no T2I-Adapter for this backbone: {len(wrong)} keys differ, for instance {wrong[0]}"
        )
    pose_adapter.load_state_dict(tensors)
