"""A whole offline world at the smallest size: real parts with random weights, saved to disk as users have theirs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from posegen.backbones.mannequin import build_autoencoder, untrained, untrained_transformer
from posegen.config.app import Command
from posegen.config.compose import compose, composed
from posegen.config.overrides import readable
from posegen.config.sweep import axes
from posegen.data.mannequin.captions import VOCABULARY
from posegen.metrics.estimators.mannequin import MannequinJudge


def make_world(folder: Path) -> list[str]:
    """Overrides that put a tiny backbone, autoencoder, judge and data set in place of the shipped ones; they are
    written to ``folder``."""
    torch.manual_seed(0)
    build_autoencoder(width=16, stem=8, layers=1).save_pretrained(folder / "autoencoder")
    untrained(str(folder / "autoencoder"), VOCABULARY, channels=(16, 16), text_dim=16, heads=2).save(
        folder / "backbone"
    )
    MannequinJudge(widths=(8, 8, 16, 16)).save(folder / "judge")
    sizes = {"width": 16, "layers": 2, "heads": 2, "text_dim": 16}
    untrained_transformer(str(folder / "autoencoder"), VOCABULARY, **sizes).save(folder / "transformer")
    return [
        f"backbone.path={folder / 'backbone'}",
        f"backbone.autoencoder={folder / 'autoencoder'}",
        f"estimator.folder={folder / 'judge'}",
        f"paths.cache={folder / 'cache'}",
        "data.train.count=24",
        "data.validation.count=8",
        "data.test.count=6",
        "sampler.steps=2",
        "sampler.batch=4",
        "optim.batch=4",
        "optim.warmup=1",
        "budget.steps=6",
        "callbacks.checkpoint.every=2",
        "progress=none",
        "protocol.resamples=20",
    ]


def making(sample: str, world: list[str], needs: Collection[str] = ()) -> list[str]:
    """The overrides of `make_world` for a backbone that generates images or poses, and for a method that ``needs``
    these fields of a batch."""
    if sample == "image":
        return ["data=mannequin_pairs", *world] if "source" in needs else world
    return [
        "backbone=mannequin_pose",
        *(override for override in world if not override.startswith("backbone.autoencoder")),
    ]


def on_transformer(world: list[str]) -> list[str]:
    """The overrides of `make_world` with a transformer in the place of the U-Net."""
    (path,) = (word for word in world if word.startswith("backbone.path="))
    return ["backbone=mannequin_dit", *world, f"{path.removesuffix('backbone')}transformer"]


@contextmanager
def configured(verb: str, *overrides: str) -> Iterator[DictConfig]:
    """The configuration of a verb, as its function gets it."""
    with composed(verb, overrides) as cfg:
        yield cfg


def require_right_names(verb: str, words: Sequence[str]) -> None:
    """Refuses a command whose options or keys do not exist; files and values may be missing."""
    command = Command.read(verb, words)
    assert readable(command.keys, command.known)[0] == []
    compose(*command.asking([axis.words[0] for axis in axes({}, command.keys)]))
