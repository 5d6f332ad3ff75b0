"""The batches of training: functions of (seed, step) alone, so that an interrupted run continues bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posegen.backbones.text import Text
from posegen.data.base import PoseBatch, PoseData, Sample
from posegen.errors import UserError
from posegen.poses.reading import PoseInput
from posegen.poses.topology import WHOLE_BODY_133

Hint = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Needs:
    """The optional contents of a task's batches.

    Attributes:
        fields: names of optional `PoseBatch` fields, such as ``images``, ``twins``, ``source``, ``hint``, ``latents``.
        hint: draws a pose, ``(keypoints, size) -> [C, H, W] float32``.
        latents: ``[N, c, h, w]`` cached latents of the whole split.
        source_latents: the same of its sources.
        text: indices -> cached encoded prompts.
        negative_text: the encoded negative prompt.
    """

    fields: frozenset[str] = frozenset()
    hint: Hint | None = None
    latents: Sequence | np.ndarray | None = None
    source_latents: Sequence | np.ndarray | None = None
    text: Callable[[Sequence[int]], Text] | None = None
    negative_text: Text | None = None


def collate(data: PoseData, indices: Sequence[int], needs: Needs, seed: int, visit: int = 0) -> PoseBatch:
    """The batch of the samples at ``indices``."""
    samples = [data.seen(i, visit, "images" in needs.fields) for i in indices]
    size = samples[0].size
    images = torch.stack([s.tensor for s in samples]) if "images" in needs.fields else None
    twins = torch.stack([data.twin(i).tensor for i in indices]) if "twins" in needs.fields else None
    sources = [data.sources_of(i, visit) for i in indices] if "source" in needs.fields else []
    poses = torch.stack([s.encodable for s in samples]) if "poses" in needs.fields else None
    source = [torch.stack([s.tensor for s in each]) if len(each) > 1 else each[0].tensor for each in sources]
    hint = None if needs.hint is None else torch.from_numpy(np.stack([drawn(needs.hint, s) for s in samples]))
    latents, source_latents = (
        None if cached is None else torch.from_numpy(np.stack([cached[i] for i in indices])).float()
        for cached in (needs.latents, needs.source_latents)
    )
    sizes = [s.sizes for s in samples if s.sizes is not None] if "sizes" in needs.fields else []
    return PoseBatch(
        ids=[s.id for s in samples],
        prompts=[s.prompt for s in samples],
        keypoints=[s.keypoints for s in samples],
        size=size,
        seed=seed,
        visit=visit,
        images=images,
        poses=poses,
        twins=twins,
        source=torch.stack(source) if source else None,
        source_keypoints=[each[0].keypoints for each in sources],
        source_latents=source_latents,
        hint=hint,
        latents=latents,
        text=None if needs.text is None else needs.text(indices),
        negative_text=needs.negative_text,
        attributes=[s.attributes for s in samples],
        areas=[s.areas for s in samples],
        sizes=torch.tensor(sizes, dtype=torch.float32) if len(sizes) == len(samples) else None,
    )


def drawn(hint: Hint, sample: Sample) -> np.ndarray:
    """The drawn pose of a sample; keypoints that cannot be drawn (not a number, say) are a `UserError`."""
    try:
        if sample.drawing is not None:
            guide, bounds = PoseInput(sample.id, picture=sample.drawing), getattr(hint, "range", (0.0, 1.0))
            with warnings.catch_warnings(action="ignore"):  # the reader of the file has said it
                skeleton = guide.drawn_for(sample.size, bounds)
            if skeleton is not None:
                return skeleton
        whole = sample.whole_body if getattr(hint, "topology", None) is WHOLE_BODY_133 else None
        return hint(sample.keypoints if whole is None else whole, sample.size)
    except ValueError as error:
        fix = "mend or remove it in the data set"
        raise UserError(f"the pose of sample {sample.id} cannot be drawn: {error}; {fix}") from error


def fixed_batches(count: int, size: int) -> list[range]:
    """The batches of sampling and judging: functions of the image index alone, whoever computes which batch."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
