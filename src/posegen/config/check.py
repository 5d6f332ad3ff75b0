"""``posegen check``: everything that can be known to be wrong with a configuration before anything is loaded.

Hydra refuses ``adapter.chanels=3`` but lets ``+adapter.chanels=3`` and a typo in a file pass until the class is built, which is after the weights were loaded.
Here every node with a ``_target_`` is compared with the signature of its class, every other node with what its group's file holds, and all problems are
reported at once.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posegen.config import nodes
from posegen.config.app import Request, arranged, composed, hydra_message
from posegen.config.groups import Option, groups, primaries
from posegen.config.overrides import examine, shown
from posegen.config.problems import Problem, misspelt, nearest, report
from posegen.errors import UserError
from posegen.train.launch import Crew

HELP = """Check a configuration without loading any weights; tells everything that is wrong with it at once.

  posegen check                                   what `posegen train` would run
  posegen check train adapter=controlnet trainer=smoke
  posegen check train -m adapter=controlnet,humansd seed=0,1
  posegen check benchmark                         every cell of the benchmark
  posegen check sample +adapter.chanels=3         finds keys, too, that Hydra lets pass behind a +"""

#: Keys that name something to read; what is written need not exist yet.
INPUT = re.compile(r"(^|[._])(path|folder|file|checkpoint)$|^source$")
OUTPUT = re.compile(r"(^|[._])(out|output|cache|save|log|target)s?(_[a-z]+)?$|^paths\.")
ELSEWHERE = re.compile(r"^\w{2,}:")  # hub:owner/name, https://...
#: Verbs that judge what was generated.
JUDGING = ("evaluate", "benchmark")
#: What only some data sets have: field of a batch -> (method that brings it, what it is).
OTHER_IMAGES = {
    "twins": ("twin", "a second image of each caption"),
    "source": ("source_of", "another image of each person"),
}
#: Splits that are trained on or generated; others are only looked at.
MADE = ("train", "validation", "test")
#: Precisions that training and sampling both know, see `posegen.runner.precision.PRECISIONS`, which would bring torch.
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
#: Numbers that are usually null, so that nothing else tells what they are: key -> (least, most).
NUMBERS = {"optim.lr": (0.0, float("inf")), "optim.drop_text": (0.0, 1.0)}
Known = Mapping[str, Mapping[str, Option]]


def validate(cfg: DictConfig, request: Request | None = None) -> list[Problem]:
    """Everything that is wrong with a composed configuration.

    Args:
        cfg: the configuration.
        request: where it came from; inside a Hydra job this is known.
    """
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if request is None and HydraConfig.initialized():
        request = Request.of(HydraConfig.get())  # type: ignore[arg-type]
    known = groups(request.roots) if request else groups()
    problems = nodes.unresolved(cfg)
    if request and (usual := _usual(request, known)) is not None:
        problems += nodes.unknown(cfg, usual, [group for group in known if "/" not in group])
    for key, node in nodes.targets(cfg):
        problems += nodes.signature(key, node)
    problems += [*files(cfg), *training(cfg), *recipes(cfg), *compatible(cfg), *shared(cfg)]
    if request and request.name in JUDGING:
        problems += judgeable(cfg)
    placed = [_placed(problem, request, known) for problem in problems]
    return list({str(problem): problem for problem in placed}.values())


def require_valid(cfg: DictConfig, request: Request | None = None) -> None:
    """Refuses a configuration with problems.

    Raises:
        UserError: lists all of them.
    """
    if problems := validate(cfg, request):
        raise UserError(report(problems))


def _usual(request: Request, known: Known) -> DictConfig | None:
    """The configuration that the chosen files alone make, without overrides and without files that may set any key."""
    choices = tuple(
        f"{group}={name}"
        for group, name in request.choices.items()
        if name and name in known.get(group, {}) and not group.startswith("hydra/") and not _global(known[group][name])
    )
    return _composed_once(request.name, choices, request.main, request.extra)


@lru_cache(maxsize=64)
def _composed_once(name: str, choices: tuple[str, ...], main: Path, extra: tuple[str, ...]) -> DictConfig | None:
    try:
        with composed(Request(name, choices, main, extra)) as cfg:
            return cfg
    except (HydraException, OmegaConfBaseException):
        return None


def _global(option: Option) -> bool:
    return bool(re.search(r"^# @package _global_", option.file.read_text(encoding="utf-8"), re.MULTILINE))


def _placed(problem: Problem, request: Request | None, known: Known) -> Problem:
    """The problem with the file that its key's group was read from."""
    group = problem.key.split(".")[0]
    option = known.get(group, {}).get(str(request.choices.get(group))) if request else None
    return replace(problem, file=shown(option)) if option and not problem.file else problem


# What no single node tells.


def files(cfg: DictConfig) -> list[Problem]:
    """Files and folders to read that are not there."""
    problems = []
    for key, value in _values(cfg):
        reads = INPUT.search(key) and not OUTPUT.search(key)
        if (
            reads
            and isinstance(value, str)
            and value
            and not ELSEWHERE.match(value)
            and not Path(value).expanduser().exists()
        ):
            problems.append(Problem(key, "no such file or folder", value))
    return problems


def _values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    for name, child in nodes.children(node):
        path = nodes.inside(key, name)
        if OmegaConf.is_config(child):
            yield from _values(child, path)
        elif not child._is_missing():
            yield path, nodes.value_or_none(child)


def training(cfg: DictConfig) -> list[Problem]:
    """Values of ``optim`` and ``trainer`` that would only be noticed once a training has begun."""
    problems = []
    for key, (least, most) in NUMBERS.items():
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and least <= value <= most):
            problems.append(
                Problem(
                    key,
                    f"expected a number {f'from {least:g} to {most:g}' if most < float('inf') else f'of at least {least:g}'}, or null",
                    value,
                )
            )
    precision = OmegaConf.select(cfg, "trainer.precision", throw_on_missing=False)
    if precision is not None and precision not in PRECISIONS:
        problems.append(
            Problem(
                "trainer.precision",
                f"expected one of {', '.join(PRECISIONS)}",
                precision,
                nearest(str(precision), PRECISIONS),
            )
        )
    return problems


def shared(cfg: DictConfig) -> list[Problem]:
    """Batches that the processes of a cell cannot share."""
    if "devices" not in (cfg.get("trainer") or ()) or "batch" not in (cfg.get("optim") or ()):
        return []
    try:
        Crew.planned(cfg)
    except UserError as error:
        return [Problem("trainer", str(error))]
    return []


def recipes(cfg: DictConfig) -> list[Problem]:
    """Keys of an adapter's recipes that are no optimiser settings."""
    adapter, optim = cfg.get("adapter"), cfg.get("optim")
    if not isinstance(adapter, DictConfig) or not isinstance(optim, DictConfig):
        return []
    return [
        misspelt(f"adapter.recipes.{recipe}.{name}", "no such setting in optim", name, map(str, optim))
        for recipe, node in nodes.children(adapter.get("recipes"))
        for name, _ in nodes.children(node)
        if name not in optim
    ]


def compatible(cfg: DictConfig) -> list[Problem]:
    """Choices that are fine alone and impossible together, as far as their classes tell."""
    adapter, backbone = _class(cfg, "adapter"), _class(cfg, "backbone")
    problems = []
    makes, paints = getattr(adapter, "sample", None), getattr(backbone, "sample", None)
    if makes and paints and makes != paints:
        problems.append(
            Problem(
                "backbone",
                f"{adapter.__name__} generates {makes}s, {backbone.__name__} {paints}s; choose another adapter= or backbone=",
            )
        )
    brought = (
        {"source"} if any(cfg.get(key) is not None for key in ("prompt", "source")) else set()
    )  # then no data set has to
    needs: Collection[str] = set(getattr(adapter, "needs", ())) - brought
    factor = _latent_factor(cfg.get("backbone"))
    for split, node in nodes.children(cfg.get("data")):
        data = nodes.locate(nodes.target_of(node)) if nodes.has_target(node) else None
        for field, (method, image) in OTHER_IMAGES.items() if split in MADE else ():
            if field in needs and isinstance(data, type) and _inherits(data, method, "PoseData"):
                problems.append(
                    Problem(
                        f"data.{split}",
                        f"{adapter.__name__} needs {image}, which {data.__name__} does not have; choose another data=",
                    )
                )
        problems += _sizes(f"data.{split}", node, factor)
    if hasattr(adapter, "unserved") and isinstance(backbone, type) and (reason := adapter.unserved(backbone)):
        problems.append(Problem("backbone", reason))
    return problems


def judgeable(cfg: DictConfig) -> list[Problem]:
    """A protocol that judges something else than the backbone generates."""
    made, judged = (getattr(_class(cfg, group), "sample", None) for group in ("backbone", "protocol"))
    if not made or not judged or made == judged:
        return []
    return [Problem("protocol", f"it judges {judged}s and the backbone generates {made}s; choose another protocol=")]


def _class(cfg: DictConfig, group: str) -> Any:
    """The class behind a group's ``_target_``, also where that is one of its class methods."""
    node = cfg.get(group)
    target = nodes.locate(nodes.target_of(node)) if nodes.has_target(node) else None
    return getattr(target, "__self__", target) if not isinstance(target, str) else None


def _inherits(cls: type, method: str, base: str) -> bool:
    """Whether a class leaves a method to the base class of that name."""
    owner = next((c for c in cls.__mro__ if method in vars(c)), None)
    return owner is not None and owner.__name__ == base and owner.__module__.startswith("posegen")


def _sizes(key: str, data: Any, factor: int | None) -> list[Problem]:
    """Image sizes that are no multiple of the backbone's latent factor."""
    size = (nodes.value_or_none(data) or {}).get("size") if nodes.has_target(data) else None
    sides = [size] if isinstance(size, int) else [side for side in size or [] if isinstance(side, int)]
    if not factor or all(side % factor == 0 for side in sides):
        return []
    right = [max(factor, side // factor * factor) for side in sides]
    return [
        Problem(
            f"{key}.size",
            f"expected a multiple of the backbone's latent factor {factor}, such as {right if len(right) > 1 else right[0]}",
            size,
        )
    ]


def _latent_factor(node: Any) -> int | None:
    """Pixels per latent cell of a backbone in diffusers' layout; None where its autoencoder's configuration is not at hand."""
    values = nodes.value_or_none(node) if isinstance(node, DictConfig) else None
    places = [Path(str(values[key])).expanduser() for key in ("autoencoder", "path") if values and values.get(key)]
    for file in (place / name for place in places for name in ("vae/config.json", "config.json")):
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            if widths := config.get("encoder_block_out_channels") or config.get("block_out_channels"):
                return 2 ** (len(widths) - 1)
    return None


# The verb.


def main(argv: Sequence[str]) -> int:
    """``posegen check [verb] [overrides] [Hydra's flags]``."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return 0
    words = list(argv)
    verb = words.pop(0) if words and re.fullmatch(r"[a-z]+", words[0]) else "train"
    request = Request.parse(verb, words)
    if verb not in (names := primaries(request.roots)):
        raise UserError(str(misspelt(verb, "no such verb to check", verb, names)))
    problems, count = check(request, multirun=get_args_parser().parse_args(arranged(words)).multirun)
    cells = f"{count} combinations are" if count > 1 else "the configuration is"
    print(
        report(problems) if problems else f"posegen {verb}: {cells} fine", file=sys.stderr if problems else sys.stdout
    )
    return 1 if problems else 0


def check(request: Request, multirun: bool = False) -> tuple[list[Problem], int]:
    """All problems of a request, and how many cells were looked at."""
    problems, good = examine(request)
    try:
        todo = list(cells(good, multirun))
    except (HydraException, OmegaConfBaseException) as error:
        return problems or [Problem(request.name, hydra_message(error))], 0
    for cell in todo:
        try:
            with composed(cell) as cfg:
                problems += validate(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            problems += examine(cell)[0] or [Problem(request.name, hydra_message(error))]
    return list({str(problem): problem for problem in problems}.values()), len(todo)


def cells(request: Request, multirun: bool = False) -> Iterator[Request]:
    """The cells of a request that differ in what can be wrong with them: every combination of options, and every value once."""
    own = {
        override.key_or_group: (word, override)
        for word in request.overrides
        for override in [OverridesParser.create().parse_override(word)]
    }
    swept = {key for key, (_, override) in own.items() if override.is_sweep_override()}
    rest = [word for key, (word, _) in own.items() if key not in swept]
    with composed(request.having(*rest)):
        node = HydraConfig.get()
    if not (multirun or node.mode == RunMode.MULTIRUN):
        yield request
        return
    params = [f"{key}={value}" for key, value in (node.sweeper.get("params") or {}).items() if key not in own]
    axes = [
        OverridesParser.create().parse_override(word)
        for word in (*params, *(own[key][0] for key in own if key in swept))
    ]
    known = groups(request.roots)
    choices = [_values_of(axis) for axis in axes if axis.key_or_group in known]
    values = [_values_of(axis) for axis in axes if axis.key_or_group not in known]
    first = [axis[0] for axis in values]
    for combination in itertools.product(*choices):
        yield request.having(*rest, *combination, *first)
    for number, axis in enumerate(values):
        for word in axis[1:]:
            yield request.having(*rest, *(axis[0] for axis in choices), *first[:number], word, *first[number + 1 :])


def _values_of(axis: Override) -> list[str]:
    if not axis.is_sweep_override():
        return [axis.input_line or ""]
    if axis.is_interval_sweep():  # whose ends stand for what a sweeper will choose
        interval: Any = axis.value()
        return [f"{axis.get_key_element()}={end}" for end in (interval.start, interval.end)]
    return [f"{axis.get_key_element()}={value}" for value in axis.sweep_string_iterator()]
