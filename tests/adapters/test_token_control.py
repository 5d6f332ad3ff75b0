"""Token control: what the tokens change and see, where low-rank weights act, and what is kept over the steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posegen.adapters.base import State
from posegen.adapters.token_control import TokenControl
from posegen.backbones.base import Backbone, Injection
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.cli import main
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys
from posegen.runner.method_folder import load_method, save_method, trains
from tests.adapters.test_lora_control import awake, loss_of, sd3
from tests.backbones.test_flux import backbone as flux
from tests.backbones.test_flux import batch, drawing, ours


def attached(body: Backbone, **settings: Any) -> TokenControl:
    torch.manual_seed(0)
    method = TokenControl(pose_latent="mode", **settings)
    method.attach(body)
    return method


def inputs(body: Backbone) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *body.latent_shape((64, 96)), generator=generator), torch.tensor([100.0, 900.0])


def predicted(method: TokenControl, state: State, latents: Tensor, times: Tensor) -> Tensor:
    return method.backbone.predict(latents, times, state.text, method.inject(state, latents, times))


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("build", [flux, sd3])
def test_low_rank_weights_alone_train_and_the_backbone_stays_as_it_is(build: Any, independent: bool) -> None:
    body = build()
    before = {key: value.clone() for key, value in body.network.state_dict().items()}
    latents, times = inputs(body)
    with torch.no_grad():
        text = body.encode_text(["a person", "the beach"])
        alone = body.predict(latents, times, text, Injection())
    method = attached(body, independent=independent)
    with torch.no_grad():
        state = method.encode(batch(2 * drawing() - 1))
        start = predicted(method, state, latents, times)
        assert not torch.allclose(start, body.predict(latents, times, state.text, Injection()), atol=1e-4)
        assert torch.equal(body.predict(latents, times, text, Injection()), alone)
    awake(method)  # type: ignore[arg-type]
    with torch.no_grad():
        fresh = method.encode(batch(2 * drawing() - 1))
        assert not torch.allclose(predicted(method, fresh, latents, times), start, atol=1e-4)
        assert torch.equal(body.predict(latents, times, text, Injection()), alone)  # others do not see the weights
    loss_of(method, body).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert not trains(body) and all(p.grad is None for p in body.parameters())
    after = body.network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("build", [flux, sd3])
def test_low_rank_weights_act_on_the_tokens_of_the_pose_alone(build: Callable[[], Any]) -> None:
    """Every linear layer of the backbone that a pass runs computes as in a backbone of its own."""
    body = build()
    method = awake(attached(body))  # type: ignore[arg-type]
    plain = build().network
    checked = []

    def same(name: str) -> Any:
        def check(_module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            checked.append(name)
            assert torch.equal(made, plain.get_submodule(name)(given[0]))

        return check

    linear = [n for n, m in body.network.named_modules() if isinstance(m, nn.Linear)]
    twins = dict(method.branch.inner.named_modules())
    for name in linear:
        body.network.get_submodule(name).register_forward_hook(same(name))
    with torch.no_grad():
        state = method.encode(batch(2 * drawing() - 1))
        predicted(method, state, *inputs(body))
    # Layers without low-rank weights are those of the twin as well, so they run twice.
    assert set(checked) == set(linear) and len(checked) > len(linear)
    adapted = [name for name in linear if hasattr(twins[name], "lora_A")]
    assert adapted and all(type(twins[name]).__module__.startswith("peft.") for name in adapted)


@pytest.mark.parametrize("build", [flux, sd3])
def test_independent_tokens_see_neither_image_nor_text_and_others_do(build: Callable[[], Any]) -> None:
    body = build()
    latents, times = inputs(body)
    keys = {}
    for independent in (True, False):
        method = awake(attached(body, independent=independent))  # type: ignore[arg-type]
        for name, noisy in (("one", latents), ("other", latents + 1)):
            with torch.enable_grad():  # nothing is kept
                state = method.encode(batch(2 * drawing() - 1))
                injected = method.inject(state, noisy, times)
                body.predict(noisy, times, state.text, injected)
            keys[independent, name] = list(injected.tokens[0].states.values())
    assert all(torch.equal(a, b) for a, b in zip(keys[True, "one"], keys[True, "other"], strict=True))
    first, *later = zip(keys[False, "one"], keys[False, "other"], strict=True)
    assert torch.equal(*first) and not any(torch.allclose(a, b) for a, b in later)


@pytest.mark.parametrize("build", [flux, sd3])
def test_kept_keys_and_values_are_those_that_are_computed_again(build: Callable[[], Any]) -> None:
    body = build()
    method = awake(attached(body, independent=True))  # type: ignore[arg-type]
    (latents, times), passes = inputs(body), []
    start = method.branch.start
    method.branch.start = lambda *given: passes.append(1) or start(*given)
    with torch.no_grad():
        state = method.encode(batch(2 * drawing() - 1))
        predicted(method, state, latents, times)
        later = predicted(method, state, latents + 1, times / 2)
        assert len(passes) == 1
        again = method.encode(batch(2 * drawing() - 1))
        assert torch.equal(predicted(method, again, latents + 1, times / 2), later) and len(passes) == 2
    method.independent = False
    with torch.no_grad():
        assert not torch.allclose(predicted(method, state, latents, times), later)
        assert len(passes) == 3
    del state, again
    assert not method.kept  # nothing outlives the images


@pytest.mark.parametrize("independent", [False, True])
def test_checkpointed_blocks_give_the_same_gradients(independent: bool) -> None:
    found = []
    for checkpointed in (False, True):
        body = sd3()
        method = awake(attached(body, independent=independent))  # type: ignore[arg-type]
        if checkpointed:
            body.network.enable_gradient_checkpointing()
        loss_of(method, body).backward()
        found.append([p.grad for p in method.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("independent", [False, True])
def test_a_saved_method_draws_the_same(tmp_path: Path, independent: bool) -> None:
    method = awake(attached(flux(), independent=independent))  # type: ignore[arg-type]
    hint = 2 * drawing() - 1
    save_method(tmp_path / "method", method, method.backbone)
    assert {file.name for file in (tmp_path / "method").iterdir()} == {"adapter.safetensors", "posegen.json"}
    found = ours(method, hint, guidance=2.0)
    assert torch.equal(ours(load_method(tmp_path / "method", flux()), hint, guidance=2.0), found)
    assert (found - ours(method, -hint, guidance=2.0)).abs().max() > 1e-2


def test_a_few_steps_reduce_the_loss() -> None:
    body = sd3()
    method = attached(body)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        losses.append(loss_of(method, body))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.99 * losses[0]


def test_a_dropped_pose_is_a_black_drawing() -> None:
    body = flux()
    for share in (0.0, 1.0):
        method = attached(body, drop_pose=share)
        state = method.encode(batch(2 * drawing() - 1))
        nobody = method.encode(batch(-torch.ones(2, 3, 64, 96)))["pose"]
        dropped = method.drop(state, torch.tensor([True, False]))
        torch.testing.assert_close(dropped["pose"], nobody if share else state["pose"])
        assert torch.equal(dropped.text.tokens[1], state.null_text.tokens[1])


def test_an_official_file_is_converted_and_the_end_is_left_out() -> None:
    """Official files have weights behind the last keys and values, which no image reads."""
    method = attached(flux())
    own = method.state_dict()
    last = "transformer.single_transformer_blocks.4"
    beside = {f"{last}.{name}.lora_A.weight": torch.zeros(1) for name in ("attn.to_q", "proj_mlp", "proj_out")}
    assert not any(key in own for key in beside) and f"{last}.attn.to_v.lora_A.weight" in own
    assert method.convert({**own, **beside}).keys() == {f"adapter.{key}" for key in own}
    assert {key.removesuffix(".lora_A.weight") for key in beside} == set(method.left_out)
    with pytest.raises(UnknownKeys, match="1 keys that TokenControl has no place for: x"):
        method.convert({**own, "x": torch.zeros(1)})


def test_full_size_weights_are_as_many_as_counted() -> None:
    """3.62 million for each rank in the official configuration, of which nothing reads those at the last block's end."""
    from posegen.backbones.flux import Flux

    with torch.device("meta"):
        method = attached(Flux(None, initialise="random", size="flux1_dev"))
    wide, mlp = 3072, 12288
    behind = 2 * wide + (wide + mlp) + (wide + mlp + wide)  # to_q, proj_mlp, proj_out
    double, single = 7 * wide + 4 * 2 * wide + (wide + mlp), 4 * wide + 2 * 2 * wide + behind
    official = (64 + wide) + 19 * double + 38 * single
    assert official == 3_621_952
    assert sum(p.numel() for p in method.parameters()) == 4 * (official - behind)


def test_backbones_without_the_place_and_a_missing_package_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "TokenControl needs tokens (tokens of a picture in the joint" in (
        TokenControl.unserved(StableDiffusion) or ""
    )
    assert main(["check", "train", "adapter=token_control", "backbone=sd15", "backbone.path=."]) == 1
    assert "TokenControl needs tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"adapter.targets=\['to_x'\] fits no layer"):
        attached(flux(), targets=["to_x"])
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["check", "train", "adapter=token_control", "backbone=mannequin_dit"]) == 1
    assert "adapter=token_control needs the package peft; pip install 'posegen[lora]'" in capsys.readouterr().err
