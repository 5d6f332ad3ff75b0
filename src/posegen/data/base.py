"""Samples and batches, for every data set and every method.

Conventions, everywhere in posegen:

* images are RGB; as arrays ``[H, W, 3] uint8``, as tensors ``[B, 3, H, W] float32`` in [-1, 1];
* keypoints are ``[P, 17, 3] float32`` in COCO order: x to the right, y down, in pixels, the centre of the top-left
  pixel at (0, 0); the third number is the COCO visibility (0 not labelled, 1 labelled but hidden, 2 visible) or, for
  detections, a score in [0, 1];
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

from posegen.data.condition import Condition
from posegen.poses.pose_square import Square, to_square

if TYPE_CHECKING:
    from posegen.backbones.text import Text


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its pose, its caption and further facts."""

    id: str  # unique and stable, for instance ``mannequin/test/000123``; noise and crops derive from it
    prompt: str  # the caption
    keypoints: np.ndarray  # ``[P, 17, 3]``, see the module's conventions; P may be 0
    areas: np.ndarray  # ``[P]`` visible area of each person, the scale of the object keypoint similarity
    image: np.ndarray | None  # ``[H, W, 3] uint8``, or None where only the pose is known
    size: tuple[int, int]  # (height, width) of the canvas that the keypoints live on
    #: facts that a judge can verify (``style``, ``scene``, ``count``), and facts to group by (``scenario``, ``action``)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    whole: Callable[[], np.ndarray] | None = None  # reads the picture ``[H', W', 3] uint8`` that ``image`` was cut from
    drawing: np.ndarray | None = None  # ``[H', W', 3] uint8`` a skeleton on black, in the place of unknown keypoints
    #: (height, width) of the stored picture, (top, left) of the cut after scaling, (height, width) of ``image``
    sizes: tuple[int, ...] | None = None
    whole_body: np.ndarray | None = None  # ``[P, 133, 3]`` COCO-WholeBody's joints, where they are known

    @property
    def tensor(self) -> Tensor:
        """The image as ``[3, H, W] float32`` in [-1, 1]. Raises ValueError: only the pose is known."""
        if self.image is None:
            raise ValueError(f"sample {self.id} has no image, only a pose; use a data set with images here")
        return to_tensor(self.image)

    @property
    def main(self) -> int | None:
        """Index of the main person, the largest by visible area; None where nobody is labelled."""
        labelled = (self.keypoints[..., 2] > 0).any(-1)
        return int(np.where(labelled, self.areas, -1.0).argmax()) if labelled.any() else None

    @property
    def about_main(self) -> dict[str, Any]:
        """The attributes; of those with one entry per person, the entry of the main person."""
        main, people = self.main, len(self.keypoints)
        facts = dict(self.attributes)
        for name, value in self.attributes.items():
            if main is not None and isinstance(value, tuple | list) and len(value) == people:
                facts[name] = value[main]
        return facts

    @property
    def pose(self) -> Tensor:
        """The main person ``[17, 3] float32`` in the square around it, see `to_square`; zeros with nobody labelled."""
        if self.main is None:
            return torch.zeros(17, 3)
        person = self.keypoints[self.main]
        square = Square.around(person)
        assert square is not None
        return torch.from_numpy(to_square(square, person)).float()

    @property
    def encodable(self) -> Tensor:
        """The pose for a pose backbone: `pose`, or the joint maps of a data set that stores those."""
        return self.pose


class PoseData(ABC):
    """A split of a data set: a fixed, ordered list of samples. Subclasses set ``name``, ``split`` and ``size``."""

    name: str
    split: str
    size: tuple[int, int]
    varies: bool = False  # whether a sample differs between visits (crops, flips), so that no encodings are cached

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def checked(self, index: int) -> int:
        """An index from the front. Raises IndexError: there is no such sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index % len(self)

    def seen(self, index: int, visit: int = 0, image: bool = True) -> Sample:
        """A sample on its ``visit``-th visit; with ``image=False`` its pixels may be missing."""
        return self[index]

    @property
    def prompts(self) -> Sequence[str]:
        """All captions, in order; override it where they can be read without images."""
        return [self[i].prompt for i in range(len(self))]

    def twin(self, index: int) -> Sample:
        """Another image of the same caption: the result of a perfect generator that reads only the text."""
        fix = "leave adapter=reference/same_caption out"
        raise TypeError(f"data {self.name!r} cannot render a second image of a caption; {fix}")

    def source_of(self, index: int, visit: int = 0) -> Sample:
        """The image that a sample's appearance is taken from: the same person in another pose, on the same visit."""
        fix = "choose data with pairs, for instance data=mannequin_pairs"
        raise TypeError(f"data {self.name!r} has one image of each person; {fix}")

    def sources_of(self, index: int, visit: int = 0) -> Sequence[Sample]:
        """All images that a sample's appearance is taken from, the same number for every sample."""
        return [self.source_of(index, visit)]

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        """``count`` people of this split (None: all), each with the ``garment`` of another: ``shirt``, ``trousers``, or
        ``clothes`` for both; if ``told``, captions name its colours. Raises ValueError: the data has no such masks.
        """
        fix = "give picture=, mask= and source=, or choose data=mannequin_pairs"
        raise ValueError(f"data {self.name!r} does not know where clothes are; {fix}")

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the samples depend on, as plain values: the key of caches and part of a cell's identity."""

    def prepare(self) -> None:
        """Checks the data and writes the files that reading needs; shows progress; may be interrupted and repeated."""

    @property
    def condition(self) -> Condition:
        """The report of `prepare`."""
        return Condition({"images": len(self)})


@dataclass(frozen=True, eq=False)
class Garment:
    """A picture ``image [H, W, 3] uint8`` and the ``mask [H, W] bool`` of a garment in it."""

    image: np.ndarray
    mask: np.ndarray


class Transfers(PoseData):
    """People who get the clothes in `PoseData.sources_of`; a sample's image is the person before."""

    def transfers(self, count: int | None, garment: str, told: bool = False) -> Transfers:
        return self

    @abstractmethod
    def picture_of(self, index: int) -> np.ndarray:
        """The picture ``[H', W', 3] uint8`` of a person as stored."""

    @abstractmethod
    def mask_of(self, index: int) -> np.ndarray:
        """``[H', W'] bool`` the pixels of that picture to repaint."""

    def garments_of(self, index: int) -> Mapping[str, Sequence[Garment]]:
        """The known garments, in the same order for each key: ``picture``, ``style``, ``style_again`` (another picture
        of the person of the style), ``wrong_style`` (of a third person, for comparison).
        """
        return {}


@dataclass(frozen=True, eq=False)
class PoseBatch:
    """B images as a method sees them.
    ``latents`` and ``text`` are cached encodings. Fields that the method does not need are None.
    """

    ids: Sequence[str]
    prompts: Sequence[str]
    keypoints: Sequence[np.ndarray]  # B arrays ``[P_i, 17, 3]`` on a canvas of ``size``
    size: tuple[int, int]  # (height, width) of the images
    seed: int = 0  # the run's seed; with ``visit`` and an id it fixes all random numbers of an image
    visit: int = 0  # number of earlier visits of the images (the epoch in training, 0 in sampling)
    images: Tensor | None = None  # ``[B, 3, H, W]`` in [-1, 1]
    poses: Tensor | None = None  # ``[B, 17, 3]`` or ``[B, 17, H, W]``, see `Sample.encodable`
    twins: Tensor | None = None  # ``[B, 3, H, W]`` other images of the same captions
    #: ``[B, 3, H, W]`` in [-1, 1], the people in other poses, see `PoseData.source_of`; or ``[B, S, 3, H, W]``, S each
    source: Tensor | None = None
    source_keypoints: Sequence[np.ndarray] = ()  # B arrays ``[P_i, 17, 3]`` of the people in ``source``, the first each
    source_latents: Tensor | None = None  # ``[B, c, h, w]`` clean latents of ``source``, where there is one of each
    hint: Tensor | None = None  # ``[B, C, H, W]`` the pose drawn in the method's style and range
    latents: Tensor | None = None  # ``[B, c, h, w]`` clean latents
    text: Text | None = None
    negative_text: Text | None = None  # the encoded negative prompt, one for all images or one for each
    attributes: Sequence[Mapping[str, Any]] = ()  # B mappings, as in `Sample`
    areas: Sequence[np.ndarray] = ()  # B arrays ``[P_i]``
    population: Sequence[Sample] | None = None  # the samples of the training split, without their images
    sizes: Tensor | None = None  # ``[B, 6]`` of the pictures and their cuts, see `Sample`; None: unknown, or not asked

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def samples(self) -> list[Sample]:
        """The samples without their pixels."""
        rows = zip(self.ids, self.prompts, self.keypoints, self.areas, self.attributes, strict=True)
        return [Sample(id, text, pose, area, None, self.size, facts) for id, text, pose, area, facts in rows]

    @property
    def sources(self) -> Tensor | None:
        """``[B, S, 3, H, W]`` the images in ``source``, also where S is 1."""
        return self.source.unsqueeze(1) if self.source is not None and self.source.ndim == 4 else self.source

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One CPU generator per image, a function of (seed, visit, image id, purpose) alone, not of batch or device."""
        return [generator(self.seed, self.visit, image_id, purpose) for image_id in self.ids]

    def randn(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal ``[B, *shape] float32`` on the CPU, one stream per image."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators(purpose)])

    def rand(self, purpose: str) -> Tensor:
        """Uniform ``[B] float32`` in [0, 1) on the CPU, one stream per image."""
        return torch.stack([torch.rand((), generator=g) for g in self.generators(purpose)])

    def to(self, device: torch.device | str) -> PoseBatch:
        """The same batch with its tensors and texts on ``device``."""
        soon = torch.device(device).type != "mps"  # where a copy may come too late
        return replace(self, **{k: v.to(device, non_blocking=soon) for k, v in vars(self).items() if hasattr(v, "to")})


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
