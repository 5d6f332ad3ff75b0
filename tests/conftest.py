"""What holds for every test: one thread per process, no network, and a small world of configurations to play with."""

import os

# Before anything imports torch: the tests run several at a time and measure nothing in parallel code.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[name] = "1"
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
}
for name in ("POSEGEN_SEARCHPATH", "POSEGEN_TRACEBACK", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)

import textwrap
from pathlib import Path

import pytest

CLASSES = '''
"""The classes of a world of configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nowhere import Nothing


class Drawing:
    def __init__(self, width: int = 4, style: Literal["openpose", "humansd"] = "openpose"): ...


class Method:
    """Draws the pose."""

    paper = Paper("A paper on poses", "arXiv:1234.5678") if False else None
    sample = "image"
    needs = frozenset({"hint"})
    declared = ("faithful", "recipes")

    def __init__(
        self,
        strength: float = 1.0,
        channels: tuple[int, ...] = (16, 32),
        size: tuple[int, int] = (64, 64),
        style: Literal["openpose", "humansd"] = "openpose",
        hint: Mapping[str, int] | None = None,
        drawing: Drawing | None = None,
        layers: int | None = None,
        unknowable: Nothing | None = None,
    ): ...


class PosePrior(Method):
    sample = "pose"


class Backbone:
    sample = "image"

    def __init__(self, path: str | Path, faithful: bool = True): ...


class Data:
    def __init__(self, split: str, size: int = 64): ...

    @classmethod
    def cached(cls, split: str, size: int = 64): ...


def run(cfg):
    """The task of the world's verb; does what its configuration says."""
    if cfg.fail:
        raise {"user": ValueError, "bug": AttributeError}[cfg.fail](f"failed in cell {cfg.seed}")
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    import os

    (Path(cfg.out) / f"{cfg.seed}.txt").write_text(f"{cfg.shipped} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
'''

FILES = {
    "conf/train.yaml": """
        defaults:
          - adapter: method
          - backbone: small
          - data: toy
          - optim: adamw
          - _self_
          - experiment: null
        seed: 0
        fail: null
        out: ???
        labels: {}
        shipped: ${asset:thing}
        hydra: {output_subdir: null, run: {dir: runs}, sweep: {dir: runs, subdir: .}}
        """,
    "conf/benchmark.yaml": """
        defaults: [train, _self_]
        out: out
        hydra: {mode: MULTIRUN, sweeper: {params: {adapter: "method,prior", seed: "0,1"}}}
        """,
    "conf/list.yaml": """
        positional: groups
        groups: []
        """,
    "conf/adapter/method.yaml": """
        # Draws the pose. More about it.
        _target_: world.Method
        strength: 1.0
        recipes: {small: {lr: 1.0e-3}}
        """,
    "conf/adapter/prior.yaml": """
        # Makes poses.
        _target_: world.PosePrior
        """,
    "conf/adapter/reference/real.yaml": """
        # Real images.
        _target_: world.Method
        strength: 0
        """,
    "conf/backbone/small.yaml": """
        # A small backbone.
        _target_: world.Backbone
        path: .
        """,
    "conf/data/toy.yaml": """
        # Few images.
        train: {_target_: world.Data, split: train}
        test: {_target_: world.Data.cached, split: test}
        """,
    "conf/optim/adamw.yaml": """
        # AdamW.
        lr: null
        decay: 0.5
        batch: 32
        """,
    "conf/experiment/careless.yaml": """
        # @package _global_
        # An experiment with mistakes.
        out: out
        sed: 1
        optim: {bach: 16}
        """,
    "their/conf/adapter/theirs.yaml": """
        # A method of another package.
        # Paper: Their paper, arXiv:8765.4321
        _target_: their.method.Theirs
        """,
    "their/__init__.py": "",
    "their/conf/__init__.py": "",
    "their/method.py": '''
        import torch  # listing must not do this


        class Theirs:
            """Their method.

            More about it.
            """
        ''',
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small ``conf``, the package ``world`` that it names, and the package ``their`` with options of
    its own; it is the working directory."""
    from posegen.config import groups as listing

    for name, text in {**FILES, "world.py": CLASSES}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "world", raising=False)
    monkeypatch.setattr(listing, "conf_dir", lambda: tmp_path / "conf")
    return tmp_path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put a tiny world in place of the shipped one, see `tests.tiny.make_world`."""
    from tests.tiny import make_world

    return make_world(tmp_path_factory.mktemp("world"))
