"""SP-Ctrl: its maps, words, heatmaps and files; what it computes is compared in `tests.parity`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from posegen.adapters.spctrl import (
    ANIMAL_LIMBS,
    MAP_LIMBS,
    WORDS,
    IndexMap,
    JointColours,
    SPCtrl,
    attention_loss,
    drawn_indices,
    joint_heatmaps,
)
from posegen.backbones.base import Geometry, Step
from posegen.backbones.blocks.encoder_copy import EncoderCopy
from posegen.backbones.loading.single_file import unet_of
from posegen.cli import main
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.components import Components
from posegen.runner.generate import batch_of
from posegen.runner.method_folder import load_method
from tests.adapters.cases import backbone_of, reference, scrambled
from tests.tiny import configured
from tests.train.test_train import Stop, equal, interrupt, trained

SMALL = Geometry(4, 8, (32, 32, 32), (True, True, True), 1, (2, 2, 2), 32)
SIZES: dict[str, Any] = {"embedding": 8, "hidden": 16}
SIDE, TABLE = 64, "adapter.words.embeddings.text_encoder"


def people(*visible: int, x: float = 20, y: float = 30) -> np.ndarray:
    """One person with these joints."""
    pose = np.zeros((1, 17, 3), np.float32)
    for i in visible:
        pose[0, i] = x + i, y + i / 2, 2
    return pose


def batch(*poses: np.ndarray, prompts: list[str] | None = None, size: int = SIDE, **fields: Any) -> PoseBatch:
    drawing, ids = IndexMap(), [f"image {i}" for i in range(len(poses))]
    hint = torch.from_numpy(np.stack([drawing(pose, (size, size)) for pose in poses]))
    return PoseBatch(ids, prompts or ["a person"] * len(ids), list(poses), (size, size), hint=hint, **fields)


def attached(**settings: Any) -> SPCtrl:
    torch.manual_seed(0)
    faithful = settings.pop("faithful", False)
    adapter = SPCtrl(**{**SIZES, **settings})
    adapter.faithful = faithful
    adapter.attach(backbone_of(SMALL))
    return adapter


@pytest.fixture(scope="module")
def own() -> SPCtrl:
    adapter = attached()
    scrambled(adapter)
    return adapter


# Names and pictures.


def test_full_size_keys() -> None:
    facts = json.loads(reference("spctrl_keys.json").read_text())
    sd15 = Geometry(4, 8, (320, 640, 1280, 1280), (True, True, True, False), 2, (8,) * 4, 768)
    adapter = SPCtrl()
    with torch.device("meta"):
        adapter.palette = JointColours(768, 256, 3, "one", False, 17)
        adapter.branch = EncoderCopy(unet_of(sd15), sd15)
        adapter.words = torch.nn.Module()
        adapter.words.embeddings = torch.nn.ParameterDict({"text_encoder": torch.empty(17, 768)})
        files = {**facts["controlnet"], **facts["learned_embeds.bin"]}
        converted = adapter.convert({key: torch.empty(shape) for key, shape in files.items()})
    shapes = {f"adapter.{key}": value.shape for key, value in adapter.state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == shapes
    trains = sum(p.numel() for p in adapter.parameters())
    counts = facts["parameters"]
    words = counts["17 learned token embeddings (learned_embeds.bin)"]
    assert trains == counts["controlnet trainable"] + words == 361_873_043 + 13_056


@pytest.mark.parametrize("name", ["one_512", "three_people", "edge_of_picture", "released_17_values", "ap10k_links"])
def test_drawn_indices_are_the_official_ones(name: str) -> None:
    facts = json.loads((reference("spctrl_draw") / "inputs.json").read_text())["cases"][name]
    joints = [[[*(place or (0, 0)), float(place is not None)] for place in person] for person in facts["people"]]
    limbs = [(a - 1, b - 1) for a, b in facts["limbs"]]
    assert tuple(limbs) == (ANIMAL_LIMBS if name == "ap10k_links" else MAP_LIMBS)
    drawn = drawn_indices(np.array(joints), tuple(facts["size"]), limbs[: 17 if "17 limb" in facts["function"] else 19])
    assert np.array_equal(drawn, cv2.imread(str(reference("spctrl_draw") / f"{name}.png"), cv2.IMREAD_UNCHANGED))


def test_a_small_map_holds_the_same_indices_and_no_mixtures() -> None:
    pose = np.zeros((1, 17, 3), np.float32)
    pose[0, [5, 7, 9]] = (100, 100, 2), (300, 200, 2), (400, 420, 2)
    whole, small = IndexMap()(pose, (512, 512)), IndexMap()(pose * [1 / 8, 1 / 8, 1], (64, 64))
    assert np.array_equal(whole[0], drawn_indices(pose, (512, 512), MAP_LIMBS))
    assert small.shape == (1, 64, 64) and set(np.unique(small)) == set(np.unique(whole)) == {0, 6, 8, 10, 59, 61}
    assert (small > 0).mean() < 4 * (whole > 0).mean(), "widths follow the canvas"


def test_limbs_without_a_colour_are_black_and_faithful_means_take_the_links_of_animals() -> None:
    torch.manual_seed(0)
    indices = torch.tensor([0, 3, 20, 51, 67, 68, 69]).float().view(1, 1, 1, -1)
    for faithful in (False, True):
        palette = JointColours(8, 16, 3, "one", False, 17 if faithful else 19)
        painted = palette.painted(indices, palette(), faithful)[0, :, 0].T
        assert torch.equal(painted[1], palette()[2]) and not painted[[0, 2]].any() and bool((painted[3:5] == 1).all())
        assert bool((painted[5:] == (0 if faithful else 1)).all())
    for faithful, (a, b) in ((False, MAP_LIMBS[0]), (True, ANIMAL_LIMBS[0])):
        palette = JointColours(8, 16, 3, "interp_kpt", False, 19)
        painted = palette.painted(indices, palette(), faithful)[0, :, 0].T
        assert torch.allclose(painted[3], palette()[[a, b]].mean(0)) and bool(painted[6].any()) is not faithful


# Words.


def test_words_are_known_within_a_call_alone(own: SPCtrl) -> None:
    backbone = own.backbone
    plain, size = backbone.encode_text(["person", "person person"]), len(backbone.tokenizer)
    text, places = own.words(["person <left-eye> person <nose>", "person"])
    assert places[0].tolist()[:6] == [-1, -1, 1, -1, 0, -1] and bool((places[1] == -1).all())
    assert torch.allclose(text.tokens[1], plain.tokens[0], atol=1e-6)
    assert len(backbone.tokenizer) == size and torch.equal(backbone.encode_text(["person"]).tokens[0], plain.tokens[0])
    gradient = torch.autograd.grad(text.tokens[0, 4].square().sum(), own.words.embeddings["text_encoder"])[0]
    assert {i for i in range(17) if gradient[i].any()} == {0, 1}, "the text tower reads what is left of a token"
    both, found = own.words(["person <nose>", "person " * 60 + "<nose>"], 2 * backbone.max_length)
    assert both.tokens.shape[1] == found.shape[1] == 2 * backbone.max_length and 0 in found[1, backbone.max_length :]


def test_words_start_as_the_last_token_of_their_names() -> None:
    adapter = attached()
    table, tokenizer = adapter.backbone.text_encoder.get_input_embeddings().weight, adapter.backbone.tokenizer
    assert list(WORDS)[9:11] == ["<left-wrist>", "<right-wrist>"] and WORDS["<left-wrist>"] == "wrist"
    assert torch.equal(adapter.words.embeddings["text_encoder"][9], table[tokenizer("wrist").input_ids[-2]])


def test_prompts_name_the_joints_that_anybody_shows() -> None:
    adapter, faithful = attached(), attached(faithful=True)
    two = np.concatenate([people(2), people(0)])
    assert adapter.naming("a cat", two, True) == adapter.naming("a cat", two, False) == "a cat <nose> <right-eye>"
    assert faithful.naming("a cat", two, True) == "a cat. <<nose>, <right-eye>>"
    assert faithful.naming("a cat", two, False) == "a cat. <nose>, <right-eye>"


def test_in_sampling_all_joints_are_named_and_in_training_most_images_name_them(own: SPCtrl) -> None:
    poses = [people(0, 5)] * 39 + [np.zeros((0, 17, 3), np.float32)]
    with torch.no_grad():
        sampled = own.eval().encode(batch(*poses))
        named = (sampled["words"] >= 0).any(1)
        assert bool(named[:39].all()) and not named[39]
    state = own.train().encode(batch(*poses))
    shares = (state["words"] >= 0).any(1)[:39].float().mean().item()
    assert 0.6 < shares < 0.95
    dropped = own.drop(state, torch.arange(40) % 2 == 0)
    assert bool((dropped["words"][1::2] == -1).all()) and torch.equal(dropped["words"][::2], state["words"][::2])


def test_dropout_of_colours_is_a_function_of_the_image(own: SPCtrl) -> None:
    poses = people(0, 5), people(3, 9), people(1)
    own.train()
    together, again, alone = (own.encode(batch(*each))["hint"] for each in (poses, poses, poses[:1]))
    other = own.encode(replace(batch(*poses), visit=1))["hint"]
    with torch.no_grad():
        sampled = own.eval().encode(batch(*poses))["hint"]
    assert torch.equal(together, again) and torch.allclose(together[:1], alone, atol=1e-6)
    assert not torch.allclose(together, other, atol=1e-4) and not torch.allclose(together, sampled, atol=1e-4)


# The loss.


def test_heatmaps_are_maxima_over_people_and_officially_sums_in_8_bits() -> None:
    two = np.concatenate([people(0), people(0)])
    right, official = (joint_heatmaps([two, people()], (SIDE, SIDE), faithful) for faithful in (False, True))
    assert right.shape == official.shape == (2, 17, 128, 128)
    assert right.max().item() == pytest.approx(math.exp(-0.5 / 8)) and not right[:, 1:].any() and not right[1].any()
    row, column = divmod(int(right[0, 0].argmax()), 128)
    assert abs(column - (20.5 * 2 - 0.5)) <= 0.5 and abs(row - (30.5 * 2 - 0.5)) <= 0.5
    assert official.max() <= 255 and official[0, 0, row, column] == int(510 * right[0, 0, row, column]) - 256
    (alone,) = joint_heatmaps([people(0)], (SIDE, SIDE), True)
    radius = math.sqrt((alone[0].clamp(0, 1) > 0).sum().item() / math.pi)
    assert radius == pytest.approx(6.6, abs=0.2), "the clamp makes discs of the peaks"


def test_images_outside_of_the_window_count_officially_as_zero() -> None:
    draw = torch.Generator().manual_seed(0)
    maps, heatmaps = [torch.rand(2, 5, 4, 4, generator=draw)], torch.rand(2, 17, 8, 8, generator=draw)
    words, inside = torch.tensor([[-1, 0, 1, -1, -1]] * 2), torch.tensor([True, False])
    first = attention_loss([maps[0][:1]], words[:1], heatmaps[:1], inside[:1])
    assert attention_loss(maps, words, heatmaps, inside, counts_all=False) == pytest.approx(first.item())
    assert attention_loss(maps, words, heatmaps, inside) == pytest.approx(first.item() / 2)
    assert attention_loss(maps, words - 5, heatmaps, inside) == 0, "nobody is named"


@pytest.mark.parametrize("detached", [True, False])
def test_the_loss_on_attention_reaches_keys_and_words_or_all_before_them(detached: bool) -> None:
    adapter = attached(detach_query=detached, attention_weight=1.0)
    scrambled(adapter)
    pose = batch(people(0, 5, 9), people(2, 3))
    state = adapter.train().encode(replace(pose, ids=["c", "d"]))
    assert bool((state["words"] >= 0).any())
    x, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([300, 400])
    adapter.inject(state, x, timesteps)
    zero = torch.zeros(2, 4, 8, 8)
    losses = adapter.loss(Step(zero, zero, x, x, x, timesteps), state, pose)
    assert losses["plain"] == 0 and losses["loss"] == losses["attention"] > 0
    losses["loss"].backward()
    reached = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    keys = {
        name for name, _ in adapter.named_parameters() if "down_blocks.2" in name and name.endswith("attn2.to_k.weight")
    }
    assert keys and (reached == keys | {"words.embeddings.text_encoder"}) is detached and keys < reached
    assert any(name.startswith("palette.") for name in reached) is not detached
    groups = attached(word_lr=0.25).parameter_groups(None)
    assert groups[1]["lr"] == 0.25 and "lr" not in adapter.parameter_groups(None)[1]


# Files, cells, the pipeline.


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="adapter.limbs is 'two'; expected one of one, zero, rand, interp_kpt"):
        SPCtrl(limbs="two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"adapter.window is \[500, 250\]; expected two timesteps in order"):
        SPCtrl(window=(500, 250))


def official(adapter: SPCtrl) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two files of the official program."""
    colours = {f"spatext_embedding.{key}": value for key, value in adapter.palette.state_dict().items()}
    colours["spatext_embedding.skeleton_emb"] = colours["spatext_embedding.skeleton_emb"][:17].clone()
    words = dict(zip(WORDS, adapter.words.embeddings["text_encoder"].detach(), strict=True))
    return {**colours, **adapter.branch.network.state_dict()}, words


def test_official_names_come_back_and_the_words_may_be_missing() -> None:
    adapter = attached(faithful=True)
    scrambled(adapter)
    control, words = official(adapter)
    converted = adapter.convert({**control, **words})
    assert converted.keys() == {f"adapter.{key}" for key in adapter.state_dict()}
    assert all(torch.equal(converted[f"adapter.{key}"], value) for key, value in adapter.state_dict().items())
    assert torch.equal(adapter.convert(control)[TABLE], adapter.words.embeddings["text_encoder"])
    wrong = {"spatext_embedding.invented": torch.zeros(1), "<tail>": torch.zeros(32)}
    with pytest.raises(UnknownKeys, match=r"2 keys that SPCtrl has no place for: <tail>, spatext_embedding.invented"):
        adapter.convert({**control, **wrong})


def test_a_map_of_sixteen_colours_is_another_shape_of_one_convolution() -> None:
    adapter = attached(colours=16)
    network = adapter.branch.network
    assert network.controlnet_cond_embedding.conv_in.weight.shape[1] == network.config.conditioning_channels == 16
    assert adapter.eval().encode(batch(people(0)))["hint"].shape == (1, 32, 8, 8)


def test_a_resumed_training_ends_with_the_same_weights(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["adapter=spctrl", "adapter.embedding=8", "adapter.hidden=16", "budget.ema=0", "budget.steps=4"]
    whole = trained(world, tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        interrupt(patch, after=3)
        with pytest.raises(Stop):
            trained(world, tmp_path / "broken", *settings)
    assert equal(whole, trained(world, tmp_path / "broken", *settings))
    with configured("train", *world, *settings) as cfg:
        start = Components(cfg).adapter.state_dict()
    moved = {key for key, value in start.items() if not torch.equal(value, whole.get(f"method.{key}", value))}
    assert "words.embeddings.text_encoder" in moved and "palette.linear_in.weight" in moved
    assert not {"palette.keypoint_emb", "palette.skeleton_emb"} & moved


def test_two_official_files_become_a_method_folder_and_a_pipeline(
    world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = [word for word in world if word.startswith("backbone.")]
    settings = ["adapter=spctrl", "adapter.embedding=8", "adapter.hidden=16"]
    with configured("train", *world, *settings, "trainer.precision=32-true") as cfg:
        components = Components(cfg)
        components.bare_adapter.faithful = True
        adapter = components.adapter
        scrambled(adapter)
        adapter.palette.skeleton_emb[17:] = 0
        control, words = official(adapter)
        save_file(control, tmp_path / "controlnet.safetensors")
        torch.save(words, tmp_path / "learned_embeds.bin")
        files = f"source=[{tmp_path / 'controlnet.safetensors'},{tmp_path / 'learned_embeds.bin'}]"
        assert main(["convert", *settings, *backbone, files, f"target={tmp_path / 'method'}"]) == 0
        assert f"{len(control) + len(words)} tensors" in capsys.readouterr().out
        assert (tmp_path / "method/controlnet/config.json").is_file(), "diffusers can load the branch alone"
        with configured("train", *backbone, "adapter=none") as plain:
            again = load_method(tmp_path / "method", Components(plain).backbone)
        pose = batch_of(components, adapter.eval(), range(2))
        made = adapter.generate(pose, components.sampler)
        assert torch.equal(made, again.eval().generate(pose, components.sampler))
    base = dict(word.removeprefix("backbone.").split("=") for word in backbone)
    pipe = PoseGuidedPipeline.from_pretrained(tmp_path / "method", backbone=base)
    pipe.save_pretrained(tmp_path / "pipeline")
    pictures = []
    for each in (pipe, PoseGuidedPipeline.from_pretrained(tmp_path / "pipeline")):
        each.set_progress_bar_config(disable=True)
        made_by: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
        for pose_of in (people(0, 5, 7), people(0, 5, 8)):
            pictures.append(each("photo", pose_of, generator=torch.Generator().manual_seed(0), **made_by).images)
    assert np.array_equal(pictures[0], pictures[2]) and not np.allclose(pictures[0], pictures[1], atol=1e-4)
    with pytest.raises(UserError, match="adds words to the prompt and encodes it itself; give prompt instead"):
        pipe(prompt_embeds=torch.zeros(1, 4, 16), poses=people(0))
    skeleton = torch.zeros(3, 64, 64)
    with pytest.raises(UserError, match="cannot read a drawn skeleton; give a json file of keypoints"):
        pipe("photo", skeleton)
