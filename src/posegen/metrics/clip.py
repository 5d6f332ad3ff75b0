"""Does the image show its caption? The cosine of CLIP's embeddings, as it should be and as the papers computed it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from posegen.data.base import Sample, to_uint8
from posegen.io.hub import local_place
from posegen.metrics.base import Column, Estimator, Judged, Metric, Notes, Observer, Records, Values

PAPER_CHARACTERS = 77  # to which the papers' code cuts a caption, instead of to 77 tokens
CaptionForm = Literal["clean", "paper"]
#: Variant -> what becomes of a caption before it is cut to the tokens that the network can read.
CAPTIONS = {"clean": lambda caption: caption, "paper": lambda caption: caption[:PAPER_CHARACTERS]}


def clip_score(image: np.ndarray, text: np.ndarray) -> tuple[float, np.ndarray]:
    """CLIP score of n pairs of embeddings ``[n, D]`` of any length, and the score of each pair ``[n]``, in percent.

    Hessel et al. 2021 (arXiv:2104.08718) with the scale 100 of torchmetrics, which cuts the mean alone at 0."""
    image, text = (np.asarray(x, float) for x in (image, text))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    pairs = 100 * (image * text).sum(1)
    return max(float(pairs.mean()), 0.0), pairs


class Clip(Observer):
    """Notes ``<variant>_clip``, the score of each generated image with its caption, by variants of `CAPTIONS`.

    ``folder`` is a CLIP model in transformers layout (``config.json``, weights, tokenizer and
    ``preprocessor_config.json``); None switches the observer off. The network gets bytes: given floats in [0, 1],
    current processors would divide by 255 once more."""

    def __init__(self, folder: str | None, variants: Sequence[CaptionForm] = ("clean",)) -> None:
        self.folder, self.variants = folder, tuple(variants)
        if unknown := set(variants) - CAPTIONS.keys():
            raise ValueError(f"CLIP score has no variant {sorted(unknown)}; variants are {list(CAPTIONS)}")

    def check(self) -> None:
        if self.folder is not None:
            _ = self.model, self.processor

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        if self.folder is None or real:  # it compares with a caption, not with the data set
            return [{} for _ in samples]
        with torch.no_grad():
            seen = self.image_embeddings(images)
            words = {v: self.text_embeddings([CAPTIONS[v](s.prompt) for s in samples]) for v in self.variants}
            scores = {f"{v}_clip": clip_score(seen, embeddings)[1] for v, embeddings in words.items()}
        return [{name: float(values[i]) for name, values in scores.items()} for i in range(len(samples))]

    def image_embeddings(self, images: Tensor) -> np.ndarray:
        """``[B, D]`` of ``images [B, 3, H, W]`` in [-1, 1], computed where the images are."""
        prepare, layout = self.processor.image_processor, "channels_last"
        pixels = prepare(list(to_uint8(images)), input_data_format=layout, return_tensors="pt")["pixel_values"]
        found = self.model.to(images.device).get_image_features(pixel_values=pixels.to(images.device))
        return found.pooler_output.float().cpu().numpy()

    def text_embeddings(self, captions: Sequence[str]) -> np.ndarray:
        """``[B, D]`` of captions, of which the tokens that the network cannot read are cut off."""
        length = self.model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.processor.tokenizer(list(captions), **options)
        tokens = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model.get_text_features(**tokens).pooler_output.float().cpu().numpy()

    @cached_property
    def model(self) -> Any:
        from transformers import CLIPModel

        model, report = self._read(CLIPModel, output_loading_info=True, dtype=torch.float32)
        if missing := sorted(report["missing_keys"]):
            lacking = f"{len(missing)} weights of CLIP ({', '.join(missing[:3])})"
            raise ValueError(f"protocol.clip={self.folder} lacks {lacking}; copy the model's folder again")
        return model.eval().requires_grad_(False)

    @cached_property
    def processor(self) -> Any:
        from transformers import CLIPProcessor

        return self._read(CLIPProcessor)

    def _read(self, kind: Any, **options: Any) -> Any:
        folder = local_place(str(self.folder))
        if not (folder / "config.json").is_file():
            fix = "name a folder with a CLIP model, such as ViT-B/16"
            raise FileNotFoundError(f"protocol.clip={self.folder} is no model folder (no config.json); {fix}")
        try:
            return kind.from_pretrained(folder, local_files_only=True, **options)
        except Exception as error:  # transformers raises many kinds, by damage and version
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            wrong = f"protocol.clip={self.folder} cannot be read as a CLIP model ({reason})"
            raise ValueError(f"{wrong}; copy the model's folder again") from error


class ClipScoreMetric(Metric):
    """``<variant>_CLIP``: mean cosine of image and caption, in percent; ``variant`` is one of `Clip`.

    ``clean_CLIP`` reads the caption up to the tokens that CLIP can read. ``paper_CLIP`` cuts it to 77 characters,
    as Stable-Pose's evaluation does, and is at least 0."""

    def __init__(self, variant: CaptionForm = "clean") -> None:
        paper = variant == "paper"
        self.name, self.least = f"{variant}_clip", 0.0 if paper else -np.inf
        self.column = Column(f"{variant}_CLIP", family="caption", unit="%", published=paper)
        self.columns = (self.column,)

    def absent(self, records: Records) -> dict[str, str]:
        return {} if self.name in records else {self.column: "no CLIP model is configured: set protocol.clip=FOLDER"}

    def record(self, judged: Judged) -> dict[str, float]:
        return {self.name: judged.observed[self.name]} if self.name in judged.observed else {}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        if self.name not in records:
            return {self.column: np.full(len(weights), np.nan)}
        return {self.column: np.maximum(weights @ np.asarray(records[self.name], float) / weights.sum(1), self.least)}
