"""Pages that the code tells: one per method, one per group of options, one of commands. A new yaml gets its place by
being there."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class, get_object
from omegaconf import OmegaConf

from posegen.adapters.base import Adapter, Paper
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.config import groups as listing
from posegen.config import nodes
from posegen.config.checking.settings import settings
from posegen.config.compose import composed
from posegen.config.groups import Option
from posegen.config.problems import as_typed
from posegen.config.verb_files import verbs
from posegen.runner.components import Components

#: The group -> the title of its page, in the order that readers need them. A group that is not here comes last and is
#: called by its name.
GROUPS = {
    "data": "Data sets",
    "backbone": "Backbones",
    "protocol": "Protocols",
    "benchmark": "Benchmarks",
    "estimator": "Judges",
    "sampler": "Samplers",
    "trainer": "Trainers (Lightning)",
    "callbacks": "Callbacks (Lightning)",
    "budget": "Budgets",
    "compute": "Memory and speed",
    "optim": "Optimisers",
    "logger": "Loggers (Lightning)",
    "task": "Tasks",
    "loss": "Losses beside a method's own",
    "prior": "Priors",
    "experiment": "Experiments",
    "hydra/launcher": "Launchers",
    "hydra/sweeper": "Sweepers",
}

#: What a method generates -> the shipped backbone that its weights are counted on, and that of those for transformers.
SMALL, SMALL_TRANSFORMER = {"image": "mannequin", "pose": "mannequin_pose"}, "mannequin_dit"

#: A field of a batch -> what a method that needs it is given.
FIELDS = {
    "hint": "the drawn skeleton",
    "images": "the real image",
    "twins": "other images of the same caption",
    "source": "a picture of the same person in another pose",
    "population": "all samples of a split, without their images",
    "keypoints": "the joints themselves",
}


def pages() -> dict[str, str]:
    """Path of a page -> its markdown."""
    found = listing.groups()
    made = {
        "methods/index.md": method_index(found["adapter"]),
        "methods/reference.md": reference_rows(found["adapter"]),
    }
    for name, option in methods(found["adapter"]):
        made[f"methods/{name}.md"] = method_page(option, ablations(option, found["adapter"]))
    made["options/commands.md"] = commands()
    for group in shown_groups(found):
        made[page_of(group)] = group_page(group, found[group])
    return made


def shown_groups(found: Collection[str]) -> list[str]:
    """The groups that have a page: all but methods, which have their own, and what Hydra needs for itself."""
    rest = [group for group in found if group not in (*GROUPS, "adapter") and not group.startswith("hydra/")]
    return [*(group for group in GROUPS if group in found), *rest]


def page_of(group: str) -> str:
    return f"options/{group.removeprefix('hydra/')}.md"


# Methods.


def methods(options: dict[str, Option]) -> Iterator[tuple[str, Option]]:
    """The methods: every option of ``adapter`` in no folder."""
    return ((name, option) for name, option in options.items() if "/" not in name)


def ablations(method: Option, options: dict[str, Option]) -> list[Option]:
    """Options that are the method's class with other settings."""
    return [
        option for name, option in options.items() if name.startswith("ablation/") and option.target == method.target
    ]


def class_of(option: Option) -> type[Adapter]:
    return get_class(option.target or "")


def method_index(options: dict[str, Option]) -> str:
    """A table of all methods."""
    lines = ["# Methods", "", "Each page is generated from the method's code and yaml.", ""]
    lines += ["| `adapter=` | Method | Paper | Official program |", "|---|---|---|---|"]
    for name, option in methods(options):
        paper = class_of(option).paper
        lines.append(f"| [`{name}`]({name}.md) | {option.summary} | {link(paper)} | {program(paper)} |")
    lines += [
        "",
        "Rows that bound the methods and are not ranked: [reference rows](reference.md). Yours: [add your "
        "method](../add-your-method.md).",
    ]
    return "\n".join(lines) + "\n"


def method_page(option: Option, variants: Sequence[Option]) -> str:
    """All facts of a method."""
    cls = class_of(option)
    parts = [
        f"# {cls.__name__}",
        f"{option.summary}.",
        f"```bash\nposegen train adapter={option.name}{suited(cls)}\n```",
        docstring(cls.__doc__ or ""),
        "## Facts",
        facts(cls),
        "## What trains",
        what_trains(option, cls),
        "## Settings",
        f"`adapter.KEY=VALUE`; `{shown(option.file)}`:\n\n{yaml_of(option)}",
        settings_table(option),
    ]
    for variant in variants:
        parts += [f"### {variant.name}", f"{variant.summary}.", yaml_of(variant)]
    if published := published_rows(cls.paper):
        parts += ["## Published numbers", published]
    return "\n\n".join(parts) + "\n"


def small(cls: type[Adapter]) -> str:
    """The shipped backbone that serves the method."""
    return SMALL_TRANSFORMER if cls.sample == "image" and cls.unserved(StableDiffusion) else SMALL[cls.sample]


def suited(cls: type[Adapter]) -> str:
    """Overrides that the method needs on the shipped world."""
    other = f" backbone={small(cls)}" if small(cls) != SMALL["image"] else ""
    return other + " data=mannequin_pairs" * ("source" in cls.needs)


def facts(cls: type[Adapter]) -> str:
    """The class facts as a list."""
    paper = cls.paper
    rows = {
        "Paper": f"{paper.title}, {link(paper)}" if paper.id else paper.title,
        "Official program": program(paper),
        "Licence": paper.licence,
        "Official weights": "[where they are](../what-to-fetch.md#weights-of-methods)"
        if cls.convert is not Adapter.convert
        else "",
        "Needs": "; ".join(
            f"`{field}`, {FIELDS[field]}" if field in FIELDS else f"`{field}`" for field in sorted(cls.needs)
        )
        or "the prompt alone",
        "Generates": f"a{'n' * (cls.sample == 'image')} {cls.sample}",
        "Before training": "the backbone's predictions are unchanged"
        if cls.starts_neutral
        else "the backbone's predictions are changed",
        "Source": f"`{shown(Path(inspect.getfile(cls)))}`",
    }
    beside: dict[str, list[str]] = {}
    for key, why in cls.beside.items():
        beside.setdefault(why, []).append(f"`{key}`")
    left_out = [f"- Left out of official files: {why} ({', '.join(keys)})" for why, keys in beside.items()]
    return "\n".join([f"- {key}: {value}" for key, value in rows.items() if value] + left_out)


def what_trains(option: Option, cls: type[Adapter]) -> str:
    """A table of the modules with weights that train on the shipped backbone."""
    with composed("train", (f"adapter={option.name}", *suited(cls).split())) as cfg:
        parts = Components(cfg)
        networks = {"adapter": parts.adapter, "backbone": parts.backbone}
        counted: Counter[tuple[str, str]] = Counter()
        for owner, network in networks.items():
            for name, weight in network.named_parameters():
                counted[(owner, name.split(".")[0])] += weight.numel() * weight.requires_grad
    trained = {key: count for key, count in counted.items() if count}
    if not trained:
        return "Nothing."
    rows = [f"| `{owner}.{module}` | {count:,} |" for (owner, module), count in trained.items()]
    weights = sum(p.numel() for p in networks["backbone"].network.parameters())
    kind = "transformer" if small(cls) == SMALL_TRANSFORMER else "U-Net"
    note = f"On `backbone={small(cls)}`, whose {kind} has {weights:,} weights:"
    return "\n".join([note, "", "| Module | Weights that train |", "|---|---|", *rows])


def published_rows(paper: Paper) -> str:
    """Published numbers of the method with their sources."""
    rows = [f"| {row.data} | {row.metric} | {row.value:g} | {row.source} |" for row in paper.published if row.read]
    return "\n".join(["| Data | Metric | Value | Source |", "|---|---|---|---|", *rows]) if rows else ""


def reference_rows(options: dict[str, Option]) -> str:
    """Rows that are never trained and never ranked."""
    parts = ["# Reference rows", "They bound the methods: they are swept with them and are not ranked."]
    for name, option in options.items():
        if name.startswith("reference/"):
            parts += [f"## {name}", f"{option.summary}.", docstring(class_of(option).__doc__ or ""), yaml_of(option)]
    return "\n\n".join(parts) + "\n"


def link(paper: Paper) -> str:
    """The paper's id, as a link where it is one of arXiv or openreview."""
    number = paper.id.removeprefix("arXiv:")
    if number != paper.id:
        return f"[{paper.id}](https://arxiv.org/abs/{number})"
    return re.sub(r"openreview\.net/\S+", r"[openreview](https://\g<0>)", paper.id)


def program(paper: Paper) -> str:
    """The official program ``owner/name@commit (a note)`` as a link to that commit on GitHub; empty without one."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w+))?(.*)", paper.code)
    if not match:
        return paper.code
    name, commit, note = match.groups()
    address = f"https://github.com/{name}" + (f"/tree/{commit}" if commit else "")
    return f"[{name}{commit and f'@{commit}'}]({address}){note}"


# Options.


def group_page(group: str, options: dict[str, Option]) -> str:
    """Every option of a group with its comments."""
    parts = [
        f"# {GROUPS.get(group, group)}",
        f"`{group}=NAME` on the command line; `posegen list {group}` prints this list.",
    ]
    for name, option in options.items():
        parts += [f"## {name}", f"{option.summary}."]
        parts += filter(None, map(docstring, class_docs(option)))
        parts += [yaml_of(option), settings_table(option)]
    return "\n\n".join(parts) + "\n"


def class_docs(option: Option) -> list[str]:
    """The docstring of what an option builds: of its own class, or of the source that its splits read, with that of
    its module, which shows the layout."""
    targets = re.findall(r"_target_:\s*([\w.]+)", option.file.read_text(encoding="utf-8"))
    sources = re.findall(r"source:[^\n]*?(?:\n\s+)?_target_:\s*([\w.]+)", option.file.read_text(encoding="utf-8"))
    data = option.group == "data"
    for target in (*sources, *([option.target] if option.target else []), *(targets if data else [])):
        if target.startswith("posegen."):
            built = get_object(target)
            cls = getattr(built, "__self__", built)
            if isinstance(cls, type):
                return [*[inspect.getdoc(inspect.getmodule(cls)) or ""] * data, inspect.getdoc(cls) or ""]
    return []


def commands() -> str:
    """Every verb with the examples of its help."""
    parts = ["# Commands", "`posegen VERB --help` prints the same, with all keys."]
    for verb, about in verbs().items():
        parts += [f"## {verb}", f"{about.summary}."]
        node = yaml.safe_load((listing.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8"))
        parts.append(fenced("text", node["hydra"]["help"]["header"].strip()))
        parts.append(table_of(Option(verb, verb, listing.conf_dir() / f"{verb}.yaml"), verb, everywhere=True))
    return "\n\n".join(parts) + "\n"


def settings_table(option: Option) -> str:
    """The settings of an option with what each may hold, which is what `posegen check` compares them with."""
    if option.group.startswith("hydra/"):
        return ""
    verb = {"benchmark": "benchmark", "prior": "sample"}.get(option.group, "train")
    return table_of(option, verb, everywhere=option.anywhere)


def table_of(option: Option, verb: str, everywhere: bool) -> str:
    """A table of the keys in a file; those that nothing describes, and those of further splits, are left out."""
    node: Any = OmegaConf.load(option.file)
    plain = {key: node._get_node(key) for key in node if key not in ("defaults", "hydra", "positional")}
    cfg = OmegaConf.create(plain if everywhere else {option.group: plain})
    rows: dict[tuple[str, str], str] = {}
    for setting in settings(cfg, verb):
        value = f"`{as_typed(nodes.raw_value(cfg, setting.key))}`"
        alike = re.sub(r"^data\.(train|validation|test)\.", "data.SPLIT.", setting.key)
        if setting.schema:
            rows.setdefault((alike, setting.words), f"| `{setting.key}` | {setting.words} | {value} |")
    heading = ["| Key | Expected | In this file |", "|---|---|---|"]
    return "\n".join([*heading, *rows.values()]) if rows else ""


def yaml_of(option: Option) -> str:
    """An option's file with its comments."""
    return fenced("yaml", option.file.read_text(encoding="utf-8").strip())


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def shown(file: Path) -> str:
    """A file's path from the checkout on."""
    root = listing.conf_dir().parent
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


# Docstrings.


def docstring(text: str) -> str:
    """A class's docstring as markdown: sections of arguments become lists, examples code."""
    made: list[str] = []
    for block in re.split(r"\n(?=(?:Args|Attributes|Raises|Example):+\n)", cleaned(text)):
        heading, _, body = block.partition("\n")
        if not re.fullmatch(r"(Args|Attributes|Raises|Example):+", heading):
            made.append(prose(block))
        elif heading.startswith("Example"):
            made += example(body)
        else:
            made += ["Raises:"] * (heading == "Raises:") + [prose("\n".join(arguments(body)))]
    return "\n\n".join(filter(None, made))


def example(body: str) -> Iterator[str]:
    """An example as a block of code, and the paragraphs behind it that are no Python."""
    paragraphs = re.sub(r"^ {4}", "", body.strip("\n"), flags=re.MULTILINE).split("\n\n")
    code = next(n for n in range(len(paragraphs), 0, -1) if n == 1 or is_python("\n\n".join(paragraphs[:n])))
    yield fenced("python", "\n\n".join(paragraphs[:code]))
    yield prose("\n\n".join(paragraphs[code:]))


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def prose(text: str) -> str:
    """Text of a docstring as markdown; lines of a layout, ``<root>/...``, are code."""
    text = re.sub(r"^(?=<\w+>/)", "    ", text.strip(), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE).replace("``", "`")


def cleaned(text: str) -> str:
    """The docstring without its indentation."""
    first, _, rest = text.strip().partition("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()), default=0)
    return "\n".join([first, *(line[margin:] for line in rest.splitlines())])


def arguments(body: str) -> Iterator[str]:
    """``name: what`` lines as items of a list, with their continuations joined."""
    items: list[str] = []
    for line in body.splitlines():
        if found := re.match(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line):
            items.append(f"- `{found[1]}`: {found[2]}")
        elif line.strip() and items:
            items[-1] += f" {line.strip()}"
    yield from items
