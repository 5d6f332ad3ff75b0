"""A reference case: what an official implementation was given, and what it returned.

Cases of methods are folders of tensors, cases of metrics single json files: ``kind``, ``inputs``, ``expected`` (what the published program returns), further
``expected_<variant>`` (``corrected``: what a right one returns) and ``atol``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from posegen.errors import UserError

METRIC_FACTS = {"kind", "inputs", "expected"}
RTOL = 1e-6  # of metrics, beside their own atol


@dataclass(frozen=True)
class Case:
    """One folder with ``case.json``, ``io.safetensors`` and, where the method has weights, ``weights.safetensors``; or one json file of a metric.

    Attributes:
        folder: where it lies; of a metric's case the file.
        facts: the content of the json file.
        weights: under the official key names, in single precision.
        inputs: tensors ``in.*`` without that prefix.
        mids: tensors ``mid.*``, values on the way.
        expected: tensors ``out.*``, what is to be computed.
    """

    folder: Path
    facts: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    mids: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Case:
        """The case in ``folder``, or in a json file.

        Raises:
            UserError: a file is missing or damaged.
        """
        if folder.is_file():
            return cls._read_metric(folder)
        try:
            facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "io.safetensors")
            weights = load_file(folder / "weights.safetensors") if (folder / "weights.safetensors").exists() else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{folder} is no reference case ({error}); expected case.json and io.safetensors, with weights.safetensors beside them"
            ) from error
        if missing := {"method", "module", "config"} - facts.keys():
            raise UserError(
                f"{folder / 'case.json'} does not say {', '.join(sorted(missing))}; a reference case names its method, module and config"
            )
        parts = {
            kind: {key.removeprefix(f"{kind}."): value for key, value in tensors.items() if key.startswith(f"{kind}.")}
            for kind in ("in", "mid", "out")
        }
        single = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        return cls(folder, facts, single, parts["in"], parts["mid"], parts["out"])

    @classmethod
    def _read_metric(cls, file: Path) -> Case:
        facts = read_json(file)
        if not is_metric(facts):
            raise UserError(
                f"{file} is no reference case; a case of a metric says {', '.join(sorted(METRIC_FACTS))}, other cases are folders"
            )
        groups = {
            key.removeprefix("expected").removeprefix("_"): value
            for key, value in facts.items()
            if key.startswith("expected")
        }
        try:
            expected = {
                name: torch.tensor(value, dtype=torch.double)
                for group, values in groups.items()
                for name, value in leaves(values, group)
            }
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file} is no reference case ({error}); what a metric is to return are numbers, lists of numbers or tables of them"
            ) from error
        facts = {"rtol": RTOL, "atol": 0.0, **facts, "method": "metrics", "module": facts["kind"], "config": {}}
        return cls(file, facts, {}, {}, {}, expected)

    @property
    def name(self) -> str:
        return self.folder.stem if self.folder.suffix == ".json" else self.folder.name

    @property
    def method(self) -> str:
        return self.facts["method"]

    @property
    def module(self) -> str:
        return self.facts["module"]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.facts["config"]

    def tolerance(self, output: str) -> tuple[float, float]:
        """(relative, absolute) for an output: its own, that of sampling loops, or the case's."""
        sampling = self.facts.get("sampling", {})
        own = self.facts.get("tolerances", {}).get(output)
        if own is None and output.partition(".")[0] in sampling.get("steps", {}):
            own = sampling.get("tolerance")
        chosen = own or self.facts
        return float(chosen["rtol"]), float(chosen["atol"])


def read_json(file: Path) -> Any:
    """The content of a json file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no reference case ({error}); expected a json file") from error


def is_metric(facts: Any) -> bool:
    """Whether the content of a json file is a metric's case."""
    return isinstance(facts, dict) and facts.keys() >= METRIC_FACTS


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and arrays of numbers in nested mappings and lists, by the path that leads to them; null and "nan" are not-a-number."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        for i, value in enumerate(values):
            yield from leaves(value, f"{name}[{i}]")
    else:
        yield name, numbers(values)


def numbers(values: Any) -> Any:
    """A number, or nested lists of numbers."""
    if isinstance(values, list):
        return [numbers(value) for value in values]
    return float("nan") if values is None else float(values)
