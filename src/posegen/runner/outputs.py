"""What is generated, images or poses: how it is taken from a data set, kept in a cell's folder, and shown."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample, to_tensor, to_uint8
from posegen.errors import UserError
from posegen.io.atomic import replacing
from posegen.metrics.base import Judged, Poses
from posegen.poses.drawing import overlay
from posegen.poses.pose_square import from_square
from posegen.runner.images import picture, read_png, triple, write_png


class Kind(ABC):
    """One kind of sample, always with a picture ``<index>.png``, so that pages and grids need not know the kind."""

    @abstractmethod
    def real(self, samples: Sequence[Sample]) -> Tensor:
        """The B true samples of a data set, as a backbone would generate them."""

    @abstractmethod
    def pictures(self, generated: Tensor, size: tuple[int, int]) -> np.ndarray:
        """``[B, H, W, 3] uint8`` of B generated samples; ``size`` is that of the data's canvas."""

    @abstractmethod
    def shown(self, picture: np.ndarray, judged: Judged) -> np.ndarray:
        """Target, sample and what the judge made of it, side by side; ``picture`` is that of the sample."""

    @abstractmethod
    def write(self, folder: Path, index: int, draws: Tensor, size: tuple[int, int]) -> None:
        """Keeps the draws ``[K, ...]`` of one caption."""

    @abstractmethod
    def kept(self, folder: Path, index: int) -> bool:
        """Whether `write` has finished."""

    @abstractmethod
    def read(self, folder: Path, rows: range) -> Tensor:
        """What `write` kept, as the protocol's ``judge`` wants it."""


class Images(Kind):
    """Images ``[B, 3, H, W]`` in [-1, 1], kept as png files; further draws of a caption are not kept."""

    def real(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([sample.tensor for sample in samples])

    def pictures(self, generated: Tensor, size: tuple[int, int]) -> np.ndarray:
        return to_uint8(generated)

    def shown(self, picture: np.ndarray, judged: Judged) -> np.ndarray:
        return triple(picture, judged.keypoints, judged.found)

    def write(self, folder: Path, index: int, draws: Tensor, size: tuple[int, int]) -> None:
        write_png(picture(folder, index), self.pictures(draws[:1], size)[0])

    def kept(self, folder: Path, index: int) -> bool:
        return picture(folder, index).is_file()

    def read(self, folder: Path, rows: range) -> Tensor:
        """``[B, 3, H, W]``."""
        return torch.stack([to_tensor(read_png(picture(folder, i))) for i in rows])


class SinglePoses(Kind):
    """Poses ``[B, 17, 3]`` in their own squares, kept as numbers ``<index>.npy`` beside a drawing of the first."""

    def real(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([sample.pose for sample in samples])

    def pictures(self, generated: Tensor, size: tuple[int, int]) -> np.ndarray:
        black, poses = np.zeros((*size, 3), np.uint8), generated.float().cpu().numpy()
        return np.stack([overlay(black, from_square(pose, size)[None]) for pose in poses])

    def shown(self, picture: np.ndarray, judged: Judged) -> np.ndarray:
        """The third panel has all poses of the caption."""
        size = picture.shape[:2]
        found = Poses(from_square(judged.found.keypoints, size), judged.found.scores)
        return triple(picture, from_square(judged.keypoints, size), found)

    def write(self, folder: Path, index: int, draws: Tensor, size: tuple[int, int]) -> None:
        content = io.BytesIO()
        np.save(content, draws.float().cpu().numpy(), allow_pickle=False)
        write_png(picture(folder, index), self.pictures(draws[:1], size)[0])
        with replacing(numbers(folder, index), durable=False) as temporary:
            temporary.write_bytes(content.getvalue())

    def kept(self, folder: Path, index: int) -> bool:
        return numbers(folder, index).is_file()

    def read(self, folder: Path, rows: range) -> Tensor:
        """``[B, K, 17, 3]``."""
        poses = []
        for path in (numbers(folder, i) for i in rows):
            try:
                poses.append(torch.from_numpy(np.load(path, allow_pickle=False)))
            except (OSError, ValueError, EOFError) as error:
                fix = "delete it and run the command again to make it anew"
                raise UserError(f"{path} cannot be read ({error}); {fix}") from error
        return torch.stack(poses)


def numbers(folder: Path, index: int) -> Path:
    return picture(folder, index).with_suffix(".npy")


KINDS: dict[Literal["image", "pose"], Kind] = {"image": Images(), "pose": SinglePoses()}
