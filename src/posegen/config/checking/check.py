"""Everything that can be known to be wrong with a configuration before anything is loaded.

Hydra refuses ``adapter.chanels=3`` but lets ``+adapter.chanels=3`` and a typo in a file pass until the class is built,
which is after the weights were loaded. Here every node with a ``_target_`` is compared with the signature of its class,
every other node with the keys of its group's file, and all problems are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from posegen.config import nodes
from posegen.config.cell_folder import require_inside
from posegen.config.checking.arguments import argument_problems, class_of, locate
from posegen.config.checking.processes import process_problems
from posegen.config.checking.settings import settings
from posegen.config.compose import composed
from posegen.config.groups import KnownGroups, groups, roots_of, shown_path
from posegen.config.problems import Problem, misspelt, problem_report, without_repeats
from posegen.config.resolvers import asset
from posegen.config.schema import VERBS, CellKeys
from posegen.errors import UserError
from posegen.io.atomic import read_json_or_empty

#: Keys that name something to read; what is written need not exist yet.
INPUT = re.compile(r"^(?!callbacks|logger|trainer).*?(^|[._])(path|folder|file|checkpoint)$|^source$")
OUTPUT = re.compile(r"(^|[._])(out|output|cache|save|log|target)s?(_[a-z]+)?$|^paths\.")
ELSEWHERE = re.compile(r"^\w{2,}:")  # hub:owner/name, https://...

#: Groups whose options name a class, and the others that a cell cannot do without.
CLASSES = ("task", "loss", "adapter", "backbone", "sampler", "estimator", "protocol", "trainer")
NEEDED = (*CLASSES, "data", "optim", "budget", "compute")

#: Keys of posegen 0.1 -> where they stand now.
MOVED_KEYS = {
    **{f"trainer.{name}": f"budget.{name}" for name in ("steps", "ema", "threads")},
    **{f"trainer.{name}": f"compute.{name}" for name in ("workers", "channels_last", "compile", "checkpointing")},
    "trainer.validate_every": "validation.every",
    "trainer.validate_images": "validation.images",
    "trainer.save_every": "callbacks.checkpoint.every",
    "trainer.log_every": "trainer.log_every_n_steps",
    "trainer.progress": "progress",
    "trainer.nodes": "trainer.num_nodes",
    "logger.rows": "dashboard.images",
    "logger.checkpoints": "dashboard.methods",
}


def validate(cfg: DictConfig) -> list[Problem]:
    """Everything that is wrong with the composed configuration ``cfg``, whose ``hydra`` node ``HydraConfig`` has."""
    hydra = HydraConfig.get()
    known, verb = groups(roots_of(hydra)), str(hydra.job.config_name)
    values = [problem for setting in settings(cfg, verb) for problem in setting.problems()]
    problems = []
    if (usual := _usual(hydra, known)) is not None:
        problems += nodes.unknown(cfg, usual, [group for group in known if "/" not in group])
    for key, node in nodes.target_nodes(cfg):
        problems += argument_problems(key, node)
    if issubclass(VERBS.get(verb, CellKeys), CellKeys):
        problems += absent(cfg, hydra.runtime.choices)
    problems += [
        *missing_files(cfg),
        *recipes(cfg),
        *compatible(cfg),
        *process_problems(cfg, verb),
        *needs_all_gradients(cfg),
        *fused_updates(cfg),
        *for_the_verb(cfg, verb),
        *misplaced(cfg),
    ]
    named = {problem.key for problem in values}
    wrong = {problem.key.split(".")[0] for problem in (*values, *problems)}
    for name, child in nodes.children(cfg):
        problems += [] if name in wrong else refused(child, name)
    problems = [*values, *(problem for problem in problems if problem.key not in named)]  # one for a key is enough
    problems = [*nodes.unresolved(cfg, consequences=not problems), *problems]
    problems = [replace(problem, nearest=MOVED_KEYS.get(problem.key, problem.nearest)) for problem in problems]
    for i, problem in enumerate(problems):  # with the file of the option that was chosen for the key's group
        group = problem.key.split(".")[0]
        option = known.get(group, {}).get(str(hydra.runtime.choices.get(group)))
        problems[i] = replace(problem, file=problem.file or (shown_path(option) if option else None))
    return without_repeats(problems)


def require_valid(cfg: DictConfig) -> None:
    """Refuses a configuration with problems; the `UserError` lists all of them."""
    if problems := validate(cfg):
        raise UserError(problem_report(problems))


def _usual(hydra: Any, known: KnownGroups) -> DictConfig | None:
    """The configuration that the chosen files alone give, without overrides and without files that may set any key."""
    words = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    for group, name in hydra.runtime.choices.items():
        if name in known.get(group, {}) and not group.startswith("hydra/") and not known[group][name].anywhere:
            words.append(f"{group}={name}")
    main = next((source.path for source in hydra.runtime.config_sources if source.provider == "main"), None)
    return _composed_once(hydra.job.config_name, tuple(words), Path(main) if main else None)


@lru_cache(maxsize=64)
def _composed_once(name: str, overrides: tuple[str, ...], main: Path | None) -> DictConfig | None:
    try:
        with composed(name, overrides, main) as cfg:
            return cfg
    except (HydraException, OmegaConfBaseException):
        return None


def misplaced(cfg: DictConfig) -> list[Problem]:
    """A cell that would lie outside the output folder."""
    paths = (nodes.value_or_none(cfg.paths) if "paths" in cfg else None) or {}
    try:
        if {"cell", "output"} <= paths.keys():
            require_inside(Path(str(paths["cell"])), Path(str(paths["output"])))
    except UserError as error:
        return [Problem("study", str(error), nodes.value_or_none(cfg._get_node("study")))]
    return []


def absent(cfg: DictConfig, choices: Mapping[str, Any]) -> list[Problem]:
    """Groups that every cell needs and that were switched off, or whose option names no class."""
    problems = []
    for group in NEEDED:
        if group in choices and cfg.get(group) is None:
            problems.append(Problem(group, f"a cell needs one; choose {group}=OPTION, see posegen list {group}", None))
        elif group in CLASSES and isinstance(cfg.get(group), DictConfig) and not nodes.has_target(cfg[group]):
            text = f"names no class; a line _target_: MODULE.CLASS is missing in the option {choices.get(group)}"
            problems.append(Problem(group, text))
    return problems


def missing_files(cfg: DictConfig) -> list[Problem]:
    """Files and folders to read that are not there."""
    named = {key: leaf for key, leaf in nodes.leaf_nodes(cfg) if INPUT.search(key) and not OUTPUT.search(key)}
    targets = {key: nodes.value_or_none(node._get_node("_target_")) for key, node in nodes.target_nodes(cfg)}
    hydras = {key for key, target in targets.items() if str(target).startswith("hydra.utils.")}  # a name, not a file
    files = {key: leaf for key, leaf in named.items() if key.rpartition(".")[0] not in hydras}
    values = {key: nodes.value_or_none(leaf) for key, leaf in files.items() if not leaf._is_missing()}
    return [
        Problem(key, "no such file or folder" + _recipe_of(value), value)
        for key, value in values.items()
        if isinstance(value, str) and value and not (ELSEWHERE.match(value) or Path(value).expanduser().exists())
    ]


def _recipe_of(path: str) -> str:
    """Where it is written how a part of the package that has not been trained yet is trained."""
    if not path.startswith(asset("")):
        return ""
    world = Path(path).parent.name.replace("-", "_")
    return f"; this posegen does not ship it: experiments/{world}/README.md says how it is trained and put there"


def needs_all_gradients(cfg: DictConfig) -> list[Problem]:
    """What ``optim.in_backward`` cannot be combined with: whatever reads a gradient after the backward pass."""
    optim, trainer = cfg.get("optim") or {}, cfg.get("trainer") or {}
    if optim.get("in_backward") is not True:
        return []
    clips = trainer.get("gradient_clip_val") is not None
    compiled = (cfg.get("compute") or {}).get("compile") is True
    several = [key for key in ("devices", "num_nodes") if trainer.get(key, 1) != 1]
    met = {
        "trainer.accumulate_grad_batches=1 (optim.accumulate)": trainer.get("accumulate_grad_batches", 1) != 1,
        "trainer=default on one device": bool(several) or trainer.get("strategy", "auto") != "auto",
        "trainer.precision=bf16-mixed or 32-true": trainer.get("precision") == "16-mixed",
        "trainer.gradient_clip_algorithm=norm": trainer.get("gradient_clip_algorithm") == "value",
        "optim.clip=null, or compute.compile=false (its second backward pass is not compiled)": clips and compiled,
    }
    fix = "; ".join(need for need, violated in met.items() if violated)
    text = f"uses each gradient before the others are there, which needs {fix}; or set optim.in_backward=false"
    return [Problem("optim.in_backward", text, True)] if fix else []


def fused_updates(cfg: DictConfig) -> list[Problem]:
    """What ``optim.fused`` cannot be combined with."""
    optim, trainer = cfg.get("optim") or {}, cfg.get("trainer") or {}
    if optim.get("fused") is not True:
        return []
    if (optimizer := optim.get("optimizer")) != "adamw":
        return [Problem("optim.fused", f"is a form of AdamW, not of {optimizer}; set optim.fused=false", True)]
    if trainer.get("precision") == "16-mixed" and trainer.get("gradient_clip_val") is not None:
        text = "scales gradients back after they are clipped; set optim.fused=false, or trainer.precision=bf16-mixed"
        return [Problem("optim.fused", text, True)]
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
    problems, adapter, backbone = [], class_of(cfg, "adapter"), class_of(cfg, "backbone")
    makes, paints = getattr(adapter, "sample", None), getattr(backbone, "sample", None)
    if makes and paints and makes != paints:
        text = f"{adapter.__name__} generates {makes}s, {backbone.__name__} {paints}s"
        problems.append(Problem("backbone", f"{text}; choose another adapter= or backbone="))
    scheduler = (nodes.value_or_none(cfg.get("sampler")) or {}).get("scheduler") if "sampler" in cfg else None
    if scheduler and getattr(backbone, "flow", False) and not str(scheduler).startswith("FlowMatch"):
        text = f"does not fit {backbone.__name__}, which is trained by flow matching; choose sampler=flow"
        problems.append(Problem("sampler.scheduler", text, scheduler))
    given = any(
        cfg.get(key) is not None for key in ("prompt", "prompts", "source")
    )  # then no data set has to bring a source
    needs: Collection[str] = fields_read(cfg) - ({"source"} if given else set())
    # Fields of a batch that only some data sets have -> (method that brings it, its description).
    second = {
        "twins": ("twin", "a second image of each caption"),
        "source": ("source_of", "another image of each person"),
    }
    factor, packs = _latent_factor(cfg.get("backbone")), getattr(backbone, "packs", 1)
    for split, node in nodes.children(cfg.get("data")):
        data: Any = locate(nodes.target_path(node)) if nodes.has_target(node) else None
        used = isinstance(data, type) and split in ("train", "validation", "test")  # others are only looked at
        for field, (method, image) in second.items() if used else ():
            owner = next((cls for cls in data.__mro__ if method in vars(cls)), object)
            inherited = owner.__name__ == "PoseData" and owner.__module__.startswith("posegen")
            if field in needs and inherited:
                text = f"{adapter.__name__} needs {image}, which {data.__name__} does not have; choose another data="
                problems.append(Problem(f"data.{split}", text))
        problems += _sizes(f"data.{split}", node, factor, packs)
    for _, cls in methods_in(cfg):
        if hasattr(cls, "unserved") and isinstance(backbone, type) and (reason := cls.unserved(backbone)):
            problems.append(Problem("backbone", reason))
    if hasattr(loss := class_of(cfg, "loss"), "unserved"):
        reason = loss.unserved(class_of(cfg, "task"), backbone, class_of(cfg.loss, "teacher"))
        problems += [Problem("loss", reason)] if reason else []
    return problems


def methods_in(cfg: DictConfig) -> list[tuple[DictConfig, Any]]:
    """(node, class) of the configured method, or of each of its parts."""
    node = cfg.get("adapter")
    parts = [part for _, part in nodes.children(node.get("methods"))] if nodes.has_target(node) else []
    inside = [(part, locate(nodes.target_path(part))) for part in parts if nodes.has_target(part)]
    return inside or [(node, class_of(cfg, "adapter"))]


def fields_read(cfg: DictConfig) -> set[str]:
    """The fields of a batch that the method reads, with its settings where its constructor can be called."""
    found = set[str]()
    for node, cls in methods_in(cfg):
        given = (nodes.value_or_none(node) or {}) if nodes.has_target(node) and _checkable(node) else {}
        try:
            found |= set(instantiate(without_declared(given), _convert_="all").reads)
        except Exception:  # `refused` tells why; a method may be abroad
            found |= set(getattr(cls, "needs", ()))
    return found


def for_the_verb(cfg: DictConfig, verb: str) -> list[Problem]:
    """Choices that one verb cannot run: a protocol that judges something else, a transfer without a source."""
    if verb == "transfer" and not any("source" in getattr(cls, "needs", ("source",)) for _, cls in methods_in(cfg)):
        text = "reads no picture to take clothes from; choose a method that does, for instance adapter=dnaf"
        return [Problem("adapter", text, cfg.get("method"))]
    generated, judged = (getattr(class_of(cfg, group), "sample", None) for group in ("backbone", "protocol"))
    if verb in ("evaluate", "benchmark") and generated and judged and generated != judged:
        text = f"it judges {judged}s and the backbone generates {generated}s; choose another protocol="
        return [Problem("protocol", text)]
    return []


def refused(node: Any, key: str = "") -> list[Problem]:
    """What constructors refuse: arguments that are fine alone and wrong together, files that do not fit.

    They are called where the class says that this loads nothing (`checkable`), and the same of all classes inside.
    """
    inside = list(nodes.target_nodes(node, key))
    if not nodes.has_target(node) or not all(_checkable(each) for _, each in inside):
        children = nodes.children(node) if inside else ()
        return [problem for name, child in children for problem in refused(child, nodes.dotted(key, name))]
    given = nodes.value_or_none(node) or {}  # of missing values `unresolved` tells
    try:
        instantiate(without_declared(given), _convert_="all")
    except Exception as error:  # of foreign classes, too
        while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        return [Problem("" if f"{key.split('.')[0]}." in str(error) else key, f"{kind}{error}")]
    return []


def without_declared(values: Any) -> Any:
    """A node and those inside it without the settings that their classes declare as attributes."""
    if isinstance(values, list):
        return [without_declared(value) for value in values]
    if not isinstance(values, Mapping):
        return values
    declared = getattr(locate(values["_target_"]), "declared", ()) if "_target_" in values else ()
    return {name: without_declared(value) for name, value in values.items() if name not in declared}


def _checkable(node: DictConfig) -> bool:
    target = locate(nodes.target_path(node))
    return not node.get("_partial_") and getattr(target, "checkable", False)


def _sizes(key: str, data: Any, factor: int | None, packs: int) -> list[Problem]:
    """Image sizes that are no multiple of the backbone's latent factor, for whole squares of ``packs`` cells."""
    size = (nodes.value_or_none(data) or {}).get("size") if nodes.has_target(data) else None
    given = size if isinstance(size, list | tuple) else [size]
    sides = [side for side in given if isinstance(side, int)]
    step = (factor or 0) * packs
    if not step or all(side % step == 0 for side in sides):
        return []
    right, tokens = [max(step, side // step * step) for side in sides], f" times its patches of {packs} cells"
    multiple = f"a multiple of the backbone's latent factor {factor}{tokens if packs > 1 else ''}"
    text = f"expected {multiple}, such as {right if right[1:] else right[0]}"
    return [Problem(f"{key}.size", text, size)]


def _latent_factor(node: Any) -> int | None:
    """Pixels per latent cell of a backbone in diffusers' layout; None where its autoencoder is not at hand."""
    values = nodes.value_or_none(node) if isinstance(node, DictConfig) else None
    places = [Path(str(values[key])).expanduser() for key in ("autoencoder", "path") if values and values.get(key)]
    for file in (place / name for place in places for name in ("vae/config.json", "config.json")):
        if file.is_file():
            config = read_json_or_empty(file)  # a damaged one is reported where the weights are read
            widths = config.get("encoder_block_out_channels") or config.get("block_out_channels")
            if isinstance(widths, list) and widths:
                return 2 ** (len(widths) - 1)
    return None
