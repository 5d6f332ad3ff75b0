"""The keys of every node that no class describes: groups without ``_target_``, and the verbs' files.

The arguments of a ``_target_`` are described by its signature, see `posegen.config.checking.arguments`; ``trainer``
stands here as well, because Lightning says late, or never, what it cannot do. A node need not have all keys of its
class here, and may have others, which `posegen.config.nodes.unknown` judges.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from pydantic import AfterValidator, ConfigDict
from typing_extensions import TypedDict  # as pydantic asks for before Python 3.12

from posegen.ranges import (
    AtLeastOne,
    AtLeastZero,
    BelowOne,
    NotNegative,
    Positive,
    Probability,
    Seed,
    SomeOf,
    TopologyName,
    ZeroToOne,
)

Name = Annotated[str, MinLen(1)]
ProgressMode = Literal["bar", "file", "none"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Side = Annotated[int, Interval(ge=8, le=65_536)]  # pixels
Files = str | list[str] | None
LongPrompts = Literal["cut", "chunk"]
PerPrompt = Annotated[int, Interval(ge=1, le=10_000)]


def known_strategy(name: str) -> str:
    """A name that Lightning knows, if it is loaded, as it is where a trainer is configured."""
    if lightning := sys.modules.get("lightning.pytorch.strategies"):
        names = ("auto", *lightning.StrategyRegistry.available_strategies())
        if name not in names:
            raise ValueError(f"one of {', '.join(names)}")
    return name


class NodeKeys:
    """The keys of a node, as annotations."""


class OptimKeys(NodeKeys):
    optimizer: Literal["adamw", "muon", "adamw8bit"]
    lr: Annotated[float, Interval(gt=0, le=1000)] | None
    lr_of: dict[str, NotNegative] | None
    drop_text: ZeroToOne | None
    batch: AtLeastOne
    accumulate: AtLeastOne
    warmup: AtLeastZero
    decay: ZeroToOne
    betas: tuple[BelowOne, BelowOne]
    weight_decay: NotNegative
    clip: Positive | None
    fused: bool
    in_backward: bool


class BudgetKeys(NodeKeys):
    steps: AtLeastOne
    ema: BelowOne
    threads: Annotated[int, Interval(ge=1, le=1024)]
    train_images: AtLeastOne


class ComputeKeys(NodeKeys):
    channels_last: bool
    compile: bool
    checkpointing: Literal["none", "feedforward", "blocks"]
    packed: bool
    attention: Literal["auto", "fp32"]
    workers: Annotated[int, Interval(ge=0, le=128)]


class TrainerKeys(NodeKeys):
    """Arguments of Lightning's Trainer whose range its signature does not tell."""

    accelerator: Accelerator
    devices: Annotated[int, Interval(ge=1, le=1024)] | Literal["auto", -1]
    num_nodes: Annotated[int, Interval(ge=1, le=1024)]
    #: Those that training and sampling both know, `posegen.runner.precision.PRECISIONS`.
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    max_steps: AtLeastOne
    max_epochs: AtLeastOne | Literal[-1] | None
    min_epochs: AtLeastZero | None
    min_steps: AtLeastZero | None
    accumulate_grad_batches: AtLeastOne
    gradient_clip_val: NotNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    log_every_n_steps: AtLeastZero | None
    limit_train_batches: AtLeastOne | SomeOf | None
    limit_val_batches: AtLeastZero | ZeroToOne | None
    overfit_batches: AtLeastZero | ZeroToOne
    check_val_every_n_epoch: AtLeastOne | None
    num_sanity_val_steps: Annotated[int, Interval(ge=-1, le=10_000_000)] | None
    reload_dataloaders_every_n_epochs: AtLeastZero
    fast_dev_run: AtLeastZero | bool
    strategy: Annotated[str, AfterValidator(known_strategy)] | dict[str, Any]


class LoggerKeys(NodeKeys):
    """What W&B's logger passes on to ``wandb.init``."""

    entity: str | None
    group: str | None
    job_type: str | None
    tags: list[str] | None
    notes: str | None


class ValidationKeys(NodeKeys):
    every: AtLeastZero
    images: AtLeastOne
    timesteps: Annotated[list[AtLeastZero], MinLen(1)]


class DashboardKeys(NodeKeys):
    images: AtLeastZero
    methods: bool


class PathsKeys(NodeKeys):
    output: Name
    cell: Name
    cache: Name


class DataKeys(NodeKeys):
    """What a data set's file has beside its splits, whose classes describe the rest."""

    reference: Name


class RecipeKeys(TypedDict, total=False):
    lr: NotNegative
    drop_text: ZeroToOne


class AdapterKeys(NodeKeys):
    """Settings of every method that are no arguments of its class."""

    faithful: bool
    recipes: dict[str, RecipeKeys]
    init: str | list[str] | dict[str, str | list[str]] | None


class CellKeys(NodeKeys):
    """The keys of ``conf/cell.yaml``."""

    adapter: AdapterKeys
    optim: OptimKeys
    budget: BudgetKeys
    compute: ComputeKeys
    trainer: TrainerKeys
    logger: LoggerKeys | None
    data: DataKeys
    seed: Seed
    progress: ProgressMode
    validation: ValidationKeys
    dashboard: DashboardKeys
    shard: AtLeastZero
    shards: AtLeastOne
    checkpoint: str | None
    method: Name
    dataset: Name
    paths: PathsKeys
    study: Name


class AnnotateKeys(NodeKeys):
    source: Name
    target: Name
    overlays: str | None
    least_score: ZeroToOne
    batch: AtLeastOne
    accelerator: Accelerator
    progress: ProgressMode


class ReproductionKeys(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    source: str | None
    tolerance: dict[str, NotNegative] | None
    excluded: dict[str, str] | None


class BenchmarkKeys(CellKeys):
    title: str | None
    baseline: str | None
    headline: list[str] | None
    reproduction: ReproductionKeys | None
    files: dict[str, str | None]
    weights: str | None


class CompletionKeys(NodeKeys):
    positional: Name
    shells: list[Literal["bash", "zsh", "fish"]]


class ConvertKeys(NodeKeys):
    adapter: AdapterKeys
    source: Files
    target: Name


class PriorKeys(NodeKeys):
    adapter: AdapterKeys
    method: Name
    checkpoint: str | None
    scale: Annotated[float, Interval(gt=0, le=1)]
    centre: tuple[ZeroToOne, ZeroToOne]


class DemoKeys(CellKeys):
    checkpoints: list[str] | str
    port: Annotated[int, Interval(ge=1, le=65_535)] | None
    open: bool
    canvas: tuple[Side, Side] | None
    keep: AtLeastOne
    practice: dict[str, list[str]]
    prior: PriorKeys | None


class JudgeKeys(NodeKeys):
    positional: Name
    cells: list[str]
    name: Name | None
    accelerator: Accelerator
    progress: ProgressMode
    cache: Name


class ListingKeys(NodeKeys):
    positional: Name
    groups: list[str]


class ParityKeys(NodeKeys):
    positional: Name
    cases: list[str]


class PowerKeys(NodeKeys):
    positional: Name
    cells: list[str]
    column: Name
    images: list[AtLeastOne]
    seeds: Annotated[list[AtLeastOne], MinLen(1)]
    difference: list[Positive]
    power: Probability
    alpha: Probability


class PrepareKeys(CellKeys):
    splits: list[str] | None
    latents: bool
    text: bool
    joint_vectors: str | None
    out: Name


class ProfileKeys(CellKeys):
    what: Literal["method", "metrics"]
    phases: list[Literal["forward", "train", "sample"]]
    compare: bool
    size: Side
    batch: AtLeastOne
    warmup: AtLeastZero
    repeats: AtLeastOne
    out: Name
    backbone_name: Name


class ReportKeys(NodeKeys):
    positional: Name
    folders: list[str]
    poses: AtLeastZero
    side: Annotated[int, Interval(ge=16, le=65_536)]
    wandb: bool | str | None


class SampleKeys(CellKeys):
    canvas: tuple[Side, Side] | None
    topology: TopologyName | None
    long_prompts: LongPrompts
    prompt: Files
    prompts: str | None
    images: PerPrompt
    poses: str | None
    source: Files
    prior: PriorKeys | None


class TableKeys(NodeKeys):
    positional: Name
    folders: list[str]
    expected: str | None


class TrainKeys(CellKeys):
    objective: str | None


class GarmentsKeys(NodeKeys):
    count: AtLeastOne | None
    garment: Literal["clothes", "shirt", "trousers"]
    told: bool
    dilate: Annotated[int, Interval(ge=0, le=64)]
    soft: Annotated[int, Interval(ge=0, le=65_536)]


class TransferKeys(CellKeys, GarmentsKeys):
    canvas: tuple[Side, Side] | None
    topology: TopologyName | None
    long_prompts: LongPrompts
    picture: str | None
    mask: str | None
    source: Files
    poses: str | None
    prompt: str | None
    size: Side | tuple[Side, Side] | None
    images: PerPrompt
    transfer: GarmentsKeys


class PlaceKeys(NodeKeys):
    path: str | None


class PublishKeys(NodeKeys):
    checkpoint: str
    repo: Name
    backbone: PlaceKeys
    private: bool | None
    revision: str | None
    create_pr: bool
    message: str | None


#: Verb -> the keys of its file.
VERBS: dict[str, type[NodeKeys]] = {
    "annotate": AnnotateKeys,
    "benchmark": BenchmarkKeys,
    "completion": CompletionKeys,
    "convert": ConvertKeys,
    "demo": DemoKeys,
    "evaluate": CellKeys,
    "judge": JudgeKeys,
    "list": ListingKeys,
    "parity": ParityKeys,
    "power": PowerKeys,
    "prepare": PrepareKeys,
    "profile": ProfileKeys,
    "publish": PublishKeys,
    "report": ReportKeys,
    "sample": SampleKeys,
    "table": TableKeys,
    "train": TrainKeys,
    "transfer": TransferKeys,
}
