"""What every method must keep; a new ``conf/adapter/*.yaml`` is tested by being there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from posegen.adapters.base import Adapter, Paper
from posegen.backbones.base import BACKBONE_PLACES, Injection, Step
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.stable_diffusion_3 import StableDiffusion3
from posegen.config.groups import Option, conf_dir
from posegen.data.base import PoseBatch
from posegen.runner.components import Components
from posegen.runner.generate import batch_of
from posegen.train.recipe import recipe_of
from tests.tiny import configured, making, on_transformer

FILES = sorted((conf_dir() / "adapter").rglob("*.yaml"))
NAMES = [file.relative_to(conf_dir() / "adapter").with_suffix("").as_posix() for file in FILES]
METHODS = [name for name in NAMES if not name.startswith("reference/")]
WHOLE = [
    name for name in NAMES if not name.startswith("ablation/")
]  # those that say all of their arguments; an ablation changes a few of a method's

#: Factors that all methods share; one of them in an adapter's yaml would make the comparison unfair.
SHARED = {"seed", "size", "resolution", "steps", "guidance", "guidance_scale", "prompt", "negative_prompt"}
SHARED |= {"batch", "batch_size", "scheduler", "precision", "ema"}


@pytest.fixture(params=METHODS)
def components(request: pytest.FixtureRequest, world: list[str]) -> Iterator[Components]:
    method = class_of(request.param)
    world = on_transformer(world) if method.unserved(StableDiffusion) else world
    exact = "trainer.precision=32-true"  # low precision turns a difference in the last bit into one of 1e-2
    with configured("train", *making(method.sample, world, method.needs), f"adapter={request.param}", exact) as cfg:
        yield Components(cfg)


def yaml_of(name: str) -> Path:
    return conf_dir() / "adapter" / f"{name}.yaml"


def class_of(name: str) -> type[Adapter]:
    return get_class(Option("adapter", name, yaml_of(name)).target or "")


def batch(components: Components, rows: range = range(2)) -> PoseBatch:
    return batch_of(components, components.adapter, rows)


def step(components: Components, pose: PoseBatch) -> tuple[dict[str, torch.Tensor], Step]:
    """One training step's losses."""
    backbone, adapter = components.backbone, components.adapter
    shape = backbone.latent_shape(pose.size)
    clean, noise = pose.randn("clean", shape), pose.randn("noise", shape)
    timesteps = torch.tensor([100, 700])
    noisy = backbone.process.add_noise(clean, noise, timesteps)
    state = adapter.encode(pose)
    prediction = backbone.predict(noisy, timesteps, state.text, adapter.inject(state, noisy, timesteps))
    taken = Step(prediction, backbone.process.target(clean, noise, timesteps), noisy, clean, noise, timesteps)
    return adapter.loss(taken, state, pose), taken


@pytest.mark.parametrize("name", WHOLE)
def test_the_yaml_holds_no_shared_factor_and_agrees_with_the_constructor(name: str) -> None:
    values = OmegaConf.load(yaml_of(name))
    own = {k: v for k, v in values.items() if k not in ("_target_", "recipes", "init", "official")}
    assert not SHARED & set(own)
    assert all(set(recipe) <= {"lr", "drop_text"} for recipe in (values.get("recipes") or {}).values())
    signature = inspect.signature(get_class(values._target_))
    for key, value in own.items():
        default = signature.parameters[key].default
        given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        assert given == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WHOLE])
def test_an_ablation_changes_arguments_of_its_method_alone(name: str) -> None:
    changed = {k: v for k, v in OmegaConf.load(yaml_of(name)).items() if k != "defaults"}
    parameters = inspect.signature(class_of(name)).parameters
    usual = {"faithful": class_of(name).faithful, **{key: parameter.default for key, parameter in parameters.items()}}
    assert changed and all(key in usual and value != usual[key] for key, value in changed.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_class_says_what_it_is(name: str) -> None:
    cls = class_of(name)
    assert issubclass(cls, Adapter) and inspect.getdoc(cls)
    assert isinstance(cls.paper, Paper) and cls.paper.title
    assert cls.needs <= {"hint", "images", "twins", "source", "population"}
    assert cls.trainable or not cls().state_dict()
    assert cls.places <= BACKBONE_PLACES.keys()


def test_gradients_reach_exactly_what_trains(components: Components) -> None:
    adapter = components.adapter
    modules = {"adapter": adapter, "backbone": components.backbone}
    losses, _ = step(components, batch(components))
    trained = {f"{k}.{n}": p for k, m in modules.items() for n, p in m.named_parameters() if p.requires_grad}
    assert bool(trained) == adapter.trains
    if trained:
        losses["loss"].backward()
        assert not [name for name, p in trained.items() if p.grad is None]
    frozen = [p for m in modules.values() for p in m.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_parameter_groups_are_what_trains(components: Components) -> None:
    adapter, modules = components.adapter, (components.adapter, components.backbone)
    groups = adapter.parameter_groups(recipe_of(components, 10)) if adapter.trains else []
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for module in modules for p in module.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trained)


@pytest.mark.parametrize("name", METHODS)
def test_a_backbone_without_the_places_that_a_method_needs_is_refused_by_name(name: str) -> None:
    class Bare(StableDiffusion):
        places = frozenset({"down"})

    cls = class_of(name)
    assert None in (cls.unserved(StableDiffusion), cls.unserved(StableDiffusion3))
    said = cls.unserved(Bare) or ""
    assert (not cls.places) == (not said)
    for place in cls.places:
        assert f"{place} ({BACKBONE_PLACES[place]})" in said and "Bare has down" in said


def test_before_training_a_method_changes_nothing_or_says_so(components: Components) -> None:
    """Most methods start from the backbone itself: zero convolutions, zero input channels."""
    backbone = components.backbone
    latents, timesteps = (
        torch.randn(2, *backbone.latent_shape((64, 64)), generator=torch.Generator().manual_seed(0)),
        torch.tensor([10, 900]),
    )
    text = backbone.encode_text(["photo", "sketch"])
    with torch.no_grad():
        alone = backbone.predict(latents, timesteps, text, Injection())
        pose = batch(components)
        state = components.adapter.encode(pose)
        influenced = backbone.predict(latents, timesteps, text, components.adapter.inject(state, latents, timesteps))
    assert torch.allclose(alone, influenced, atol=1e-6) == components.adapter.starts_neutral


def test_an_image_does_not_depend_on_its_batch(components: Components) -> None:
    together = components.adapter.generate(batch(components, range(3)), components.sampler)
    alone = components.adapter.generate(batch(components, range(1, 2)), components.sampler)
    assert torch.allclose(together[1], alone[0], atol=1e-4)


def test_dropping_removes_the_text_where_it_is_told_to(components: Components) -> None:
    state = components.adapter.encode(batch(components))
    dropped = components.adapter.drop(state, torch.tensor([True, False]))
    assert torch.equal(dropped.text.tokens[0], state.text.tokens[0]) and torch.equal(
        dropped.text.tokens[1], state.null_text.tokens[1]
    )


def test_the_branches_of_guidance_sum_to_one(components: Components) -> None:
    state = components.adapter.encode(batch(components))
    for guidance in (1.0, 3.5):
        assert sum(weight for weight, _ in components.adapter.branches(state, guidance)) == pytest.approx(1.0)


def test_saved_weights_give_the_same_pictures(components: Components, tmp_path: Path) -> None:
    from posegen.runner.method_folder import load_into, save_method

    adapter, backbone = components.adapter, components.backbone
    with torch.no_grad():
        for p in [*adapter.parameters(), *backbone.parameters()]:
            if p.requires_grad:
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    save_method(tmp_path / "method", adapter, backbone)
    again = Components(components.cfg)
    load_into(again.adapter, again.backbone, tmp_path / "method")
    assert torch.equal(
        adapter.generate(batch(components), components.sampler), again.adapter.generate(batch(again), again.sampler)
    )
