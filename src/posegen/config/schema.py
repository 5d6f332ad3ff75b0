"""The keys of every node that no class describes: groups without ``_target_``, and the verbs' files.

The arguments of a ``_target_`` are described by its signature, see `posegen.config.arguments`; ``trainer`` stands here
as well, because Lightning says late, or never, what it cannot do. A node need not have all keys of its class here, and
may have others, which `posegen.config.nodes.unknown` judges.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval, MinLen

from posegen.ranges import (
    AtLeastOne,
    AtLeastZero,
    BelowOne,
    NotNegative,
    Positive,
    Probability,
    Seed,
    ZeroToOne,
)

Name = Annotated[str, MinLen(1)]
ProgressMode = Literal["bar", "file", "none"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda"]
Side = Annotated[int, Interval(ge=8, le=65_536)]  # pixels
Files = str | list[str] | None
PerPrompt = Annotated[int, Interval(ge=1, le=10_000)]


class NodeKeys:
    """The keys of a node, as annotations."""


class OptimKeys(NodeKeys):
    optimizer: Literal["adamw", "muon"]
    lr: NotNegative | None
    drop_text: ZeroToOne | None
    batch: AtLeastOne
    accumulate: AtLeastOne
    warmup: AtLeastZero
    decay: ZeroToOne
    betas: tuple[BelowOne, BelowOne]
    weight_decay: NotNegative
    clip: Positive | None


class BudgetKeys(NodeKeys):
    steps: AtLeastOne
    ema: BelowOne
    threads: Annotated[int, Interval(ge=1, le=1024)]


class ComputeKeys(NodeKeys):
    channels_last: bool
    compile: bool
    checkpointing: Literal["none", "feedforward", "blocks"]
    workers: Annotated[int, Interval(ge=0, le=128)]


class TrainerKeys(NodeKeys):
    """Arguments of Lightning's Trainer whose range its signature does not tell."""

    accelerator: Accelerator
    devices: Annotated[int, Interval(ge=1, le=1024)] | Literal["auto", -1]
    num_nodes: Annotated[int, Interval(ge=1, le=1024)]
    #: Those that training and sampling both know, `posegen.runner.precision.PRECISIONS`.
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    max_steps: AtLeastOne
    max_epochs: Annotated[int, Interval(ge=-1, le=10_000_000)] | None
    min_epochs: AtLeastZero | None
    min_steps: AtLeastZero | None
    accumulate_grad_batches: AtLeastOne
    gradient_clip_val: NotNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    log_every_n_steps: AtLeastZero | None
    limit_train_batches: AtLeastZero | ZeroToOne | None
    limit_val_batches: AtLeastZero | ZeroToOne | None
    overfit_batches: AtLeastZero | ZeroToOne
    check_val_every_n_epoch: AtLeastOne | None
    num_sanity_val_steps: Annotated[int, Interval(ge=-1, le=10_000_000)] | None
    reload_dataloaders_every_n_epochs: AtLeastZero
    fast_dev_run: AtLeastZero | bool


class ValidationKeys(NodeKeys):
    every: AtLeastZero
    images: AtLeastOne


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


class CellKeys(NodeKeys):
    """The keys of ``conf/cell.yaml``."""

    optim: OptimKeys
    budget: BudgetKeys
    compute: ComputeKeys
    trainer: TrainerKeys
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


class ReproductionKeys(NodeKeys):
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
    shells: list[Literal["bash", "zsh"]]


class ConvertKeys(NodeKeys):
    source: str | None
    target: Name


class PriorKeys(NodeKeys):
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


class ListingKeys(NodeKeys):
    groups: list[str]


class ParityKeys(NodeKeys):
    cases: list[str]


class PowerKeys(NodeKeys):
    cells: list[str]
    column: Name
    images: list[AtLeastOne]
    seeds: list[AtLeastOne]
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
    folders: list[str]
    poses: AtLeastZero
    side: Annotated[int, Interval(ge=16, le=65_536)]
    wandb: bool | str | None


class SampleKeys(CellKeys):
    canvas: tuple[Side, Side] | None
    prompt: Files
    images: PerPrompt
    poses: str | None
    source: Files
    prior: PriorKeys | None


class TableKeys(NodeKeys):
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
    picture: str | None
    mask: str | None
    source: Files
    poses: str | None
    prompt: str | None
    size: tuple[Side, Side] | None
    images: PerPrompt
    transfer: GarmentsKeys


#: Verb -> the keys of its file.
VERBS: dict[str, type[NodeKeys]] = {
    "annotate": AnnotateKeys,
    "benchmark": BenchmarkKeys,
    "completion": CompletionKeys,
    "convert": ConvertKeys,
    "demo": DemoKeys,
    "evaluate": CellKeys,
    "list": ListingKeys,
    "parity": ParityKeys,
    "power": PowerKeys,
    "prepare": PrepareKeys,
    "profile": ProfileKeys,
    "report": ReportKeys,
    "sample": SampleKeys,
    "table": TableKeys,
    "train": TrainKeys,
    "transfer": TransferKeys,
}
