"""The page of the Python interface: signatures, fields and docstrings of the classes that readers use or extend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from hydra.utils import get_object
from reference import docstring, fenced

#: Section of the page -> its first sentence, and its classes in the order that a reader meets them.
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Generate": (
        "A trained or converted method for users of diffusers.",
        ("posegen.PoseGuidedPipeline",),
    ),
    "Methods": (
        "What a method subclasses and returns: [add your method](add-your-method.md).",
        (
            "posegen.adapters.base.Adapter",
            "posegen.adapters.base.State",
            "posegen.backbones.base.Injection",
            "posegen.adapters.base.Paper",
            "posegen.adapters.base.Published",
            "posegen.poses.drawing.PoseDrawing",
        ),
    ),
    "Backbones": (
        "What a method may ask of a backbone, and what a new family of backbones implements.",
        (
            "posegen.backbones.base.Backbone",
            "posegen.backbones.base.Geometry",
            "posegen.backbones.base.ControlBranch",
            "posegen.backbones.base.Step",
            "posegen.backbones.text.Text",
            "posegen.backbones.process.NoiseProcess",
        ),
    ),
    "Data": (
        "What a data set subclasses, and the batches that methods get: [bring your data](bring-your-data.md).",
        (
            "posegen.data.base.PoseData",
            "posegen.data.base.Sample",
            "posegen.data.base.PoseBatch",
            "posegen.data.on_disk.source.Source",
        ),
    ),
    "Judges and metrics": (
        "What finds poses in images, and what makes columns of them: [metrics](metrics.md#add-a-metric).",
        (
            "posegen.metrics.base.Estimator",
            "posegen.metrics.base.Poses",
            "posegen.metrics.base.Findings",
            "posegen.metrics.base.Metric",
            "posegen.metrics.base.Column",
            "posegen.metrics.base.Judged",
            "posegen.metrics.base.Observer",
        ),
    ),
    "Errors": ("What bad input raises.", ("posegen.errors.UserError",)),
}


def pages() -> dict[str, str]:
    parts = ["# Python interface", "Signatures and descriptions come from the code of this version."]
    for title, (about, names) in SECTIONS.items():
        parts += [f"## {title}", about]
        for name in names:
            parts += class_parts(name, get_object(name))
    return {"api.md": "\n\n".join(parts) + "\n"}


def class_parts(path: str, cls: type) -> Iterator[str]:
    """A class: how it is imported and called, its docstring, fields and public methods."""
    yield f"### {cls.__name__}"
    module, _, name = path.rpartition(".")
    yield fenced("python", f"from {module} import {name}")
    if not inspect.isabstract(cls) and not issubclass(cls, Exception):
        yield fenced("python", signature(cls.__name__, cls))
    yield docstring(cls.__doc__ or "")
    if fields := fields_of(cls):
        yield fenced("python", fields)
    for name, member in vars(cls).items():
        if (function := called(member)) and (name == "__call__" or not name.startswith("_")):
            yield from member_parts(f"{cls.__name__}.{name}", member, function)


def member_parts(name: str, member: Any, function: Callable[..., Any]) -> Iterator[str]:
    """A method or property."""
    yield f"#### `{name}`"
    short = name.rpartition(".")[2]
    if isinstance(member, property):
        result = inspect.signature(function).return_annotation
        yield fenced("python", short if result is inspect.Signature.empty else f"{short}: {result}")
    else:
        kind = "@classmethod\n" * isinstance(member, classmethod) + "@staticmethod\n" * isinstance(member, staticmethod)
        yield fenced("python", kind + signature(short, function))
    if getattr(function, "__isabstractmethod__", False):
        yield "To be implemented."
    if function.__doc__:
        yield docstring(function.__doc__)


def called(member: Any) -> Callable[..., Any] | None:
    """The function of a method, property, class method or static method; None for anything else."""
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return member if inspect.isfunction(member) else None


class Written(str):
    """An annotation as the code writes it, which `inspect` would print in quotes."""

    __repr__ = str.__str__


def signature(name: str, call: Callable[..., Any]) -> str:
    """``name(arguments) -> result``, with an argument per line where one line is too long."""
    found = inspect.signature(call)
    kept = [written(p) for p in found.parameters.values() if p.name not in ("self", "cls")]
    result = "" if found.return_annotation is inspect.Signature.empty else f" -> {found.return_annotation}"
    arguments = str(inspect.Signature(kept))
    if len(name + arguments + result) > 100:
        arguments = "(\n" + "".join(f"    {each},\n" for each in starred(kept)) + ")"
    return name + arguments + result


def written(parameter: inspect.Parameter) -> inspect.Parameter:
    named = isinstance(parameter.annotation, str)
    return parameter.replace(annotation=Written(parameter.annotation)) if named else parameter


def starred(kept: list[inspect.Parameter]) -> Iterator[str]:
    """The arguments, with ``*`` before the first that is given by name alone."""
    kinds = [parameter.kind for parameter in kept]
    for place, parameter in enumerate(kept):
        before = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL} & set(kinds[:place])
        if parameter.kind is parameter.KEYWORD_ONLY and not before:
            yield "*"
        yield str(parameter)


def fields_of(cls: type) -> str:
    """The fields of a class as its source has them, with their comments."""
    body = inspect.getsource(cls)
    if cls.__doc__:
        body = body.replace(cls.__doc__, "", 1)
    head = re.split(r"^    (?:def |@)", body, maxsplit=1, flags=re.MULTILINE)[0]
    lines = re.findall(r"^    (?:#: .*|[a-z_]\w*: .*|[a-z_]\w* = .*)$", head, re.MULTILINE)
    return "\n".join(line.removeprefix("    ") for line in lines if not re.match(r"    _", line))
