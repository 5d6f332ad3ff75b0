"""Two forms of the same attention, and the definition by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posegen.backbones.blocks.masked_attention import Fill, Masking, Over, compressed, dense

TOKENS = 12
COUNTS = (5, 0, TOKENS, 3, TOKENS, 0, 11)


def masking(fill: Fill, counts: tuple[int, ...] = COUNTS) -> Masking:
    draw = torch.Generator().manual_seed(3)
    pose = torch.zeros(len(counts), TOKENS, dtype=torch.bool)
    for row, count in zip(pose, counts, strict=True):
        row[torch.randperm(TOKENS, generator=draw)[:count]] = True
    return Masking(pose, (~pose).byte().argsort(dim=-1, stable=True), counts, fill)


def inputs(images: int = len(COUNTS)) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, images, 2, TOKENS, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, masks: Masking, over: Over) -> Tensor:
    """One query at a time."""
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    out = torch.zeros_like(v)
    for image, head, token in torch.cartesian_prod(*map(torch.arange, out.shape[:3])).tolist():
        row, pose = logits[image, head, token].clone(), masks.pose[image]
        if not pose[token]:
            if masks.fill == "lowest":
                row[~pose] = (logits if over == "batch" else logits[image]).min()
            elif pose.any():
                row[~pose] = -math.inf
        out[image, head, token] = row.softmax(0) @ v[image, head]
    return out


@pytest.mark.parametrize(("fill", "over"), [("lowest", "image"), ("lowest", "batch"), ("nothing", "image")])
def test_both_forms_are_the_definition(fill: Fill, over: Over) -> None:
    masks, (q, k, v) = masking(fill), inputs()
    with torch.no_grad():
        expected = by_hand(q, k, v, masks, over)
    assert not expected.isnan().any()
    draw = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for form in (dense, compressed):
        made = form(q, k, v, masks, over)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
        gradients.append(torch.autograd.grad((made * draw).sum(), (q, k, v)))
    for plain, short in zip(*gradients, strict=True):
        torch.testing.assert_close(short, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts", [(4,), (4, 4), (0, 0), (TOKENS,), (7, 2)], ids=str)
def test_every_mixture_of_images(counts: tuple[int, ...]) -> None:
    for fill in ("lowest", "nothing"):
        masks, given = masking(fill, counts), inputs(len(counts))
        torch.testing.assert_close(compressed(*given, masks), dense(*given, masks), rtol=1e-5, atol=1e-6)


def test_an_image_depends_on_its_batch_only_where_the_batch_is_asked_for() -> None:
    masks, (q, k, v) = masking("lowest", (5, 5)), inputs(2)
    k = k * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)  # the lowest logit is the second image's
    alone = Masking(masks.pose[:1], masks.order[:1], masks.counts[:1], "lowest")
    for form in (dense, compressed):
        assert torch.allclose(form(q, k, v, masks)[:1], form(q[:1], k[:1], v[:1], alone), atol=1e-6)
        assert not torch.allclose(
            form(q, k, v, masks, "batch")[:1], form(q[:1], k[:1], v[:1], alone, "batch"), atol=1e-3
        )


def test_half_precision_around_it_changes_nothing() -> None:
    masks, (q, k, v) = masking("lowest"), inputs()
    for form in (dense, compressed):
        with torch.autocast("cpu", torch.bfloat16):
            made = form(q, k, v, masks)
        assert made.dtype == torch.float32 and torch.equal(made, form(q, k, v, masks))


def test_images_that_run_together() -> None:
    assert [(masked, rows.start, rows.stop) for masked, rows in masking("lowest").runs()] == [
        (True, 0, 2),
        (False, 2, 3),
        (True, 3, 4),
        (False, 4, 5),
        (True, 5, 7),
    ]
    assert [(masked, rows.start, rows.stop) for masked, rows in masking("nothing").runs()] == [
        (True, 0, 1),
        (False, 1, 3),
        (True, 3, 4),
        (False, 4, 6),
        (True, 6, 7),
    ]
