"""The arguments of a pipeline's call: numbers, prompts with poses, sizes, pictures and noise, checked at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.data.base import to_tensor
from posegen.data.user_images import pictures_per_image, stretch_to
from posegen.errors import UserError
from posegen.poses.reading import PoseInput, read_poses
from posegen.poses.topology import COCO_17, Topology


def whole_number(name: str, value: Any, least: float = 1) -> int:
    """The same number as Python's, whichever library it is from."""
    expected = f"a whole number{'' if least == -np.inf else f' of at least {least}'}"
    if (number := finite_number(name, value, expected)) < least or number != int(number):
        raise UserError(f"{name} is {value!r}; expected {expected}")
    return int(number)


def finite_number(name: str, value: Any, expected: str = "a finite number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise UserError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def number_between(name: str, value: Any, least: float, most: float = np.inf, meaning: str = "") -> float:
    """A number within the bounds; ``meaning`` continues the sentence on what is expected."""
    expected = f"a number {f'of at least {least}' if most == np.inf else f'from {least} to {most}'}{meaning}"
    if not least <= finite_number(name, value, expected) <= most:
        raise UserError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def texts_of(name: str, given: Any) -> list[str]:
    """A text, or a list of texts, as a list."""
    texts = list(given) if isinstance(given, list | tuple) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} is {given!r}; expected a text or a list of texts")
    return texts


@dataclass(frozen=True, eq=False)
class TextInput:
    """Prompts, or their encoded states, of one image each."""

    name: str  # of the argument
    prompts: list[str]
    states: Tensor | None = None  # ``[prompts, L, D]``
    pooled: Tensor | None = None  # ``[prompts, P]``

    @classmethod
    def read(
        cls, name: str, prompt: Any, states: Any, pooled: Any, width: int, pooled_width: int | None = None
    ) -> TextInput:
        """The prompt, or the states that are given instead; ``width`` is their D, ``pooled_width`` the P of ``pooled``,
        None for a backbone that reads no such vectors."""
        beside = f"{name.removesuffix('prompt')}pooled_prompt_embeds"
        if states is None:
            if pooled is not None:
                raise UserError(f"{beside} is given without {name}_embeds; give both, or {name}")
            return cls(name, texts_of(name, prompt))
        if prompt is not None:
            raise UserError(f"{name} and {name}_embeds are both given; give one of them")
        if not isinstance(states, Tensor) or states.ndim != 3 or states.shape[2] != width or not len(states):
            has = f"has the shape {list(states.shape)}" if isinstance(states, Tensor) else f"is {states!r}"
            raise UserError(f"{name}_embeds {has}; expected text states of the shape [images, tokens, {width}]")
        rows = None if pooled_width is None else (len(states), pooled_width)
        if (shape := tuple(pooled.shape) if isinstance(pooled, Tensor) else pooled) != rows:
            expected = "nothing, this backbone reads no such vector" if rows is None else f"the shape {list(rows)}"
            raise UserError(f"{beside} is {list(shape) if isinstance(shape, tuple) else shape}; expected {expected}")
        return cls(f"{name}_embeds", [""] * len(states), states, pooled)

    def __len__(self) -> int:
        return len(self.prompts)

    def for_images(self, count: int) -> TextInput:
        """One for all of ``count`` images, or as many."""
        if len(self) not in (1, count):
            raise UserError(f"{self.name} has {len(self)} texts for {count} prompts; give one, or as many")
        times = count // len(self)
        states, pooled = (None if s is None else torch.cat([s] * times) for s in (self.states, self.pooled))
        return replace(self, prompts=self.prompts * times, states=states, pooled=pooled)


def prompts_with_poses(
    prompts: TextInput, poses: Any, wanted: Topology = COCO_17, topology: str | None = None
) -> tuple[TextInput, list[PoseInput]]:
    """As many prompts as poses; where one is alone, it goes with all of the others. ``wanted`` is the skeleton that is
    drawn, ``topology`` the one that the poses have where they do not tell."""
    guides = [PoseInput("poses")] if poses is None else read_poses(poses, "poses", wanted, topology)
    count = max(len(prompts), len(guides))
    if {len(prompts), len(guides)} - {1, count}:
        fix = "give one of either for all of the other, or as many of both"
        raise UserError(f"{len(prompts)} prompts and poses of {len(guides)} images; {fix}")
    return prompts.for_images(count), guides * (count // len(guides))


def seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """A number per image from one generator, from one each, or from torch's own."""
    generators: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(generators) != count:
        raise UserError(f"generator has {len(generators)} entries for {count} images; give one, or as many")
    if wrong := [each for each in generators if not isinstance(each, torch.Generator | None)]:
        raise UserError(f"generator is {wrong[0]!r}; expected one of torch: torch.Generator().manual_seed(0)")
    return [int(torch.randint(2**62, (), generator=g, device=g.device if g is not None else None)) for g in generators]


def image_size(
    backbone: Backbone, guides: Sequence[PoseInput], height: int | None, width: int | None
) -> tuple[int, int]:
    """(height, width) of the images: as asked for, as the poses' canvas, or as the backbone's training images."""
    canvases = {guide.size for guide in guides if guide.size is not None}
    if len(canvases) > 1 and (height is None or width is None):
        sizes = f"different sizes (height, width): {sorted(canvases)}"
        raise UserError(f"the poses live on canvases of {sizes}; set height and width")
    geometry = backbone.geometry
    usual = next(iter(canvases), backbone.usual_size)
    asked = zip(("height", "width"), (height, width), usual, strict=True)
    size = tuple(own if side is None else whole_number(name, side, -np.inf) for name, side, own in asked)
    step = geometry.pixel_step
    if any(side < step or side % step for side in size):
        around = ({max(step, s // step * step), -(-s // step) * step or step} for s in size)
        high, wide = (" or ".join(map(str, sorted(sides))) for sides in around)
        problem = f"height={size[0]}, width={size[1]}: this backbone makes sides that are multiples of {step}"
        raise UserError(f"{problem}; nearest: height={high}, width={wide}")
    return size  # type: ignore[return-value]


def sizes_of_images(backbone: Backbone, size: tuple[int, int], **given: Any) -> Tensor | None:
    """``[6]`` what `Text.sizes_for` has for each image, from diffusers' arguments for Stable Diffusion XL; None where
    none of them is given."""
    if not (asked := [name for name, value in given.items() if value is not None]):
        return None
    if "sizes" not in backbone.reads:
        raise UserError(f"{asked[0]} is given; backbone {backbone.weights.id} reads no sizes of images, leave it out")
    usual = {"original_size": size, "crops_coords_top_left": (0, 0), "target_size": size}
    numbers = [(name, usual[name] if value is None else value) for name, value in given.items()]
    if wrong := [(name, pair) for name, pair in numbers if not isinstance(pair, list | tuple) or len(pair) != 2]:
        raise UserError(f"{wrong[0][0]} is {wrong[0][1]!r}; expected two numbers, down and across")
    return torch.tensor([finite_number(name, number) for name, pair in numbers for number in pair])


def people_in_sources(adapter: Adapter, source: Any, prompts: int, size: tuple[int, int]) -> Tensor | None:
    """Source pictures ``[prompts, 3, H, W]`` or ``[prompts, S, 3, H, W]``; None if the method reads none."""
    name = type(adapter).__name__
    if "source" not in adapter.reads:
        if source is not None:
            fix = "leave it out, or use a method that does, such as DNAF"
            raise UserError(f"source: {name} reads no picture of a person; {fix}")
        return None
    if source is None:
        raise UserError(f"{name} takes a person from a picture, and there is none; add source=PICTURE")
    given = ([to_tensor(stretch_to(each, size)) for each in them] for them in pictures_per_image(source, prompts))
    stacked = torch.stack([torch.stack(pictures) for pictures in given])
    return stacked.squeeze(1) if stacked.shape[1] == 1 else stacked


def initial_noise(backbone: Backbone, latents: Tensor | None, images: int, size: tuple[int, int]) -> Tensor | None:
    """The given initial noise; refuses a wrong shape."""
    shape = (images, *backbone.latent_shape(size))
    if latents is not None and tuple(latents.shape) != shape:
        wanted = f"{images} images of {size[1]} x {size[0]} pixels start from {list(shape)}"
        raise UserError(f"latents has the shape {list(latents.shape)}; {wanted}")
    return None if latents is None else latents.float()
