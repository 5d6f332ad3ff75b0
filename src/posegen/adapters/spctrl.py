"""SP-Ctrl: learned colours and words of the joints, and attention that looks at them (Xuan et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.adapters.base import Adapter, Paper, Published, State
from posegen.backbones.base import Backbone, Injection, Step
from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.io.weights import UnknownKeys
from posegen.poses.drawing import REFERENCE_SIDE, PoseDrawing
from posegen.poses.pose import Pose
from posegen.poses.topology import COCO_JOINTS, COCO_NAMES
from posegen.ranges import NotNegative, Width

README_TABLE = "performance table of the official README, top-down mAP with known boxes"
MapLimb = tuple[int, int]
Limbs = Literal["one", "zero", "rand", "interp_kpt"]
AttentionError = Literal["mse", "bce"]

FIRST_LIMB = 51  # value of the first limb in an index map; joints are 1 to 17
VISIBLE = 0.02  # score above which a joint counts, as in drawings
HALF_WIDTH = 4  # pixels, of limbs, and the radius of discs, on a canvas of 512
#: The limbs of Human-Art's maps, in the order of their values.
MAP_LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
#: The links of AP-10K's animals, by which the official program mixes colours of people, too.
ANIMAL_LIMBS = (
    (0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (5, 6), (6, 7), (3, 8), (8, 9), (9, 10), (4, 11), (11, 12),
    (12, 13), (4, 14), (14, 15), (15, 16),
)  # fmt: skip
RELEASED_LIMBS = 17  # that have a colour in official files; the last two of `MAP_LIMBS` paint black
WORDS = {f"<{name.replace('_', '-')}>": name.rpartition("_")[2] for name in COCO_NAMES}
WORDS_SHARE = 0.8  # of the training images whose prompts name the joints
DROPOUT = 0.2  # of the network of colours
ATTENTION_LEVEL = 2  # of the branch's cross-attentions in the loss, or the deepest with attention above it
HEATMAP_SIDE, SIGMA_CELLS = 128, 2.0  # shorter side of the joints' heatmaps, and the spread of their peaks
MAP_SIDE = 64  # at which attention and heatmaps are compared
COLOURS_PART = "spatext_embedding."  # in official files


class SPCtrl(Adapter):
    """ControlNet that reads learned colours of joints, with learned words of the joints in the prompt.

    A map of indices (background, 17 joints, 19 limbs) is painted with colours that a small network makes from fixed
    random embeddings of the joints. Every joint that is visible in the image has a word at the end of the prompt, whose
    embedding trains. The loss adds the squared difference between the branch's cross-attention to each word, scaled to
    [0, 1] over all tokens of the image, and a heatmap of its joint, for timesteps inside ``window``. Words that the
    text tower does not read any more are left out.

    With ``faithful``: the words stand within brackets and commas, the last two limbs are black, people's heatmaps are
    summed in 8 bits and clamped, which makes discs of their peaks, and images outside of the window count in the mean.
    Otherwise words are plain, all limbs have colours, heatmaps are maxima over people, and images inside alone count.

    Dropout in the network of colours draws anew for each image, officially once for all of a batch. The official
    schedule of the words' learning rate (0.25, halved every 100 epochs) is not repeated; ``word_lr`` is constant, up to
    the shared schedule.

    Args:
        colours: channels of the painted map.
        embedding: width of the joints' fixed embeddings; hidden: of the network that makes colours of them.
        limbs: first colours of limbs, which do not train, or ``interp_kpt``, the means of their two joints'.
        sigmoid: squash the joints' colours to [0, 1].
        attention_weight: of the loss on attention; 0 is none.
        attention_loss: ``mse`` or ``bce``.
        window: the timesteps, of 1000, between which attention is compared; null: all.
        detach_query: the loss on attention trains keys and words alone.
        word_lr: learning rate of the words; null: the method's.
    """

    needs = frozenset({"hint"})
    places = frozenset({"control_copy", "words"})
    paper = Paper(
        "Rethink Sparse Signals for Pose-guided Text-to-image Generation",
        "arXiv:2506.20983",
        "DREAMXFAR/SP-Ctrl@179d7a2aefcf",
        "MIT",
        published=Published.of("AP-10K", README_TABLE, mAP=55.63, FID=18.52, CLIP=23.86),
    )

    def __init__(
        self,
        strength: NotNegative = 1.0,
        colours: Width = 3,
        embedding: Width = 768,
        hidden: Width = 256,
        limbs: Limbs = "one",
        sigmoid: bool = False,
        attention_weight: NotNegative = 0.1,
        attention_loss: AttentionError = "mse",
        window: Sequence[NotNegative] | None = (250, 500),
        detach_query: bool = True,
        word_lr: NotNegative | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (("limbs", limbs, Limbs), ("attention_loss", attention_loss, AttentionError)):
            if value not in get_args(choices):
                raise ValueError(f"adapter.{name} is {value!r}; expected one of {', '.join(get_args(choices))}")
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise ValueError(f"adapter.window is {list(window)}; expected two timesteps in order, or null for all")
        self.hint = IndexMap()
        self.strength, self.colours, self.embedding, self.hidden = strength, colours, embedding, hidden
        self.limbs, self.sigmoid, self.word_lr = limbs, sigmoid, word_lr
        self.attention_weight, self.attention_loss = attention_weight, attention_loss
        self.window, self.detach_query = window, detach_query

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        sizes = self.embedding, self.hidden, self.colours
        self.palette = JointColours(
            *sizes, self.limbs, self.sigmoid, RELEASED_LIMBS if self.faithful else len(MAP_LIMBS)
        )
        self.words = backbone.learned_words(WORDS)
        self.branch = backbone.control_copy()
        network = self.branch.network
        if self.colours != network.config.conditioning_channels:
            first = network.controlnet_cond_embedding.conv_in
            network.controlnet_cond_embedding.conv_in = nn.Conv2d(self.colours, first.out_channels, 3, padding=1)
            network.register_to_config(conditioning_channels=self.colours)
        deepest = max(i for i, attends in enumerate(backbone.geometry.attention) if attends)
        self.level = min(ATTENTION_LEVEL, deepest)
        for number, layer in enumerate(self.attentions):
            layer.register_forward_pre_hook(self.keep_input(number))

    @property
    def attentions(self) -> list[Any]:
        """The branch's cross-attentions that the loss looks at."""
        layers = self.branch.network.down_blocks[self.level].attentions
        return [block.attn2 for layer in layers for block in layer.transformer_blocks]

    def keep_input(self, number: int) -> Any:
        """A hook that keeps what a cross-attention reads in training, for `loss`."""

        def keep(_attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                self.__dict__["_read"][number] = inputs[0].detach() if self.detach_query else inputs[0]

        return keep

    def encode(self, batch: PoseBatch) -> State:
        assert batch.hint is not None
        if batch.hint.shape[1] != 1:
            fix = "give a json file of keypoints, or a photograph"
            raise UserError(f"adapter spctrl paints keypoints and cannot read a drawn skeleton; {fix}")
        learning = self.training and torch.is_grad_enabled()
        plain, kept = self.text_state(batch), None
        named = torch.tensor([bool(visible_joints(people)) for people in batch.keypoints])
        if learning:
            named &= batch.rand("joints in the prompt") < WORDS_SHARE
            shape = self.palette.dropped, COCO_JOINTS, self.hidden
            masks = torch.stack([torch.rand(shape, generator=g) for g in batch.generators("dropout")])
            kept = ((masks >= DROPOUT) / (1 - DROPOUT)).to(batch.hint)
        prompts = [self.naming(*each, learning) for each in zip(batch.prompts, batch.keypoints, strict=True)]
        text, words = self.words(prompts, plain.text.tokens.shape[1])
        named = named.to(words.device)
        words = torch.where(named[:, None], words, -1)
        painted = self.palette.painted(batch.hint, self.palette(kept), self.faithful)
        text = text.to(plain.text.tokens)
        text = replace(plain.text, tokens=text.tokens, pooled=text.pooled).keep(named, plain.text)
        return State(text, plain.null_text).having(hint=self.branch.hint_features(painted), words=words)

    def naming(self, prompt: str, people: np.ndarray, learning: bool) -> str:
        """The prompt with the words of the joints that anybody in the image shows, in their order."""
        words = [word for i, word in enumerate(WORDS) if i in visible_joints(people)]
        if not self.faithful:
            return " ".join([prompt, *words])
        listed = ", ".join(words)
        return f"{prompt}. <{listed}>" if learning else f"{prompt}. {listed}"  # the demo's prompts have no brackets

    def inject(self, state: State, latents: Tensor, timesteps: Tensor) -> Injection:
        self.__dict__["_read"] = {}  # of the cross-attentions, in training
        added = self.branch(latents, timesteps, state.text, state["hint"])
        return added.weighted([self.strength] * len(added.residuals))

    def drop(self, state: State, keep: Tensor) -> State:
        return super().drop(state, keep).having(words=torch.where(keep[:, None], state["words"], -1))

    def loss(self, step: Step, state: State, batch: PoseBatch) -> dict[str, Tensor]:
        """Squared error, and that of the attention to the joints' words."""
        error = F.mse_loss(step.prediction.float(), step.target.float())
        if not self.attention_weight:
            return {"loss": error}
        heatmaps = joint_heatmaps(batch.keypoints, batch.size, self.faithful).to(error.device)
        attention = self.attention_error(state, step.noisy.shape[-2:], step.timesteps, heatmaps)
        loss = error + self.attention_weight * attention
        return {"loss": loss, "plain": error.detach(), "attention": attention.detach()}

    def attention_error(self, state: State, cells: Sequence[int], timesteps: Tensor, heatmaps: Tensor) -> Tensor:
        """The loss on attention of the latest pass over latents of ``cells`` (height, width)."""
        inside = inside_window(timesteps * (1000 / self.backbone.process.length), self.window)
        maps = self.attention_maps(state.text.tokens, cells)
        return attention_loss(maps, state["words"], heatmaps, inside, self.attention_loss, counts_all=self.faithful)

    def attention_maps(self, text: Tensor, cells: Sequence[int]) -> list[Tensor]:
        """``[B, L, h, w]`` attention to each token in the latest pass, the mean over heads, for each layer."""
        grid, maps = tuple(-(-side // 2**self.level) for side in cells), []
        for number, layer in enumerate(self.attentions):
            query, key = layer.to_q(self.__dict__["_read"][number]), layer.to_k(text)
            query = query.detach() if self.detach_query else query
            scores = layer.get_attention_scores(layer.head_to_batch_dim(query), layer.head_to_batch_dim(key))
            maps.append(scores.unflatten(0, (-1, layer.heads)).mean(1).mT.unflatten(2, grid))
        return maps

    def parameter_groups(self, recipe: Any) -> list[dict[str, Any]]:
        words = list(self.words.parameters())
        rest = [p for module in (self.palette, self.branch) for p in module.parameters()]
        return [{"params": rest}, {"params": words, **({} if self.word_lr is None else {"lr": self.word_lr})}]

    def convert(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The ControlNet file and the file of the learned words; without that one the words are as they start."""
        official = {key.removeprefix("controlnet."): value for key, value in official.items()}
        own, palette = {k: v.clone() for k, v in self.words.state_dict().items()}, self.palette.state_dict()
        placed, rest, unknown = {f"adapter.words.{key}": value for key, value in own.items()}, {}, []
        for key, value in official.items():
            name = key.removeprefix(COLOURS_PART)
            if key in WORDS:
                next(iter(own.values()))[list(WORDS).index(key)] = value.reshape(-1)
            elif name in palette and name != key:
                placed[f"adapter.palette.{name}"] = with_black_limbs(value) if name == "skeleton_emb" else value
            elif key.startswith((COLOURS_PART, "<")):
                unknown.append(key)
            else:
                rest[key] = value
        if unknown:
            raise UnknownKeys(unknown, type(self).__name__)
        branch = self.branch.placed(rest, self.beside, type(self).__name__)
        return placed | {f"adapter.branch.{key}": value for key, value in branch.items()}


class JointColours(nn.Module):
    """Colours of joints, by a network on fixed embeddings, and of the first ``count`` limbs; official names."""

    def __init__(self, width: int, hidden: int, colours: int, limbs: Limbs, sigmoid: bool, count: int) -> None:
        super().__init__()
        self.limbs, self.sigmoid = limbs, sigmoid
        first = torch.rand if limbs == "rand" else torch.zeros if limbs == "zero" else torch.ones
        self.register_buffer("keypoint_emb", torch.randn(COCO_JOINTS, width))
        self.register_buffer("skeleton_emb", with_black_limbs(first(count, colours)))
        self.linear_in = nn.Linear(width, hidden)
        self.mlps = nn.ModuleList(layer for _ in range(3) for layer in (HiddenLayers(hidden), nn.LayerNorm(hidden)))
        self.linear_out = nn.Linear(hidden, colours)

    @property
    def dropped(self) -> int:
        """Layers whose outputs dropout reads."""
        return len(self.mlps)

    def forward(self, kept: Tensor | None = None) -> Tensor:
        """``[17, C]`` colours of the joints, or ``[B, 17, C]`` with factors of dropout ``kept [B, layers, 17, H]``."""
        x = self.linear_in(self.keypoint_emb)
        for i in range(0, len(self.mlps), 2):
            first, activation, _, last = self.mlps[i].ff
            x = activation(first(x))
            x = last(x if kept is None else x * kept[:, i])
            x = self.mlps[i + 1](x if kept is None else x * kept[:, i + 1])
        return self.linear_out(x)

    def painted(self, indices: Tensor, joints: Tensor, faithful: bool) -> Tensor:
        """``indices [B, 1, H, W]`` in colours ``[B, C, H, W]``; ``joints`` is the result of `forward`."""
        joints = joints.sigmoid() if self.sigmoid else joints
        joints = joints.expand(len(indices), *joints.shape[-2:])
        limbs = self.skeleton_emb.to(joints).expand(len(indices), -1, -1)
        if self.limbs == "interp_kpt":
            ends = joints.new_tensor(ANIMAL_LIMBS if faithful else MAP_LIMBS, dtype=torch.long)
            limbs = F.pad(joints[:, ends].mean(2), (0, 0, 0, len(MAP_LIMBS) - len(ends)))
        black = joints.new_zeros(len(joints), FIRST_LIMB, joints.shape[-1])
        table = torch.cat([black[:, :1], joints, black[:, 1 + COCO_JOINTS :], limbs], dim=1)
        offsets = table.shape[1] * torch.arange(len(table), device=table.device).view(-1, 1, 1)
        return F.embedding(indices[:, 0].long() + offsets, table.flatten(0, 1)).permute(0, 3, 1, 2)


class HiddenLayers(nn.Module):
    """Two layers, with the places of official dropout between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Identity(), nn.Linear(width, width))


class IndexMap(PoseDrawing):
    """Draws people as ``[1, h, w]`` the indices of joints and limbs, with widths that follow the canvas."""

    def __init__(self) -> None:
        super().__init__("openpose", range=(0.0, float(FIRST_LIMB + len(MAP_LIMBS) - 1)))

    def __call__(
        self, keypoints: np.ndarray | Pose, size: tuple[int, int], depth: np.ndarray | None = None
    ) -> np.ndarray:
        keypoints = keypoints.to(self.topology).keypoints if isinstance(keypoints, Pose) else keypoints
        people = np.asarray(keypoints, np.float64).reshape(-1, COCO_JOINTS, 3)
        return drawn_indices(people, size, MAP_LIMBS, self.threshold, min(size) / REFERENCE_SIDE)[None].astype(
            np.float32
        )


def drawn_indices(
    people: np.ndarray, size: tuple[int, int], limbs: Sequence[MapLimb], threshold: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """``[h, w] uint8`` limbs, then joints, of one person after the other, in whole pixels and whole degrees."""
    canvas, width = np.zeros(size, np.uint8), max(1, round(HALF_WIDTH * scale))
    for person in people:
        seen = person[:, 2] > threshold
        for value, (a, b) in enumerate(limbs, FIRST_LIMB):
            if seen[a] and seen[b]:
                (x, y), (dx, dy) = person[[a, b], :2].mean(0), person[a, :2] - person[b, :2]
                axes, angle = (int(math.hypot(dx, dy) / 2), width), int(math.degrees(math.atan2(dy, dx)))
                outline = cv2.ellipse2Poly((int(x), int(y)), axes, angle, 0, 360, 1)
                cv2.fillConvexPoly(canvas, np.asarray(outline), value)
        for value, (x, y) in enumerate(person[:, :2], 1):
            if seen[value - 1]:
                cv2.circle(canvas, (int(x), int(y)), width, value, -1)
    return canvas


def inside_window(times: Tensor, window: Sequence[float] | None) -> Tensor:
    """``[B] bool`` whether the ``times [B]`` lie inside of the window; all without one."""
    start, end = window or (-math.inf, math.inf)
    return (times > start) & (times < end)


def visible_joints(people: np.ndarray) -> set[int]:
    """The joints that any of ``people [P, 17, 3]`` shows."""
    return set(np.flatnonzero((np.asarray(people).reshape(-1, COCO_JOINTS, 3)[..., 2] > VISIBLE).any(0)).tolist())


def with_black_limbs(colours: Tensor) -> Tensor:
    """``[n, C]`` colours of the first limbs, black for the rest of `MAP_LIMBS`."""
    return F.pad(colours, (0, 0, 0, max(0, len(MAP_LIMBS) - len(colours))))


def joint_heatmaps(people: Sequence[np.ndarray], size: tuple[int, int], faithful: bool) -> Tensor:
    """``[B, 17, h, w]`` a peak at each joint, in [0, 1]; or officially in 8 bits, where overlapping people wrap."""
    cells = HEATMAP_SIDE / min(size)
    height, width = (round(side * cells) for side in size)
    made = []
    for keypoints in people:
        x, y, score = torch.from_numpy(np.asarray(keypoints, np.float32).reshape(-1, COCO_JOINTS, 3)).unbind(-1)
        across, down = (
            torch.exp(-((torch.arange(side) - ((at + 0.5) * cells - 0.5)[..., None]) ** 2) / (2 * SIGMA_CELLS**2))
            for at, side in ((x, width), (y, height))
        )
        peaks = down[..., None] * across[..., None, :] * (score > VISIBLE)[..., None, None]
        if faithful:
            made.append((255 * peaks.sum(0)).long().remainder(256).float())
        else:
            made.append(peaks.amax(0) if len(peaks) else peaks.new_zeros(COCO_JOINTS, height, width))
    return torch.stack(made)


def attention_loss(
    maps: Sequence[Tensor],
    words: Tensor,
    heatmaps: Tensor,
    inside: Tensor,
    kind: AttentionError = "mse",
    counts_all: bool = True,
    side: int = MAP_SIDE,
) -> Tensor:
    """The mean error of the attention to words, over the cells of all words.

    Args:
        maps: ``[B, L, h, w]`` attention to each token, for each layer.
        words: ``[B, L]`` the joint that each token stands for, -1 for other tokens.
        heatmaps: ``[B, J, h', w']``, clamped to [0, 1].
        inside: ``[B] bool`` the images whose error counts; with ``counts_all`` the others count as zero.
    """
    with torch.autocast(heatmaps.device.type, enabled=False):
        resized = (F.interpolate(m.float(), (side, side), mode="bilinear", align_corners=True) for m in maps)
        attention = torch.stack(list(resized)).mean(0)
        low, high = attention.amin((1, 2, 3), True), attention.amax((1, 2, 3), True)
        attention = (attention - low) / (high - low).clamp(min=1e-6)
        target = F.interpolate(heatmaps.float(), (side, side), mode="bilinear", align_corners=True).clamp(0, 1)
        target = target[torch.arange(len(words), device=words.device)[:, None], words.clamp(min=0)]
        if kind == "mse":
            error = (attention - target).square()
        else:
            error = F.binary_cross_entropy(attention.clamp(0, 1), target, reduction="none")
        counted = (words >= 0).float()
        weights = counted * inside.float()[:, None]
        counts = counted if counts_all else weights
        return (error.mean((2, 3)) * weights).sum() / counts.sum().clamp(min=1)
