"""DNAF: a person in a new pose, with appearance from their image and from the U-Net's pass over it (2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

import torch
from annotated_types import Interval
from torch import Tensor, nn

from posegen.adapters.base import Adapter, Paper, State
from posegen.adapters.t2i_adapter import T2IAdapter
from posegen.backbones.base import Backbone, Bank, Injection, Step
from posegen.backbones.blocks.image_pyramid import Pyramid, hierarchical, native_size, small_swin
from posegen.backbones.blocks.inserted_block import BlockKind, InsertedBlock
from posegen.backbones.blocks.self_attention import INSERTED, Junctions, level_of, transformers
from posegen.data.base import PoseBatch, generator
from posegen.io.hub import local_place
from posegen.io.weights import UnknownKeys, WeightsError, read_tensors
from posegen.ranges import NotNegative, Width, ZeroToOne

SWIN_B, SWIN_STAGES = "swin_base_patch4_window7_224", 4  # microsoft/swin-base-patch4-window7-224 in the authors' README
LARGE = 320  # width of Stable Diffusion's finest level: such U-Nets read Swin-B, smaller ones a Swin of their size

Scope = Literal["original", "all"]
Noise = Literal["independent", "shared"]
SamplingNoise = Literal["fixed", "fresh"]
Latent = Literal["mode", "sample"]
SwinStage = Annotated[int, Interval(ge=0, le=SWIN_STAGES - 1)]
GridSide = Annotated[int, Interval(ge=0, le=1024)]
CHOICES = {
    "naf_scope": Scope, "naf_noise": Noise, "naf_sampling_noise": SamplingNoise,
    "source_latent": Latent, "inserted_kind": BlockKind,
}  # fmt: skip


class DNAF(Adapter):
    """Three ways in for the conditions, around a frozen U-Net; numbers are those of the overview figure.

    * (a) A pose adapter of T2I-Adapter's kind reads the drawn target pose; its maps are added inside the encoder.
    * (b), ``naf``, noise-aware features: the source's latents, noised to the same timestep, go through the same U-Net.
      Keys and values of its self-attentions are appended to those of the target's pass: [K; K'], [V; V']. No weights.
    * (c), ``inserted``, constant features: a trainable transformer block before each of the U-Net's own reads one stage
      of a Swin pyramid of the source. They do not depend on the timestep and are in both passes.

    Several sources of one image pass the U-Net one by one, with the same noise; all keys, values and tokens are
    appended. The authors published neither a program nor weights. The figure, the abstract and the README give the
    above and the fixed prompt; the rest, marked [I], is inferred from neighbouring methods. In the published ablation
    B1 is read as ``naf=false`` and B2 as ``inserted=false`` [I].

    Guidance [I] is e0 + w_p (e_p - e0) + w_s (e_ps - e_p), for predictions without conditions, with the pose, and with
    pose and source; the text is in all of them. The source's pass runs once per step, for the last branch.

    Args:
        naf_scope: append in the U-Net's ``original`` self-attentions, or in ``all``, with the inserted blocks' [I].
        naf_noise: the source's noise is ``independent`` of the target's, or ``shared`` with it [I].
        naf_sampling_noise: in sampling it is ``fixed`` for an image, or drawn ``fresh`` at every step [I].
        naf_detach: no gradients through the source's pass [I].
        naf_strength: weight of a source's key relative to one of the target, in [0, 1]; 1 in the paper, 0: left out.
        source_latent: ``mode`` or ``sample`` of the autoencoder's posterior [I].
        inserted_kind: ``full`` transformer blocks, ``cross_ff`` without self-attention, ``cross``-attention alone [I].
        inserted_heads: attention heads of these blocks [I].
        inserted_zero: they start as the identity [I].
        levels: the stage of the pyramid that each level of the U-Net reads; None: level i reads stage i [I].
        vision: a network of timm; None: Swin-B for U-Nets as wide as Stable Diffusion's, a small Swin for others.
        vision_weights: file of its weights; None: random.
        vision_size: side the source is resized to for it [I]; None: the network's usual side, none for the small Swin.
        vision_norm: tokens are normalised [I].
        vision_positions: side of the learned grid of positions that is added to the tokens [I]; 0: none.
        vision_train: train the vision network; None: only where it starts from random weights [I].
        pose_weights: file or folder of a T2I-Adapter for the same backbone, original or diffusers'; None: random.
        pose_train: train the pose adapter [I]. Without training it needs ``pose_weights``.
        fixed_text: a prompt for all images (the figure shows "person, white background"); None: each sample's own.
        drop_source, drop_pose, drop_both: shares of images that lose these conditions in training [I].
        pose_guidance, source_guidance: w_p and w_s; None: the sampler's guidance for both.
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
        naf_strength: ZeroToOne = 1.0,
        source_latent: Latent = "mode",
        inserted: bool = True,
        inserted_kind: BlockKind = "full",
        inserted_heads: Width = 8,
        inserted_zero: bool = True,
        levels: Sequence[SwinStage] | None = None,
        vision: str | None = None,
        vision_weights: str | None = None,
        vision_size: Width | None = None,
        vision_norm: bool = True,
        vision_positions: GridSide = 8,
        vision_train: bool | None = None,
        pose_weights: str | None = None,
        pose_train: bool = True,
        fixed_text: str | None = None,
        drop_source: ZeroToOne = 0.1,
        drop_pose: ZeroToOne = 0.1,
        drop_both: ZeroToOne = 0.1,
        pose_guidance: NotNegative | None = None,
        source_guidance: NotNegative | None = None,
    ) -> None:
        super().__init__()
        self.style, self.fixed_text, self.pose_train = style, fixed_text, pose_train
        self.naf, self.naf_scope, self.naf_detach, self.naf_strength = naf, naf_scope, naf_detach, naf_strength
        self.naf_noise, self.naf_sampling_noise, self.source_latent = naf_noise, naf_sampling_noise, source_latent
        self.inserted, self.inserted_kind = inserted, inserted_kind
        self.inserted_heads, self.inserted_zero = inserted_heads, inserted_zero
        self.levels, self.vision, self.vision_size = levels, vision, vision_size
        self.vision_norm, self.vision_positions = vision_norm, vision_positions
        self.vision_train = vision_weights is None if vision_train is None else vision_train
        self.drop_source, self.drop_pose, self.drop_both = drop_source, drop_pose, drop_both
        self.pose_guidance, self.source_guidance = pose_guidance, source_guidance
        self._check()
        # Not under the arguments' names: a method folder holds these weights and must not ask for the files.
        self._start = {"vision": vision_weights, "pose": pose_weights}
        self.pose_adapter = T2IAdapter(style)
        self.hint = self.pose_adapter.hint

    def _check(self) -> None:
        for name, kind in CHOICES.items():
            if (value := getattr(self, name)) not in get_args(kind):
                raise ValueError(f"adapter.{name} is {value!r}; expected one of {', '.join(get_args(kind))}")
        shares = (self.drop_source, self.drop_pose, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            expected = "expected shares of the images whose sum is at most 1"
            raise ValueError(f"adapter.drop_source, drop_pose and drop_both are {shares}; {expected}")
        if not 0 <= self.naf_strength <= 1:
            expected = "expected a weight from 0 (no keys of the source) to 1"
            raise ValueError(f"adapter.naf_strength is {self.naf_strength}; {expected}")
        if not self.inserted and not (self.naf and self.naf_strength):
            off = "adapter.inserted and adapter.naf are both off, so nothing would read the source"
            raise ValueError(f"{off}; switch one on, or use adapter=t2i_adapter")

    @property
    def reads(self) -> frozenset[str]:
        """With noise-aware features also cached latents of the sources, where there are any."""
        cached = self.naf and self.naf_strength and self.source_latent == "mode"
        return self.needs | ({"source_latents"} if cached else frozenset())

    @property
    def trains(self) -> bool:
        """False in the training-free form: (b) alone, with a pose adapter from a file."""
        return self.inserted or self.pose_train or self._start["pose"] is None

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.pose_adapter.attach(backbone)
        if (file := self._start["pose"]) is not None:
            start_from(self.pose_adapter, file)
        self.pose_adapter.requires_grad_(self.pose_train)
        self.blocks = nn.ModuleList()
        if self.inserted:
            self._insert(backbone)
        Junctions(backbone.unet, self.blocks)

    def _insert(self, backbone: Backbone) -> None:
        g, places = backbone.geometry, transformers(backbone.unet)
        levels = [min(i, SWIN_STAGES - 1) for i in range(g.levels)] if self.levels is None else list(self.levels)
        if len(levels) != g.levels:
            expected = f"expected one for each of the {g.levels} levels of the U-Net"
            raise ValueError(f"adapter.levels has {len(levels)} stages {levels}; {expected}")
        self.stages = [levels[level_of(name, g.levels)] for name in places]
        self.pyramid = self._pyramid(g.channels[0])
        if wrong := sorted({m.in_channels for m in places.values() if m.in_channels % self.inserted_heads}):
            expected = f"expected a divisor of the U-Net's widths, here {wrong}"
            raise ValueError(f"adapter.inserted_heads is {self.inserted_heads}; {expected}")
        form = self.inserted_kind, self.inserted_heads, g.norm_groups, self.inserted_zero
        for place, stage in zip(places.values(), self.stages, strict=True):
            self.blocks.append(InsertedBlock(place.in_channels, self.pyramid.channels[stage], *form))

    def _pyramid(self, width: int) -> Pyramid:
        """The vision network for a U-Net whose finest level has ``width`` channels."""
        name = self.vision or (SWIN_B if width >= LARGE else None)
        weights = self._start["vision"]
        if name is None and weights is not None:
            hint = f"name it with adapter.vision, for instance {SWIN_B}"
            raise ValueError(f"adapter.vision_weights={weights} is of no network; {hint}")
        network = hierarchical(name, weights) if name is not None else small_swin(width, max(self.stages) + 1)
        size = self.vision_size if self.vision_size is not None or name is None else native_size(network)
        network.requires_grad_(self.vision_train)
        return Pyramid(network, self.stages, size, self.vision_norm, self.vision_positions)

    def encode(self, batch: PoseBatch) -> State:
        if (sources := batch.sources) is None:
            fix = "use data with pairs, for instance data=mannequin_pairs"
            raise ValueError(f"adapter=dnaf reads a source person, and these samples have none; {fix}")
        assert batch.hint is not None
        self._check_start()
        state = self.text_state(batch)
        everyone = torch.ones(len(batch), dtype=torch.bool)  # on the CPU, so that choosing rows waits for no device
        maps, chance = tuple(self.pose_adapter.features(batch.hint)), batch.rand("dropped conditions")
        state = state.having(maps=maps, posed=everyone, sourced=everyone, chance=chance)
        if self.naf:
            state = state.having(**self._noisy_source(batch, sources))
        if self.inserted:
            stages = self.pyramid(sources.flatten(0, 1))
            state = state.having(stages=tuple(tokens.unflatten(0, sources.shape[:2]) for tokens in stages.values()))
        return state

    def text_state(self, batch: PoseBatch) -> State:
        if self.fixed_text is None:
            return super().text_state(batch)
        fixed, null = [self.fixed_text] * len(batch), batch.negative_text
        text = self.backbone.encode_text(fixed)
        if null is not None and (chunks := null.tokens.shape[1] // text.tokens.shape[1]) > 1:
            text = self.backbone.encode_text(fixed, chunks)  # as long as the negative prompt
        return super().text_state(replace(batch, text=text))

    @torch.no_grad()
    def _noisy_source(self, batch: PoseBatch, sources: Tensor) -> dict[str, Tensor]:
        """The sources' clean latents ``[B, S, c, h, w]``, their noise ``[B, c, h, w]``, and seeds for later steps."""
        if batch.source_latents is not None and self.source_latent == "mode":
            clean = batch.source_latents.unsqueeze(1)
        else:
            # All sources of an image have the same noise.
            draws = zip(*(batch.generators("source") for _ in range(sources.shape[1])), strict=True)
            posterior = [draw for each in draws for draw in each] if self.source_latent == "sample" else None
            clean = self.backbone.to_latents(sources.flatten(0, 1), posterior).unflatten(0, sources.shape[:2])
        targets = "noise" if self.training else "latents"  # for these training and sampling draw the target's
        noise = batch.randn("source noise" if self.naf_noise == "independent" else targets, clean.shape[2:]).to(clean)
        seeds = torch.tensor([g.initial_seed() for g in batch.generators("source noise at steps")])
        return {"source": clean, "source_noise": noise, "seed": seeds}

    def _check_start(self) -> None:
        """A part that is neither trained nor read from a file would stay random."""
        for part, stays in {"pose": not self.pose_train, "vision": self.inserted and not self.vision_train}.items():
            if self.training and stays and self._start[part] is None:
                off = f"adapter.{part}_train is false and adapter.{part}_weights is not set"
                raise ValueError(f"{off}, so it would stay random; set one of them")

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
        if features is not None:  # the tokens of all sources of an image, one after another
            features = tuple(tokens.flatten(1, 2) for tokens in features)
        return Injection(encoder=encoder, attention=bank, features=features, rows=rows)

    def _source_pass(
        self, state: State, chosen: Tensor, rows: Tensor | None, timesteps: Tensor, features: tuple[Tensor, ...] | None
    ) -> Bank:
        """Keys and values of the U-Net's pass over the noised sources of these rows, without the pose."""
        clean, steps = picked(state["source"], rows), picked(timesteps, rows)
        several = clean.shape[1]
        if not self.training and self.naf_noise == "independent" and self.naf_sampling_noise == "fresh":
            seeds = zip(state["seed"][chosen].tolist(), steps.tolist(), strict=True)
            draws = (torch.randn(clean.shape[2:], generator=generator(seed, step)) for seed, step in seeds)
            noise = torch.stack(list(draws)).to(clean)
        else:
            noise = picked(state["source_noise"], rows)
        text = state.text if rows is None else state.text[rows]
        noise, steps = (values.repeat_interleave(several, 0) for values in (noise, steps))
        noisy = self.backbone.process.add_noise(clean.flatten(0, 1), noise, steps).to(clean.dtype)
        alone = None if features is None else tuple(tokens.flatten(0, 1) for tokens in features)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.naf_detach):
            bank = self.backbone.keys_and_values(noisy, steps, text.repeat(several), Injection(features=alone))
        layers = {}
        for name, pair in bank.layers.items():
            if self.naf_scope == "all" or not name.startswith(INSERTED):
                keys, values = (part.unflatten(0, (-1, several)).flatten(1, 2) for part in pair)
                layers[name] = keys, values
        return Bank(layers, self.naf_strength)

    def branches(self, state: State, guidance: float) -> list[tuple[float, State]]:
        """w_s e_ps + (w_p - w_s) e_p + (1 - w_p) e0, without the terms that vanish; the negative prompt is not used."""
        pose, source = (guidance if own is None else own for own in (self.pose_guidance, self.source_guidance))
        nobody = torch.zeros(len(state), dtype=torch.bool)
        posed = state.having(sourced=nobody)
        weighted = [(source, state), (pose - source, posed), (1.0 - pose, posed.having(posed=nobody))]
        return [(weight, branch) for weight, branch in weighted if weight]

    def drop(self, state: State, keep: Tensor) -> State:
        """Removes the text where ``keep`` is false, and the source, the pose or both by each image's chance."""
        chance, both = state["chance"], self.drop_both
        source = chance < both + self.drop_source
        end = both + self.drop_source + self.drop_pose
        pose = (chance < both) | ((chance >= both + self.drop_source) & (chance < end))
        return state.keep_text(keep).having(sourced=~source, posed=~pose)

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Mean squared error; where no image kept its source, unused weights get zero gradients rather than none."""
        losses = super().loss(step, state, batch)
        if torch.is_grad_enabled() and not state["sourced"].any():
            losses["loss"] = losses["loss"] + sum(0.0 * p.flatten()[0] for p in self.parameters() if p.requires_grad)
        return losses


def picked(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def start_from(pose_adapter: T2IAdapter, file: str) -> None:
    """Loads a T2I-Adapter, original or diffusers', into the pose adapter."""
    own = pose_adapter.state_dict()
    try:
        converted = pose_adapter.convert(read_tensors(local_place(file)))
    except UnknownKeys as error:
        raise WeightsError(f"adapter.pose_weights={file}: {error}") from error
    tensors = {key.removeprefix("adapter."): value for key, value in converted.items()}
    if wrong := sorted(key for key in own if key not in tensors or tensors[key].shape != own[key].shape):
        differ = f"{len(wrong)} keys differ, for instance {wrong[0]}"
        raise WeightsError(f"adapter.pose_weights={file} is no T2I-Adapter for this backbone: {differ}")
    pose_adapter.load_state_dict(tensors)
