"""T2I-Adapter: features of the drawn pose, computed once, added inside the frozen encoder (Mou et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from posegen.adapters.base import HUMANSD_FIGURE, STRIPS, Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.loading import ldm_keys as ldm
from posegen.data.base import PoseBatch
from posegen.poses.drawing import Occlusion, Part, PoseDrawing
from posegen.ranges import NotNegative, Width, ZeroToOne

TRAINED = "table on the GRPose project page, trained on Human-Art"
RELEASED = "table on the GRPose project page, released weights"
XL_LEVELS = 3  # of the U-Net that the form of XL is for
ADAPTER_KEYS = "adapter."  # in diffusers' class, and of this method's keys where an original file holds more


class T2IAdapter(Adapter):
    """A small convolutional network turns the drawn pose into one feature map per level of the U-Net's encoder.

    The hint's pixels are rearranged to the latent grid and pass through ``blocks`` residual blocks per level, with a
    pooling between two levels. Each level's map is added before the level's last skip connection leaves it. The network
    runs once per image, for both branches of guidance. No layer starts at zero: an untrained adapter has an effect.

    Args:
        style: ``openpose`` and ``keypose`` as for the released weights of these names, ``dwpose`` with hands and face,
            or ``humansd`` (limbs as for keypose, other colours).
        strength: factor of all maps (``cond_weight`` of the official program).
        tau: share of the noise process, from pure noise on, in which the maps are used (``cond_tau``): t >= (1 - tau)
            T. Where (1 - tau) times the number of steps is whole, these are the first tau of the steps, as officially.
        blocks: residual blocks per level (``nums_rb``).
        form: ``full``, or ``xl`` as published for Stable Diffusion XL: a grid half as fine, maps behind the first
            downsampling, in the second and third level, and behind the middle block. None: ``xl`` for U-Nets of that
            design, which have transformers of several layers.
        parts, occlusion: as in `PoseDrawing`.
    """

    needs = frozenset({"hint"})
    places = frozenset({"encoder"})
    starts_neutral = False
    paper = Paper(
        "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models",
        "arXiv:2302.08453",
        "TencentARC/T2I-Adapter@16bba674b472",
        published=(
            *Published.of("Human-Art", HUMANSD_FIGURE, AP=18.20, CAP=55.98, PCE=2.73, **{STRIPS: 29.07}, CLIP=33.29),
            *Published.of("Human-Art", TRAINED, AP=27.22, CAP=65.65, PCE=1.75, FID=11.92, KID=2.73, CLIP=33.27),
            *Published.of("LAION-Human", RELEASED, AP=36.65, CAP=63.64, PCE=1.62, FID=6.77, CLIP=32.30),
        ),
    )
    beside = ldm.LEFT_OUT_FROZEN

    def __init__(
        self,
        style: Literal["openpose", "humansd", "dwpose", "keypose"] = "openpose",
        strength: NotNegative = 1.0,
        tau: ZeroToOne = 1.0,
        blocks: Width = 2,
        form: Literal["full", "xl"] | None = None,
        parts: Sequence[Part] | None = None,
        occlusion: Occlusion = "drawn",
    ) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            share = "the share of the noise process in which the pose is used, from 0 to 1"
            raise ValueError(f"adapter.tau is {tau}; expected {share}")
        if blocks < 1:
            raise ValueError(f"adapter.blocks is {blocks}; expected at least one residual block per level")
        self.hint = PoseDrawing(style, range=(0.0, 1.0), parts=parts, occlusion=occlusion)
        self.style, self.parts, self.occlusion = style, parts, occlusion
        self.strength, self.tau, self.blocks, self.form = strength, tau, blocks, form

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        channels, factor = list(backbone.geometry.channels), backbone.geometry.latent_factor
        sizes: dict[str, Any] = {"num_res_blocks": self.blocks, "downscale_factor": factor}
        if self.xl:
            if len(channels) != XL_LEVELS:
                raise ValueError(f"adapter.form=xl is for U-Nets of {XL_LEVELS} levels, this one has {len(channels)}")
            channels.append(channels[-1])
            sizes |= {"downscale_factor": 2 * factor, "adapter_type": "full_adapter_xl"}
        self.network = diffusers.T2IAdapter(channels=channels, **sizes)

    @property
    def xl(self) -> bool:
        """Whether maps have the form for Stable Diffusion XL."""
        return self.form == "xl" or (self.form is None and bool(self.backbone.geometry.transformer_layers))

    def features(self, hint: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` in [0, 1] to one ``[B, channels[i], h_i, w_i]`` per level, finest first, or the maps of XL.

        Odd grids are rounded up as the U-Net's, or down as in the official program (``faithful``), which fails there.
        """
        for level in self.network.adapter.body:
            if level.downsample is not None:
                level.downsample.ceil_mode = not self.faithful
        return self.network(hint)

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        self.check_size(batch.hint.shape[-2:])
        return self.text_state(batch).having(maps=tuple(self.features(batch.hint)))

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        process = self.backbone.process
        first = round((1 - self.tau) * process.length) / process.length
        factor = torch.where(process.fraction(timesteps) >= first, self.strength, 0.0).view(-1, 1, 1, 1)
        maps = tuple(feature * factor.to(feature) for feature in state.all("maps"))
        if not self.xl:
            return Injection(encoder=maps)
        nothing = maps[0].new_zeros(())
        return Injection(encoder=(nothing, maps[0], maps[1], nothing, maps[2]), mid=maps[3])

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises a ValueError where maps of the official program would not fit the U-Net."""
        geometry = self.backbone.geometry
        step = geometry.pixel_step
        if self.xl and any(side % (cell := 2 * geometry.latent_factor) for side in size):
            near = [-(-side // cell) * cell for side in size]
            raise ValueError(
                f"data.size {tuple(size)}: T2I-Adapter of XL needs multiples of {cell}, for instance {near}"
            )
        if self.faithful and any(side % step for side in size):
            raise ValueError(
                f"data.size {tuple(size)} gives odd grids, which T2I-Adapter with official weights rounds down and the "
                f"U-Net up; choose multiples of {step}, for instance {[-(-side // step) * step for side in size]}"
            )

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the original program, bare or below ``adapter.``, or of diffusers' class."""
        table = original_names(len(self.network.adapter.body), self.blocks)
        # Diffusers' names, and this project's.
        if any(".resnets." in key and key.startswith(ADAPTER_KEYS) for key in official):
            table = {name: name for name in table.values()}
        prefix = ADAPTER_KEYS if ldm.has_prefix(official, ADAPTER_KEYS) else ""
        return ldm.placed(official, prefix, table, f"adapter.network.{ADAPTER_KEYS}", self.beside, type(self).__name__)


def original_names(levels: int, blocks: int) -> ldm.NameTable:
    """The original program's module names, which number all blocks throughout, to diffusers' names."""
    table = {"conv_in": "conv_in"}
    for level in range(levels):
        table[f"body.{level * blocks}.in_conv"] = f"body.{level}.in_conv"  # only where the width changes
        for block in range(blocks):
            for part in ("block1", "block2"):
                table[f"body.{level * blocks + block}.{part}"] = f"body.{level}.resnets.{block}.{part}"
    return table
