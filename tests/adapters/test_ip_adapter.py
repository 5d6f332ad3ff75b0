"""IP-Adapter: official files, what trains and is dropped, pictures, and a frozen image encoder; what it computes is
compared in `tests.parity`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from posegen.adapters.ip_adapter import LAYER_NAMES, IPAdapter, clip_pixels
from posegen.backbones.base import Geometry, Injection
from posegen.backbones.loading.single_file import unet_of
from posegen.data.base import to_tensor
from posegen.errors import UserError
from posegen.io.weights import WeightsError, read_tensors
from posegen.parity.build import batch_of_size
from posegen.runner.method_folder import load_method, save_method
from posegen.runner.official_weights import accounted
from tests.adapters.cases import SD1, backbone_of, reference, scrambled, sized

SD15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
VIT_H = CLIPVisionConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
    image_size=224, projection_dim=1024, hidden_act="gelu",
)  # fmt: skip


def attached(*given: Any, **settings: Any) -> IPAdapter:
    torch.manual_seed(0)
    adapter = IPAdapter(*given, **settings)
    adapter.attach(backbone_of(SD1))
    scrambled(adapter)
    return adapter


def official(adapter: Any) -> dict[str, Tensor]:
    """The weights under the names of the published files."""
    found: dict[str, Tensor] = {}
    back = {ours: (theirs, i) for theirs, names in LAYER_NAMES.items() for i, ours in enumerate(names)}
    for key, value in adapter.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "ip_adapter":
            number, _, ending = rest.partition(".")
            found[f"ip_adapter.{2 * int(number) + 1}.{ending}"] = value
        elif part == "image_proj":
            head, _, layer = rest.partition("layers.")
            if not head and layer:
                index, _, name = layer.partition(".")
                ours, (theirs, place) = next((o, t) for o, t in back.items() if name.startswith(o))
                name = f"image_proj.layers.{index}.{theirs}{name.removeprefix(ours)}"
                found[name] = torch.cat([found[name], value]) if place else value
            else:
                found[f"image_proj.{rest.replace('image_embeds.', 'proj.')}"] = value
    return found


def batch(pictures: int = 1, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    source = torch.rand(2, pictures, 3, 64, 64, generator=draw) * 2 - 1
    return batch_of_size(2, (64, 64), source=source.squeeze(1))


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_full_size_keys(variant: Any) -> None:
    facts, method = json.loads(reference("ip_adapter_keys.json").read_text()), IPAdapter(variant, vision="elsewhere")
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(VIT_H)
        method.image_encoder = lambda geometry: encoder  # type: ignore[method-assign]
        backbone = sized(SD15, unet_of(SD15))
        method.attach(backbone)
    assert sum(p.numel() for p in encoder.parameters()) == facts["image_encoder"]["parameters"]
    listed = facts["variants"][variant]
    files = {key: torch.empty(shape, device="meta") for key, shape in listed["keys"].items()}
    _, account = accounted(method, backbone, files)
    assert not account.wrong and sum(p.numel() for p in method.parameters()) == listed["parameters"]["total"]
    numbered = {str(2 * i + 1): name for i, name in enumerate(method.names)}
    assert numbered == facts["attention_order"]


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_published_layouts_are_read(variant: Any, tmp_path: Path) -> None:
    method = attached(variant)
    files = official(method)
    save_file(files, tmp_path / "ip.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in files.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = value
    torch.save(parts, tmp_path / "ip.bin")
    trainer = {key.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): value
               for key, value in files.items()}  # fmt: skip
    torch.save({**trainer, "unet.conv_in.weight": torch.zeros(1)}, tmp_path / "whole.bin")
    for file in ("ip.safetensors", "ip.bin", "whole.bin"):
        placed, account = accounted(method, method.backbone, read_tensors(tmp_path / file))
        assert not account.wrong and len(account.ignored) == (file == "whole.bin")
        assert all(torch.equal(placed[f"adapter.{key}"], value) for key, value in method.state_dict().items())
    _, account = accounted(method, method.backbone, {**files, "ip_adapter.2.to_k_ip.weight": torch.zeros(1)})
    assert account.wrong["unexpected"] == ["ip_adapter.2.to_k_ip.weight"]


def test_keys_and_values_start_as_those_of_the_text_and_scale_0_is_the_backbone() -> None:
    adapter, backbone = IPAdapter(), backbone_of(SD1)
    adapter.attach(backbone)
    layers = backbone.cross_attentions()
    for own, layer in zip(adapter.ip_adapter, layers.values(), strict=True):
        assert torch.equal(own["to_k_ip"].weight, layer.to_k.weight)
        assert torch.equal(own["to_v_ip"].weight, layer.to_v.weight)
    state, latents = adapter.encode(batch()), torch.randn(2, 4, 8, 8)
    given = latents, torch.tensor([10, 900]), state.text
    plain, full = backbone.predict(*given, Injection()), backbone.predict(*given, adapter.inject(state, *given[:2]))
    assert not torch.allclose(plain, full, atol=1e-3)
    adapter.scale = 0.0
    assert torch.equal(backbone.predict(*given, adapter.inject(state, *given[:2])), plain)


def test_dropping_has_the_published_shares_and_takes_the_tokens_of_no_picture() -> None:
    adapter = attached(drop_image=0.2, drop_text=0.3, drop_both=0.1)
    state = adapter.encode(batch())
    state = replace(state, text=adapter.backbone.encode_text(["person", "person"]))
    for chance, text, picture in ((0.1, True, False), (0.3, False, True), (0.55, False, False), (0.7, True, True)):
        left = adapter.drop(state.having(chance=torch.full((2,), chance)), torch.tensor([True, False]))
        assert torch.equal(left["tokens"], state["tokens"] if picture else state["no_picture"])
        assert torch.equal(left.text.tokens[0], (state.text if text else state.null_text).tokens[0])
        assert torch.equal(left.text.tokens[1], state.null_text.tokens[1])


def test_several_pictures_of_a_person_are_tokens_one_after_another() -> None:
    adapter, pictures = attached(), batch(2)
    both, first = adapter.encode(pictures), adapter.encode(replace(pictures, source=pictures.source[:, 0]))
    assert both["tokens"].shape[1] == both["no_picture"].shape[1] == 2 * first["tokens"].shape[1]
    assert torch.allclose(both["tokens"][:, :4], first["tokens"], atol=1e-5)


def test_training_without_pairs_reads_the_image_and_sampling_the_source() -> None:
    adapter, given = attached(picture="image_in_training"), batch()
    other = batch(seed=1).source
    both = replace(given, images=other)
    assert adapter.reads == {"images", "source"} and attached(picture="image").reads == {"images"}
    trained, sampled = adapter.encode(both), adapter.eval().encode(both)
    assert torch.equal(trained["tokens"], adapter.encode(replace(given, source=other))["tokens"])
    assert torch.equal(sampled["tokens"], adapter.encode(given)["tokens"])
    with pytest.raises(ValueError, match="reads a picture of the person, and these samples have none; use data with"):
        adapter.encode(replace(given, source=None))


def test_a_large_backbone_wants_a_released_encoder_which_stays_outside(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too weak for this backbone; name the folder of a CLIPVisionModelWithProj"):
        IPAdapter().image_encoder(SD15)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16))
    encoder.save_pretrained(tmp_path / "encoder")
    adapter = attached("plus", vision=str(tmp_path / "encoder"))
    assert not any(key.startswith("small_encoder") for key in adapter.state_dict())
    assert not any(p.requires_grad for p in adapter.encoder.parameters())
    save_method(tmp_path / "method", adapter, adapter.backbone)
    again = load_method(tmp_path / "method", adapter.backbone)
    assert torch.equal(again.encode(batch())["tokens"], adapter.encode(batch())["tokens"])
    assert adapter.double().encoder.dtype == torch.float64, "it goes where the method goes"
    for broken, said in (("nowhere", "is no model folder"), ("encoder", "cannot be read as a CLIP image encoder")):
        (tmp_path / "encoder" / "model.safetensors").write_bytes(b"no weights")
        with pytest.raises(WeightsError, match=said):
            attached(vision=str(tmp_path / broken))


@pytest.mark.parametrize("size", [(64, 64), (90, 131), (140, 71)])
def test_pictures_are_prepared_as_clip_does(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    form = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    wanted = CLIPImageProcessor(**form)(Image.fromarray(picture), return_tensors="pt").pixel_values
    made = clip_pixels(to_tensor(picture)[None], 56)
    assert made.shape == wanted.shape and (made - wanted).abs().mean() < 0.005 and (made - wanted).abs().max() < 0.5
    assert clip_pixels(to_tensor(picture)[None], 56, crop=False).shape == wanted.shape
