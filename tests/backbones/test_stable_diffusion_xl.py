"""Stable Diffusion XL against diffusers' own pipelines, on the same random weights."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers import (
    T2IAdapter as DiffusersT2IAdapter,
)
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.adapters.controlnet import ControlNet
from posegen.adapters.controlnet_union import ControlNetUnion
from posegen.adapters.dnaf import DNAF
from posegen.adapters.none import NoAdapter
from posegen.adapters.t2i_adapter import T2IAdapter, original_names
from posegen.backbones.base import Geometry, Injection, Step
from posegen.backbones.loading import ldm_keys as ldm
from posegen.backbones.loading.single_file import unet_geometry, unet_of
from posegen.backbones.loading.sizes import SDXL
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.stable_diffusion_xl import StableDiffusionXL
from posegen.config.groups import conf_dir
from posegen.data.base import PoseBatch, PoseData, Sample
from posegen.errors import UserError
from posegen.io.weights import WeightsError
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.batches import Needs, collate
from posegen.runner.components import Components
from posegen.runner.generate import batch_of
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.conversion import convert
from posegen.train.loop import needs_of
from posegen.train.tasks import AdapterTask
from posegen.train.training_batches import EpochBatches, training_loader
from tests.backbones.models import SD1, named, original_of, parts_of, write_safetensors
from tests.backbones.sdxl_models import POOLED, XL, original_sdxl, sdxl_parts
from tests.tiny import configured

SIZE, STEPS, GUIDANCE, PROMPTS = (64, 96), 3, 5.0, ["a person dancing", "a person on the beach"]


def backbone(whole: bool = False) -> StableDiffusionXL:
    return StableDiffusionXL.from_parts(copy.deepcopy(sdxl_parts(whole)))


def batch(hint: Tensor | None = None, rows: slice = slice(2), sizes: Tensor | None = None) -> PoseBatch:
    ids, nobody = ["a", "b"][rows], [np.zeros((0, 17, 3))] * 2
    return PoseBatch(ids, PROMPTS[rows], nobody[rows], SIZE, hint=None if hint is None else hint[rows], sizes=sizes)


def drawing() -> Tensor:
    """Two drawings, in [0, 1]."""
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def theirs(cls: type, body: StableDiffusionXL, rows: slice = slice(2), **more: object) -> Tensor:
    """Final latents of a diffusers pipeline on the same parts and the same noise."""
    parts: dict[str, object] = {name: getattr(body, place) for name, place in body.components.items()}
    parts |= {name: more.pop(name) for name in ("controlnet", "adapter") if name in more}
    scheduler = DDIMScheduler.from_config(body.process.config)
    pipe = cls(scheduler=scheduler, force_zeros_for_empty_prompt=body.zeros, **parts)
    pipe.set_progress_bar_config(disable=True)
    noise = batch(rows=rows).randn("latents", body.latent_shape(SIZE))
    usual = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": SIZE[0], "width": SIZE[1]}
    return pipe(PROMPTS[rows], latents=noise, output_type="latent", **usual, **more).images


@torch.inference_mode()
def ours(method: Adapter, given: PoseBatch) -> Tensor:
    return Sampler(steps=STEPS, guidance=GUIDANCE).latents(method, method.backbone, given)


def awake(method: Adapter, body: StableDiffusionXL) -> Adapter:
    """The attached method with weights that matter: zero layers hide mistakes."""
    method.attach(body)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


@pytest.mark.parametrize("zeros", [True, False])
def test_text_to_image_equals_diffusers(zeros: bool) -> None:
    body = StableDiffusionXL.from_parts(copy.deepcopy(sdxl_parts()), zeros=zeros)
    method = NoAdapter()
    method.attach(body)
    expected = theirs(StableDiffusionXLPipeline, body)
    torch.testing.assert_close(ours(method, batch()), expected, atol=1e-4, rtol=0)
    other = {"original_size": (200, 300), "crops_coords_top_left": (10, 20), "target_size": SIZE}
    sizes = torch.tensor([[200.0, 300.0, 10.0, 20.0, *SIZE]] * 2)
    expected_too = theirs(StableDiffusionXLPipeline, body, **other)
    torch.testing.assert_close(ours(method, batch(sizes=sizes)), expected_too, atol=1e-4, rtol=0)
    assert (expected - expected_too).abs().max() > 1e-3


def test_controlnet_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    body = backbone()
    method = awake(ControlNet(), body)
    save_method(tmp_path / "method", method, body)
    controlnet, hint = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet"), drawing()
    expected = theirs(StableDiffusionXLControlNetPipeline, body, controlnet=controlnet, image=hint)
    torch.testing.assert_close(ours(method, batch(hint)), expected, atol=1e-4, rtol=0)
    assert (expected - theirs(StableDiffusionXLPipeline, body)).abs().max() > 1e-2


def test_union_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    """diffusers lets the images of a batch influence one another, so one at a time."""
    body = backbone()
    method = awake(ControlNetUnion(kinds=8, mode=3), body)
    save_method(tmp_path / "method", method, body)
    again = load_method(tmp_path / "method", backbone())
    controlnet, hint = ControlNetUnionModel.from_pretrained(tmp_path / "method" / "controlnet"), drawing()
    found = ours(again, batch(hint))
    for i in range(2):
        row = slice(i, i + 1)
        drawn = {"controlnet": controlnet, "control_image": [hint[row]], "control_mode": [3]}
        expected = theirs(StableDiffusionXLControlNetUnionPipeline, body, row, **drawn)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)
        assert (expected - theirs(StableDiffusionXLPipeline, body, row)).abs().max() > 1e-2


def test_t2i_adapter_equals_diffusers_and_loads_there(tmp_path: Path) -> None:
    body = backbone()
    method = awake(T2IAdapter(strength=0.7), body)
    save_method(tmp_path / "method", method, body)
    adapter, hint = DiffusersT2IAdapter.from_pretrained(tmp_path / "method" / "t2i_adapter"), drawing()
    assert adapter.config.adapter_type == "full_adapter_xl" and adapter.config.downscale_factor == 16
    drawn = {"adapter": adapter, "image": hint, "adapter_conditioning_scale": 0.7}
    expected = theirs(StableDiffusionXLAdapterPipeline, body, **drawn)
    torch.testing.assert_close(ours(method, batch(hint)), expected, atol=1e-4, rtol=0)
    assert (expected - theirs(StableDiffusionXLPipeline, body)).abs().max() > 1e-2


# Reading.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sdxl/`` in diffusers' layout and ``sdxl.safetensors``; nothing here is changed by a test."""
    folder = tmp_path_factory.mktemp("sdxl")
    sdxl_parts().save(folder / "sdxl")
    write_safetensors(folder / "sdxl.safetensors", original_sdxl())
    return folder


@torch.no_grad()
def test_original_files_are_the_same_model(place: Path, tmp_path: Path) -> None:
    made, noisy, times = backbone(whole=True), torch.randn(2, 4, 8, 12), torch.tensor([250, 900])
    torch.save({"state_dict": original_sdxl()}, tmp_path / "sdxl.ckpt")
    expected, text = made.predict(noisy, times, made.encode_text(PROMPTS), Injection()), made.encode_text(PROMPTS)
    image = torch.rand(1, 3, 64, 64)
    for source in (place / "sdxl.safetensors", tmp_path / "sdxl.ckpt"):
        read = StableDiffusionXL(source)
        assert read.geometry == made.geometry == XL and read.usual_size == (1024, 1024)
        found = read.encode_text(PROMPTS)
        torch.testing.assert_close(found.tokens, text.tokens)
        torch.testing.assert_close(found.pooled, text.pooled)
        torch.testing.assert_close(read.predict(noisy, times, found, Injection()), expected)
        torch.testing.assert_close(read.to_latents(image), made.to_latents(image))


@torch.no_grad()
def test_a_folder_is_the_same_model(place: Path) -> None:
    made, read = backbone(), StableDiffusionXL(place / "sdxl")
    noisy, times = torch.randn(1, 4, 8, 12), torch.tensor([9])
    text = read.encode_text(PROMPTS[:1])
    assert read.geometry == XL and torch.equal(text.tokens, made.encode_text(PROMPTS[:1]).tokens)
    assert torch.equal(read.predict(noisy, times, text, Injection()), made.predict(noisy, times, text, Injection()))


def test_an_empty_prompt_is_zeros_where_the_pipeline_says_so(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "sdxl", tmp_path / "sdxl"))
    (folder / "model_index.json").write_text('{"force_zeros_for_empty_prompt": false}')
    says, asked = StableDiffusionXL(folder), StableDiffusionXL(folder, force_zeros_for_empty_prompt=True)
    assert not says.zeros and asked.zeros and says.encoding_key("text") != asked.encoding_key("text")
    assert says.weights.facts != asked.weights.facts
    for body in (says, asked):
        text = body.encode_text(["", "a dancer"])
        assert text.tokens[1].any() and text.pooled is not None and text.pooled[1].any()
        assert bool(text.tokens[0].any()) == bool(text.pooled[0].any()) == (not body.zeros)
    arguments = says.save_source(tmp_path / "copy")
    again = StableDiffusionXL(**{**arguments, "path": tmp_path / "copy"})
    assert again.weights == says.weights and not again.zeros


@torch.no_grad()
def test_long_prompts_are_encoded_in_chunks_with_the_pooled_text_of_the_first() -> None:
    body, long = backbone(), " ".join(f"w{i}" for i in range(60))
    chunks = body.chunks([long, ""])
    text, cut = body.encode_text([long, "", "a dancer"], chunks), body.encode_text([long, "", "a dancer"])
    assert chunks > 1 and text.tokens.shape == (3, 16 * chunks, XL.text_dim)
    torch.testing.assert_close(text.tokens[:, :16], cut.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(text.pooled, cut.pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["sdxl", "sdxl.safetensors"])
def test_models_given_for_one_another_are_named_before_weights_are_read(
    place: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posegen.backbones.loading.single_file.read_tensors", pytest.fail)
    monkeypatch.setattr("posegen.backbones.loading.diffusers_folder.read_model", pytest.fail)
    with pytest.raises(
        WeightsError, match=r"a Stable Diffusion XL; .* a Stable Diffusion 1 or 2. Use backbone=sdxl for"
    ):
        StableDiffusion(place / form)
    old = tmp_path / form
    if form == "sdxl":
        parts_of(SD1).save(old)
    else:
        write_safetensors(old, original_of(parts_of(SD1), SD1))
    said = (
        r"of a Stable Diffusion 1 or 2; this backbone is a Stable Diffusion XL. Use backbone=sd15 or backbone=sd21 for"
    )
    with pytest.raises(WeightsError, match=said):
        StableDiffusionXL(old)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (
            "label_emb.0.0.weight",
            r"label_emb\.0\.0\.weight is missing; the file is incomplete or no Stable Diffusion XL",
        ),
        ("1.model.text_projection", r"text_projection is missing"),
        ("1.model.ln_final.bias", r"the text tower .*1 missing"),
        ("label_emb.0.2.bias", r"the U-Net .*1 missing"),
    ],
)
def test_incomplete_files_are_one_clear_error(tmp_path: Path, gone: str, said: str) -> None:
    state = {key: value for key, value in original_sdxl().items() if not key.endswith(gone)}
    with pytest.raises(WeightsError, match=said):
        StableDiffusionXL(write_safetensors(tmp_path / "sdxl.safetensors", state))


def test_parts_of_different_models_are_refused(place: Path) -> None:
    parts = copy.deepcopy(sdxl_parts())
    parts.network = unet_of(XL, pooled=POOLED + 1)
    with pytest.raises(WeightsError, match="reads 97 pooled values of text, the second text tower makes 96"):
        StableDiffusionXL.from_parts(parts)


# Methods.

METHODS = ("controlnet", "controlnet_union", "t2i_adapter", "humansd", "stable_pose", "grpose", "none")


@pytest.mark.parametrize("name", METHODS)
def test_every_unet_method_trains_and_samples(name: str) -> None:
    """One training step from a sample's own sizes, with gradients in all that trains, and an image."""
    node = OmegaConf.load(conf_dir() / "adapter" / f"{name}.yaml")
    cls, body = get_class(node._target_), backbone()
    method = cls()
    method.attach(body)
    sizes = torch.tensor([[300.0, 200.0, 5.0, 0.0, *SIZE], [64.0, 96.0, 0.0, 0.0, *SIZE]])
    low, high = method.hint.range if method.hint else (0.0, 1.0)
    given = batch(low + (high - low) * drawing(), sizes=sizes)
    state = method.drop(method.encode(given), torch.tensor([True, False]))
    assert torch.equal(state.text.sizes, sizes) and torch.equal(state.null_text.sizes, sizes)
    assert state.text.pooled is not None and state.text.pooled[0].any() and not state.text.pooled[1].any()
    clean, noise, times = given.randn("clean", (4, 8, 12)), given.randn("noise", (4, 8, 12)), torch.tensor([100, 700])
    noisy = body.process.add_noise(clean, noise, times)
    prediction = body.predict(noisy, times, state.text, method.inject(state, noisy, times))
    taken = Step(prediction, body.process.target(clean, noise, times), noisy, clean, noise, times)
    trained = [p for p in (*method.parameters(), *body.parameters()) if p.requires_grad]
    if trained:
        method.loss(taken, state, given)["loss"].backward()
        assert all(p.grad is not None for p in trained) and any(bool(p.grad.any()) for p in trained)
    assert bool(trained) == method.trains
    images = method.generate(replace(given, sizes=None), Sampler(steps=2, guidance=3.0))
    assert images.shape == (2, 3, *SIZE) and bool(images.isfinite().all())


def test_a_method_for_transformers_of_one_layer_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="DNAF needs attention .*StableDiffusionXL has"):
        DNAF().attach(backbone())


def test_a_drawing_that_the_halved_grid_does_not_divide_is_named() -> None:
    method = awake(T2IAdapter(), backbone())
    given = replace(batch(torch.rand(2, 3, 72, 96)), size=(72, 96))
    with pytest.raises(ValueError, match=r"data.size \(72, 96\): .*multiples of 16, for instance \[80, 96\]"):
        method.encode(given)
    assert ours(method, replace(batch(torch.rand(2, 3, 80, 112)), size=(80, 112))).shape == (2, 4, 10, 14)
    with pytest.raises(ValueError, match=r"adapter.form=xl is for U-Nets of 3 levels, this one has 2"):
        T2IAdapter(form="xl").attach(StableDiffusion.from_parts(parts_of(SD1)))


def test_training_knows_the_sizes_of_stored_pictures_and_evaluation_takes_them_as_whole(
    place: Path, tmp_path: Path
) -> None:
    """With cached latents and texts, too; the longer side is cut after scaling."""
    sizes = [(80, 60), (50, 110), (64, 64), (70, 90)]
    for i, (height, width) in enumerate(sizes):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (width, height), (40 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    words = ["backbone=sdxl", f"backbone.path={place / 'sdxl'}", "adapter=controlnet", "data=folder", "data.size=64"]
    words += [f"data.root={tmp_path / 'pictures'}", "data.poses=null", "data.prompts=null", "data.shares=[1.0,0.0,0.0]"]
    with configured(
        "train", *words, f"paths.cache={tmp_path / 'cache'}", "progress=none", "trainer.precision=32-true"
    ) as cfg:
        components = Components(cfg)
        task, data = AdapterTask(components), components.data("train")
        needs = needs_of(task, components)
        [given] = training_loader(data, needs, EpochBatches(len(data), 4, seed=0))
        state = components.adapter.encode(given)
        step = task.step(given, state.text, lambda noisy, times: components.adapter.inject(state, noisy, times))
        evaluated = batch_of(components, components.adapter, range(4), "train")
    assert given.latents is not None and given.images is None and given.text is not None and given.sizes is not None
    assert torch.equal(state.text.sizes, given.sizes) and bool(step.prediction.isfinite().all())
    found = dict(zip(given.ids, given.sizes.tolist(), strict=True))
    cuts = {(80, 60): [10, 0], (50, 110): [0, 38], (64, 64): [0, 0], (70, 90): [0, 9]}
    expected = {size: [*size, *cut, 64, 64] for size, cut in cuts.items()}
    assert sorted(found.values()) == sorted(expected.values())
    assert evaluated.sizes is None and components.adapter.encode(evaluated).text.sizes is None


def test_batches_hold_sizes_where_they_are_asked_for_and_all_known() -> None:
    class Pictures(PoseData):
        name, split, size, identity = "pictures", "train", (8, 8), {}

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:
            known = (10, 20 + index, 0, index, 8, 8) if index < 2 else None
            nobody = np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32)
            return Sample(str(index), "", *nobody, None, self.size, sizes=known)

    asked, data = Needs(frozenset({"sizes"})), Pictures()
    assert collate(data, (0, 1), asked, 0).sizes.tolist() == [[10, 20, 0, 0, 8, 8], [10, 21, 0, 1, 8, 8]]
    assert collate(data, (1, 2), asked, 0).sizes is None and collate(data, (0, 1), Needs(), 0).sizes is None


# Official weights.


def converted(adapter: str, place: Path, source: Path, target: Path, **settings: object) -> None:
    """As ``posegen convert`` does it."""
    method, body = (OmegaConf.load(conf_dir() / f"{file}.yaml") for file in (f"adapter/{adapter}", "backbone/sdxl"))
    method.update(settings)
    body.path = str(place)
    del body["official"]  # addresses, which composition takes out
    convert(method, body, str(source), str(target))


@pytest.mark.parametrize("form", ["diffusers", "original", "bare"])
@torch.no_grad()
def test_official_controlnets_load_in_diffusers_with_the_same_residuals(place: Path, tmp_path: Path, form: str) -> None:
    method = awake(ControlNet(), backbone())
    network = method.branch.network
    if form == "diffusers":
        network.save_pretrained(source := tmp_path / "official")
    else:
        prefix = ldm.CONTROL if form == "original" else ""
        tensors = {
            key: value.clone() for key, value in named(network.state_dict(), ldm.control_table(XL), prefix).items()
        }
        assert f"{prefix}label_emb.0.2.bias" in tensors
        source = write_safetensors(tmp_path / "official.safetensors", tensors)
    converted("controlnet", place / "sdxl", source, tmp_path / "method")
    again = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet")
    noisy, times, hint = torch.randn(2, 4, 8, 12), torch.tensor([250, 900]), drawing()
    text = method.backbone.encode_text(PROMPTS)
    down, mid = again(noisy, times, text.tokens, hint, added_cond_kwargs=text.beside(noisy, 8), return_dict=False)
    found = method.branch(noisy, times, text, method.branch.hint_features(hint))
    for one, other in zip(found.residuals, (*down, mid), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_official_unions_and_t2i_adapters_are_converted(place: Path, tmp_path: Path) -> None:
    union, body = ControlNetUnion(kinds=8), backbone()
    awake(union, body).branch.network.save_pretrained(tmp_path / "union")
    with pytest.raises(UserError, match="knows 8 kinds of pictures, not 6: adapter.kinds=8"):
        converted("controlnet_union", place / "sdxl", tmp_path / "union", tmp_path / "method")
    converted("controlnet_union", place / "sdxl", tmp_path / "union", tmp_path / "method", kinds=8)
    expected, hint = ours(union, batch(drawing())), batch(drawing())
    read = StableDiffusionXL(place / "sdxl", id="sdxl")
    torch.testing.assert_close(ours(load_method(tmp_path / "method", read), hint), expected)
    adapter = awake(T2IAdapter(), body)
    adapter.network.save_pretrained(tmp_path / "t2i")
    original = named(ldm.below(adapter.network.state_dict(), "adapter."), original_names(4, 2), "")
    write_safetensors(tmp_path / "t2i.safetensors", {key: value.clone() for key, value in original.items()})
    for source in ("t2i", "t2i.safetensors"):
        converted("t2i_adapter", place / "sdxl", tmp_path / source, tmp_path / f"of {source}")
        again = load_method(tmp_path / f"of {source}", StableDiffusionXL(place / "sdxl", id="sdxl"))
        torch.testing.assert_close(ours(again, hint), ours(adapter, hint))


@pytest.mark.parametrize("form", ["sdxl", "sdxl.safetensors"])
def test_a_controlnet_of_another_width_is_one_sentence_before_the_backbone_is_read(
    place: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says which backbone it belongs to."""
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    source = write_safetensors(tmp_path / "official.safetensors", {key: torch.zeros(64, 768)})
    monkeypatch.setattr("posegen.backbones.loading.diffusers_folder.read_model", pytest.fail)
    monkeypatch.setattr("posegen.backbones.loading.single_file.read_tensors", pytest.fail)
    said = "reads text of width 768, the backbone .* of 192; use backbone=sd15. Nothing was loaded or written"
    with pytest.raises(UserError, match=said):
        converted("controlnet", place / form, source, tmp_path / "method")


# Full size, without memory.

#: ``unet/config.json`` of stabilityai/stable-diffusion-xl-base-1.0, where it differs from the class's defaults.
PUBLISHED = {
    "sample_size": 128, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def published() -> StableDiffusionXL:
    with torch.device("meta"):
        return StableDiffusionXL(None, initialise="random", size="sdxl")


def test_the_published_size_is_that_of_the_published_configuration(published: StableDiffusionXL) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED)
    assert shapes(published.unet) == shapes(unet) and Geometry.from_diffusers(unet.config) == published.geometry
    counts = {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
    for name, count in {**counts, "autoencoder": 83_653_863}.items():
        assert sum(p.numel() for p in published.get_submodule(name).parameters()) == count
    original = named(unet.state_dict(), ldm.unet_table(published.geometry), "")
    assert len(original) == 1680 and original["label_emb.0.0.weight"].shape == (1280, 2816)
    assert unet_geometry(original, old=False) == published.geometry == SDXL.unet
    back = ldm.renamed(original, ldm.unet_table(published.geometry))
    assert not back.unknown and {key: value.shape for key, value in back.tensors.items()} == shapes(unet)


def test_official_methods_at_full_size_have_the_places_of_the_published_classes(published: StableDiffusionXL) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED)
        plain = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        sizes = {key: value for key, value in plain.config.items() if key != "mid_block_type"}
        wide = {"num_control_type": 8, "conditioning_embedding_out_channels": (16, 32, 96, 256)}
        union = ControlNetUnionModel.from_config({**sizes, **wide})
        channels = [320, 640, 1280, 1280]
        adapter = DiffusersT2IAdapter(3, channels, 2, downscale_factor=16, adapter_type="full_adapter_xl")
        cases = (ControlNet(), plain), (ControlNetUnion(kinds=8), union), (T2IAdapter(), adapter)
        for method, official in cases:
            method.attach(published)
            converted = {key: value.shape for key, value in method.convert(official.state_dict()).items()}
            assert converted == {f"adapter.{key}": shape for key, shape in shapes(method).items()}
    table = ldm.control_table(published.geometry)
    original = ControlNet.convert(cases[0][0], named(plain.state_dict(), table, ldm.CONTROL))
    assert original.keys() == {f"adapter.{key}" for key in shapes(cases[0][0])}


# The pipeline.


def test_the_pipeline_agrees_with_diffusers_and_is_saved(place: Path, tmp_path: Path) -> None:
    body = StableDiffusionXL(place / "sdxl", id="mine")
    method = awake(ControlNet(), body)
    save_method(tmp_path / "method", method, body)
    controlnet, hint = ControlNetModel.from_pretrained(tmp_path / "method" / "controlnet"), drawing()
    black = np.zeros((*SIZE, 3), np.uint8)
    black[20:40, 30:60] = (255, 0, 0)  # mostly black, so it is a drawn skeleton
    hint = torch.from_numpy(black).permute(2, 0, 1)[None].float() / 255
    framed = {"original_size": (200, 300), "crops_coords_top_left": (10, 20), "target_size": (64, 64), "clip_skip": 1}
    row = slice(1)
    pipe = PoseGuidedPipeline(method)
    pipe.save_pretrained(tmp_path / "saved")
    read = PoseGuidedPipeline.from_pretrained(tmp_path / "saved")
    for ours_too in (pipe, read):
        ours_too.set_progress_bar_config(disable=True)
    noise = batch(rows=row).randn("latents", body.latent_shape(SIZE))
    usual = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": noise, "output_type": "latent"}
    drawn = {"image": hint, "controlnet": controlnet}
    for more in ({}, framed):
        expected = theirs(StableDiffusionXLControlNetPipeline, body, row, **drawn, **more)
        for each in (pipe, read):
            found = each(PROMPTS[0], Image.fromarray(black), **usual, **more).images
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match=r"target_size is \(1, 2, 3\); expected two numbers"):
        pipe(PROMPTS[0], target_size=(1, 2, 3))
    with pytest.raises(UserError, match="load_lora_weights reads LoRA of Stable Diffusion 1 and 2, .*XL"):
        pipe.load_lora_weights({})


def test_other_backbones_refuse_sizes() -> None:
    method = NoAdapter()
    method.attach(StableDiffusion.from_parts(parts_of(SD1)))
    with pytest.raises(UserError, match="original_size is given; backbone untrained reads no sizes"):
        PoseGuidedPipeline(method)("a dancer", original_size=(64, 64))
