"""What a sample and a batch are, for every dataset and every method.

Conventions, everywhere in posegen:

* images are RGB; as arrays ``[H, W, 3] uint8``, as tensors ``[B, 3, H, W] float32`` in [-1, 1];
* keypoints are ``[P, 17, 3] float32`` in COCO order: x to the right, y down, in pixels, the centre of the top-left pixel at (0, 0); the third number is
  the COCO visibility (0 not labelled, 1 labelled but hidden, 2 visible) or, for detections, a score in [0, 1];
* areas are in square pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from posegen.data.on_disk.source import Condition
from posegen.poses.pose_square import Square, into

if TYPE_CHECKING:
    from posegen.backbones.text import Text


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with everything that is known about it.

    Attributes:
        id: stable name, unique in the dataset, for instance ``mannequin/test/000123``; noise and crops are derived from it.
        prompt: the caption.
        keypoints: ``[P, 17, 3]``, see the module's conventions; P may be 0.
        areas: ``[P]`` visible area of each person, the scale of the object keypoint similarity.
        image: ``[H, W, 3] uint8``, or None where only the pose is known.
        size: (height, width) of the canvas that the keypoints live on.
        attributes: facts a judge can verify (``style``, ``scene``, ``count``) and facts to group by (``scenario``, ``action``).
        whole: reads the stored picture ``[H', W', 3] uint8`` that ``image`` was cut from; None where nothing was cut.
    """

    id: str
    prompt: str
    keypoints: np.ndarray
    areas: np.ndarray
    image: np.ndarray | None
    size: tuple[int, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    whole: Callable[[], np.ndarray] | None = None

    @property
    def tensor(self) -> Tensor:
        """The image as ``[3, H, W] float32`` in [-1, 1].

        Raises:
            ValueError: only the pose is known.
        """
        if self.image is None:
            raise ValueError(f"sample {self.id} has no image, only a pose; use a data set with images here")
        return to_tensor(self.image)

    @property
    def main(self) -> int | None:
        """The person that a model of single poses is about: the largest by visible area; None where nobody is labelled."""
        labelled = (self.keypoints[..., 2] > 0).any(-1)
        return int(np.where(labelled, self.areas, -1.0).argmax()) if labelled.any() else None

    @property
    def about_main(self) -> dict[str, Any]:
        """The attributes of the main person: of those with one entry per person, its own."""
        own, many = self.main, len(self.keypoints)
        return {
            k: v[own] if own is not None and isinstance(v, tuple | list) and len(v) == many else v
            for k, v in self.attributes.items()
        }

    @property
    def pose(self) -> Tensor:
        """The main person ``[17, 3] float32`` in a square of its own, with a margin (see `posegen.poses.pose_square.into`); zeros where nobody is labelled."""
        if self.main is None:
            return torch.zeros(17, 3)
        person = self.keypoints[self.main]
        square = Square.around(person)
        assert square is not None
        return torch.from_numpy(into(square, person)).float()

    @property
    def encodable(self) -> Tensor:
        """What a pose backbone is trained on: the pose, or the maps of a data set that stores maps."""
        return self.pose


class PoseData(ABC):
    """A dataset split: a fixed, ordered list of samples.

    Subclasses set ``name`` and ``split`` and say in ``identity`` what their content depends on.

    Attributes:
        varies: whether a sample looks different on every visit (random crops, flips), so that its encodings cannot be kept.
    """

    name: str
    split: str
    size: tuple[int, int]
    varies: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        """A sample as it is seen the ``visit``-th time; where ``image`` is False nobody looks at its pixels, and they may be left out."""
        return self[index]

    @property
    def prompts(self) -> Sequence[str]:
        """All captions, in order; override it where they can be had without reading images."""
        return [self[i].prompt for i in range(len(self))]

    def twin(self, index: int) -> Sample:
        """Another image of the same caption, what a perfect text-only generator would make."""
        raise TypeError(
            f"data {self.name!r} cannot render a second image of a caption; leave adapter=reference/same_caption out"
        )

    def source_of(self, index: int, visit: int = 0) -> Sample:
        """Another image of the person of a sample, in another pose, as it is seen the ``visit``-th time: what appearance is taken from."""
        raise TypeError(
            f"data {self.name!r} has one image of each person; choose data with pairs, for instance data=mannequin_pairs"
        )

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        """All images that the appearance of a sample is taken from, as many for every sample."""
        return [self.source_of(index, visit)]

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        """People of this split who are to be dressed as others of it are.

        Args:
            count: how many; None: all there are.
            garment: ``shirt``, ``trousers``, or ``clothes``, which are both.
            told: captions tell the colours that are to be worn.

        Raises:
            ValueError: it is not known where their clothes are.
        """
        raise ValueError(
            f"data {self.name!r} does not know where clothes are; give picture=, mask= and source=, or choose data=mannequin_pairs"
        )

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything the samples depend on, as plain values: the key of caches and part of a cell's identity."""

    def prepare(self) -> None:
        """Checks and caches what reading needs; shows progress and can be interrupted and run again."""

    @property
    def condition(self) -> Condition:
        """What `prepare` found; of data that is generated there is little to find."""
        return Condition({"images": len(self)})


@dataclass(frozen=True, eq=False)
class Garment:
    """A piece of clothing in a picture ``image [H, W, 3] uint8``: it is where ``mask [H, W] bool`` says."""

    image: np.ndarray
    mask: np.ndarray


class Transfers(PoseData):
    """People who are to be dressed as `PoseData.sources_of` shows others; a sample's image is the person as they are now, at the size that is computed with."""

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        return self

    @abstractmethod
    def picture_of(self, index: int) -> np.ndarray:
        """The picture ``[H', W', 3] uint8`` of a person in its own size."""

    @abstractmethod
    def mask_of(self, index: int) -> np.ndarray:
        """``[H', W'] bool`` where that picture is to become anew."""

    def garments_of(self, index: int) -> Mapping[str, Sequence[Garment]]:
        """What is known of the garments, in the same order for each: of the ``picture``, the ``style``, the ``style_again`` in another picture of that person,
        and a ``wrong_style`` that nobody asked for. Empty where nothing is known."""
        return {}


@dataclass(frozen=True, eq=False)
class PoseBatch:
    """What a method sees of B images.

    ``hint`` is the pose drawn in the method's own style and range, ``latents`` and ``text`` are cached encodings; each is None where nobody asked for it.

    Attributes:
        ids: B sample ids.
        prompts: B captions.
        keypoints: B arrays ``[P_i, 17, 3]`` on a canvas of ``size``.
        size: (height, width) of the images.
        seed: the run's seed; with ``visit`` and an id it fixes all random numbers of an image.
        visit: how often the images were seen before (the epoch in training, 0 in sampling).
        images: ``[B, 3, H, W]`` in [-1, 1].
        poses: ``[B, 17, 3]`` or ``[B, 17, H, W]``, see `Sample.encodable`.
        twins: ``[B, 3, H, W]`` other images of the same captions.
        source: ``[B, 3, H, W]`` in [-1, 1], the same people in other poses, see `PoseData.source_of`; ``[B, S, 3, H, W]`` where there are S of each.
        source_keypoints: B arrays ``[P_i, 17, 3]`` of the people in ``source``, the first of each.
        source_latents: ``[B, c, h, w]`` clean latents of ``source``, where there is one of each.
        hint: ``[B, C, H, W]``.
        latents: ``[B, c, h, w]`` clean latents.
        text: the encoded prompts.
        negative_text: the encoded negative prompt, one for all images or one for each.
        attributes: B mappings, as in `Sample`.
        areas: B arrays ``[P_i]``.
        population: the samples of the training split, without their images.
    """

    ids: Sequence[str]
    prompts: Sequence[str]
    keypoints: Sequence[np.ndarray]
    size: tuple[int, int]
    seed: int = 0
    visit: int = 0
    images: Tensor | None = None
    poses: Tensor | None = None
    twins: Tensor | None = None
    source: Tensor | None = None
    source_keypoints: Sequence[np.ndarray] = ()
    source_latents: Tensor | None = None
    hint: Tensor | None = None
    latents: Tensor | None = None
    text: Text | None = None
    negative_text: Text | None = None
    attributes: Sequence[Mapping[str, Any]] = ()
    areas: Sequence[np.ndarray] = ()
    population: Sequence[Sample] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def samples(self) -> list[Sample]:
        """What is known about each image, without its pixels."""
        rows = zip(self.ids, self.prompts, self.keypoints, self.areas, self.attributes, strict=True)
        return [
            Sample(i, prompt, keypoints, areas, None, self.size, attributes)
            for i, prompt, keypoints, areas, attributes in rows
        ]

    @property
    def sources(self) -> Tensor | None:
        """``[B, S, 3, H, W]`` the images in ``source``, however many there are of each person."""
        return self.source.unsqueeze(1) if self.source is not None and self.source.ndim == 4 else self.source

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One CPU generator per image, a function of (seed, visit, image id, purpose) alone.

        So random numbers depend neither on the batch an image falls into nor on the device, and each purpose has its own stream.
        """
        return [generator(self.seed, self.visit, image_id, purpose) for image_id in self.ids]

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal ``[B, *shape] float32`` on the CPU, one stream per image."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators(purpose)])

    def rand(self, purpose: str) -> Tensor:
        """Uniform ``[B] float32`` in [0, 1) on the CPU, one stream per image."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators(purpose)])

    def to(self, device: torch.device | str) -> PoseBatch:
        """The same batch with its tensors and texts on ``device``."""
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in vars(self).items() if hasattr(v, "to")})


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of ``key``, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def to_tensor(image: np.ndarray) -> Tensor:
    """``[H, W, 3] uint8`` to ``[3, H, W] float32`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """``[B, 3, H, W]`` in [-1, 1] to ``[B, H, W, 3] uint8``, rounded to nearest."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
