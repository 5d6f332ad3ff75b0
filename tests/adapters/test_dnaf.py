"""DNAF: identities that any mistake in pairing layers, rows or noise breaks, at odd sizes and on two geometries, and real runs on the tiny world.

What an implementation has to fulfil has numbers, which stand in the names of the tests, ``test_acceptance_<number>_...``:

1. an opened U-Net without additions is the plain one (`tests/backbones/test_self_attention.py`);
2. inserted blocks that start at zero change nothing;
3. a pass whose sources are all dropped is the plain one;
4. a source that is the target, with its noise, changes nothing;
5. sixteen self-attentions of Stable Diffusion are read, each with as many keys as the source's grid has cells, and nothing of them is left behind;
6. odd sizes, 32 x 22 latents for one, go through all levels;
7. one backward pass reaches all that trains and nothing else (`tests/adapters/test_dnaf_training.py`);
8. another noise or another source changes the prediction, of its own image alone;
9. guidance with both scales 1 is one branch, with equal scales two;
10. in a transfer, pixels outside the mask are the picture's own (`tests/runner/test_inpainting.py`, `tests/verbs/test_transfer.py`).
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posegen.adapters.base import State
from posegen.adapters.dnaf import DNAF
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.blocks.self_attention import INSERTED, transformers
from posegen.backbones.loading.single_file import vae_of
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.data.base import PoseBatch
from posegen.runner.sampler import Sampler
from tests.adapters.cases import backbone_of, scrambled

#: Stable Diffusion 1.5 with narrow layers: 16 self-attentions on 4 grids. The mannequin's design: latent factor 4, no attention at the finest level.
USUAL = Geometry(4, 8, (32, 32, 64, 64), (True, True, True, False), 2, (4,) * 4, 32)
MANNEQUIN = Geometry(4, 4, (32, 32, 64), (False, True, True), 1, (4,) * 3, 32)
GEOMETRIES = pytest.mark.parametrize("geometry", [USUAL, MANNEQUIN], ids=["usual", "mannequin"])
STEPS = torch.tensor([700, 30, 350])


def backbone(geometry: Geometry = USUAL) -> StableDiffusion:
    torch.manual_seed(0)
    return backbone_of(geometry, vae_of((32,) * (geometry.latent_factor.bit_length()), 1)).requires_grad_(False)


def attached(geometry: Geometry = USUAL, trained: bool = True, **settings: Any) -> DNAF:
    """The method on a small backbone; ``trained`` gives every weight a value of its own."""
    body = backbone(geometry)
    torch.manual_seed(1)
    adapter = DNAF(**settings)
    adapter.attach(body)
    if trained:
        scrambled(adapter, seed=2)
    return adapter.eval()


def batch(
    size: tuple[int, int] = (64, 64), images: int = 3, source: tuple[int, int] | None = None, text_dim: int = 32
) -> PoseBatch:
    draw = torch.Generator().manual_seed(3)
    hint, text = torch.rand(images, 3, *size, generator=draw), torch.randn(images, 5, text_dim, generator=draw)
    people = torch.rand(images, 3, *(source or size), generator=draw) * 2 - 1
    keypoints = [np.zeros((0, 17, 3))] * images
    return PoseBatch(
        [str(i) for i in range(images)],
        [""] * images,
        keypoints,
        size,
        source=people,
        hint=hint,
        text=Text(text),
        negative_text=Text(text[:1]),
    )


def noisy(adapter: DNAF, pose: PoseBatch) -> Tensor:
    return torch.randn(len(pose), *adapter.backbone.latent_shape(pose.size), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def predicted(adapter: DNAF, state: State, latents: Tensor) -> Tensor:
    steps = STEPS[: len(state)]
    return adapter.backbone.predict(latents, steps, state.text, adapter.inject(state, latents, steps))


def without(state: State, *kept: str) -> State:
    """The state with the conditions of all images removed, but for those ``kept``."""
    return state.having(**{name: torch.full((len(state),), name in kept) for name in ("posed", "sourced")})


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> bool:
    return torch.allclose(a, b, atol=atol)


# What must not change anything.


@GEOMETRIES
def test_acceptance_2_blocks_that_start_at_zero_leave_the_prediction_alone(geometry: Geometry) -> None:
    adapter, pose = attached(geometry, trained=False, naf=False), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    plain = backbone(geometry).predict(
        latents, STEPS, state.text, Injection(encoder=adapter.inject(without(state, "posed"), latents, STEPS).encoder)
    )
    assert torch.equal(predicted(adapter, state, latents), plain)
    assert not close(predicted(attached(geometry, naf=False), state, latents), plain, 1e-3)


@GEOMETRIES
def test_acceptance_3_without_conditions_it_is_the_plain_unet(geometry: Geometry) -> None:
    adapter, pose = attached(geometry), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    plain = backbone(geometry).predict(latents, STEPS, state.text, Injection())
    assert torch.equal(predicted(adapter, without(state), latents), plain)
    assert not close(predicted(adapter, without(state, "sourced"), latents), plain, 1e-3)
    assert not close(predicted(adapter, without(state, "posed"), latents), plain, 1e-3)


@GEOMETRIES
@pytest.mark.parametrize("scope", ["original", "all"])
def test_acceptance_4_a_source_that_is_the_target_changes_nothing(geometry: Geometry, scope: str) -> None:
    """Keys and values twice leave softmax attention as it was; wrong pairs of layers, noise levels or rows do not."""
    adapter, pose = attached(geometry, naf_scope=scope), batch()
    state = without(adapter.encode(pose), "sourced")
    latents = adapter.backbone.process.add_noise(state["source"][:, 0], state["source_noise"], STEPS)
    once = replace(adapter.inject(state, latents, STEPS), attention=None)
    with torch.no_grad():
        assert close(predicted(adapter, state, latents), adapter.backbone.predict(latents, STEPS, state.text, once))
    assert not close(
        predicted(adapter, state, latents + 0.1),
        adapter.backbone.predict(latents + 0.1, STEPS, state.text, once),
        1e-3,
    )


@pytest.mark.parametrize("scope", ["original", "all"])
def test_images_without_source_or_pose_are_those_of_a_batch_without(scope: str) -> None:
    adapter, pose = attached(naf_scope=scope), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    mixed = state.having(sourced=torch.tensor([True, False, True]), posed=torch.tensor([True, True, False]))
    made = predicted(adapter, mixed, latents)
    for row, kept in enumerate((("sourced", "posed"), ("posed",), ("sourced",))):
        assert close(made[row], predicted(adapter, without(state, *kept), latents)[row])


# What it reads.


@pytest.mark.parametrize(("kind", "scope", "more"), [("full", "original", 0), ("full", "all", 16), ("cross", "all", 0)])
def test_acceptance_5_sixteen_layers_of_stable_diffusion_are_read_and_the_source_may_have_another_size(
    kind: str, scope: str, more: int
) -> None:
    adapter, pose = attached(inserted_kind=kind, naf_scope=scope), batch((64, 64), source=(128, 128))
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    bank = adapter.inject(state, latents, STEPS).attention
    assert bank is not None
    original = {name: keys for name, (keys, _) in bank.layers.items() if not name.startswith(INSERTED)}
    assert (
        len(original) == 16
        and len(bank.layers) == 16 + more
        and set(original) == set(transformers(adapter.backbone.unet))
    )
    assert [keys.shape[1] for keys in original.values()] == [
        256,
        256,
        64,
        64,
        16,
        16,
        4,
        16,
        16,
        16,
        64,
        64,
        64,
        256,
        256,
        256,
    ]
    assert predicted(adapter, state, latents).shape == latents.shape


def test_acceptance_5_nothing_of_a_pass_is_left_behind() -> None:
    adapter, pose = attached(), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    injection = adapter.inject(state, latents, STEPS)
    kept = [weakref.ref(keys) for keys, _ in injection.attention.layers.values()]  # type: ignore[union-attr]
    predicted(adapter, state, latents)
    del injection
    gc.collect()
    assert not any(ref() is not None for ref in kept)


@pytest.mark.parametrize(
    ("geometry", "size", "grids"),
    [(USUAL, (256, 176), [(32, 22), (16, 11), (8, 6), (4, 3)]), (MANNEQUIN, (60, 44), [(15, 11), (8, 6), (4, 3)])],
)
def test_acceptance_6_odd_grids_fit(geometry: Geometry, size: tuple[int, int], grids: list[tuple[int, int]]) -> None:
    adapter, pose = attached(geometry), batch(size, images=1)
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    assert [tuple(level.shape[-2:]) for level in state.all("maps")] == grids
    assert predicted(adapter, state, latents).shape[-2:] == grids[0]


@GEOMETRIES
def test_acceptance_8_every_part_of_the_source_matters_to_its_own_image_alone(geometry: Geometry) -> None:
    adapter, pose = attached(geometry), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    made, swap = predicted(adapter, state, latents), torch.tensor([0, 2, 1])
    stages, swapped = state.all("stages"), state.rows(swap)
    assert len(stages) == (4 if geometry is USUAL else 2)
    changed = {name: {name: swapped[name]} for name in ("source", "source_noise")}
    for place, tokens in enumerate(swapped.all("stages")):
        changed[f"stage{place}"] = {"stages": (*stages[:place], tokens, *stages[place + 1 :])}  # type: ignore[dict-item]
    for name, conditions in changed.items():
        other = predicted(adapter, state.having(**conditions), latents)
        assert close(other[0], made[0]) and not close(other[1], made[1], 1e-4) and not close(other[2], made[2], 1e-4), (
            name
        )
    sources = adapter.encode(replace(pose, source=pose.source[swap]))  # type: ignore[index]
    noises = sources.having(source_noise=state["source_noise"])
    one = state.having(source=swapped["source"], stages=swapped.all("stages"))
    assert close(predicted(adapter, noises, latents), predicted(adapter, one, latents))


def test_the_strength_is_the_weight_of_a_key() -> None:
    latents, pose = noisy(attached(), batch()), batch()
    full, faint, none, off = (
        predicted(a, a.encode(pose), latents)
        for a in (attached(), attached(naf_strength=1e-7), attached(naf_strength=0), attached(naf=False))
    )
    assert torch.equal(none, off) and close(faint, off) and not close(full, off, 1e-3)


@pytest.mark.parametrize(
    ("noise", "sampling"), [("independent", "fixed"), ("independent", "fresh"), ("shared", "fixed")]
)
def test_the_noise_of_the_source_is_the_images_own(noise: str, sampling: str) -> None:
    adapter, pose = attached(naf_noise=noise, naf_sampling_noise=sampling), batch()
    state, seen = adapter.encode(pose), []
    hook = adapter.backbone.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    latents = noisy(adapter, pose)
    for steps in (STEPS, STEPS, STEPS - 20):
        adapter.inject(state, latents, steps)
    alone = replace(pose, ids=pose.ids[1:2], source=pose.source[1:2], hint=pose.hint[1:2], text=pose.text[1:2])  # type: ignore[index]
    adapter.inject(adapter.encode(replace(alone, prompts=[""])), latents[1:2], STEPS[1:2])
    hook.remove()
    assert torch.equal(seen[0], seen[1]) and close(seen[0][1:2], seen[3])
    a = adapter.backbone.process.power(torch.stack([STEPS, STEPS - 20])).view(2, -1, 1, 1, 1)
    used = [
        (each - alpha.sqrt() * state.conditions["source"][:, 0]) / (1 - alpha).sqrt()
        for each, alpha in zip((seen[0], seen[2]), a, strict=True)
    ]
    assert close(*used, atol=1e-3) == (sampling == "fixed")
    assert close(used[0], pose.randn("latents", latents.shape[1:]), 1e-3) == (noise == "shared")
    adapter.train()
    assert torch.equal(adapter.encode(pose).conditions["source_noise"], pose.randn("noise", latents.shape[1:])) == (
        noise == "shared"
    )


def test_the_source_is_encoded_once_per_image_and_passes_the_unet_once_per_step() -> None:
    adapter, pose = attached(), batch()
    calls: dict[str, list[int]] = {"vision": [], "vae": [], "unet": []}
    parts = {"vision": adapter.pyramid, "vae": adapter.backbone.autoencoder.encoder, "unet": adapter.backbone.unet}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda _, inputs, name=name: calls[name].append(len(inputs[0])))
    Sampler(steps=2, guidance=2.0).latents(adapter, adapter.backbone, pose)
    assert calls == {"vision": [3], "vae": [3], "unet": [3, 6, 3, 6]}
    adapter.pose_guidance = 1.5
    Sampler(steps=1, guidance=2.0).latents(adapter, adapter.backbone, pose)
    assert calls["unet"][4:] == [3, 9]


def test_schedulers_with_steps_between_the_trained_ones_serve() -> None:
    adapter, pose = attached(MANNEQUIN), batch()
    sampler, plain = Sampler("EulerDiscreteScheduler", steps=3, guidance=2.0), attached(MANNEQUIN, naf=False)
    made = sampler.latents(adapter, adapter.backbone, pose)
    assert made.isfinite().all() and not close(made, sampler.latents(plain, plain.backbone, pose), 1e-3)


# Several sources.


@GEOMETRIES
@pytest.mark.parametrize(
    "settings",
    [{}, {"naf_scope": "all", "naf_noise": "shared", "source_latent": "sample"}, {"naf_sampling_noise": "fresh"}],
)
def test_several_sources_are_read_together_in_any_order(geometry: Geometry, settings: dict[str, Any]) -> None:
    """One in a list is the one alone; of two, the keys, values and tokens of both are there, each as if it were alone."""
    adapter, pose = attached(geometry, **settings), batch()
    latents, first = noisy(adapter, pose), pose.source
    second = first.flip(0)  # type: ignore[union-attr]
    given = {
        "alone": first,
        "listed": torch.stack([first], 1),
        "both": torch.stack([first, second], 1),
        "turned": torch.stack([second, first], 1),
    }  # type: ignore[list-item]
    states = {name: adapter.encode(replace(pose, source=source)) for name, source in given.items()}
    made = {name: predicted(adapter, state, latents) for name, state in states.items()}
    assert torch.equal(made["alone"], made["listed"])
    assert close(made["both"], made["turned"]) and not close(made["both"], made["alone"], 1e-4)
    other = adapter.encode(replace(pose, source=second))
    with torch.no_grad():
        banks = [adapter.inject(state, latents, STEPS) for state in (states["alone"], other, states["both"])]
    for name, pair in banks[2].attention.layers.items():  # type: ignore[union-attr]
        for kind, joined in enumerate(pair):
            assert close(joined, torch.cat([bank.attention.layers[name][kind] for bank in banks[:2]], 1), 1e-3), name  # type: ignore[union-attr]
    for place, tokens in enumerate(banks[2].features):  # type: ignore[arg-type]
        assert close(tokens, torch.cat([bank.features[place] for bank in banks[:2]], 1), 1e-3)  # type: ignore[index]


def test_several_sources_of_some_images_are_those_of_a_batch_with_these_alone() -> None:
    adapter, pose = attached(naf_scope="all"), batch()
    pose = replace(pose, source=torch.stack([pose.source, pose.source.flip(0)], 1))  # type: ignore[union-attr, list-item]
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    mixed = predicted(adapter, state.having(sourced=torch.tensor([True, False, True])), latents)
    assert close(mixed[::2], predicted(adapter, state, latents)[::2]) and close(
        mixed[1], predicted(adapter, without(state, "posed"), latents)[1]
    )


# Guidance and dropping.


@pytest.mark.parametrize(
    ("pose_scale", "source_scale", "count"),
    [(None, None, 2), (2.0, 3.0, 3), (1.0, 1.0, 1), (1.0, 2.0, 2), (2.0, 2.0, 2)],
)
def test_acceptance_9_guidance_has_a_scale_for_each_condition(
    pose_scale: float | None, source_scale: float | None, count: int
) -> None:
    adapter, pose = attached(pose_guidance=pose_scale, source_guidance=source_scale), batch()
    state, latents = adapter.encode(pose), noisy(adapter, pose)
    neither, posed, both = (
        predicted(adapter, without(state, *kept), latents) for kept in ((), ("posed",), ("posed", "sourced"))
    )
    w_p, w_s = pose_scale or 2.5, source_scale or 2.5
    weighted = adapter.branches(state, 2.5)
    assert len(weighted) == count
    made = sum(weight * predicted(adapter, branch, latents) for weight, branch in weighted)
    assert close(made, neither + w_p * (posed - neither) + w_s * (both - posed), 1e-4)


def test_conditions_are_dropped_by_each_images_own_chance() -> None:
    adapter = attached(trained=False, inserted=False, drop_source=0.2, drop_pose=0.1, drop_both=0.3)
    many = 4000
    chance = PoseBatch([str(i) for i in range(many)], [""] * many, [], (8, 8)).rand("dropped conditions")
    text = Text(torch.zeros(many, 1, 1))
    dropped = adapter.drop(
        State(text, text, {"chance": chance, "sourced": chance > -1}), torch.ones(many, dtype=torch.bool)
    ).conditions
    shares = {
        (s, p): float(((dropped["sourced"] == s) & (dropped["posed"] == p)).float().mean())
        for s in (True, False)
        for p in (True, False)
    }
    assert shares == pytest.approx(
        {(True, True): 0.4, (False, True): 0.2, (True, False): 0.1, (False, False): 0.3}, abs=0.03
    )
    assert torch.equal(adapter.encode(batch()).conditions["chance"], chance[:3])


def test_a_fixed_text_is_everybodys() -> None:
    adapter, pose = attached(fixed_text="person"), batch()
    state = adapter.encode(pose)
    assert torch.equal(state.text.tokens, adapter.backbone.encode_text(["person"]).expand(3).tokens)
    assert not torch.equal(attached().encode(pose).text.tokens, state.text.tokens)
