"""A reference case: what an official program was given, and what it returned.

Cases of methods are folders or zip files of tensors. Cases of metrics are single json files: ``kind``, ``inputs``,
``expected`` (what the published program returns), further ``expected_<variant>`` (``corrected``: what a right one
returns) and ``atol``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from posegen.backbones.loading.ldm_keys import below
from posegen.errors import UserError
from posegen.io.json_text import parse_json

FACTS, TENSORS, WEIGHTS = "case.json", "io.safetensors", "weights.safetensors"
METRIC_FACTS = {"kind", "inputs", "expected"}
METRIC_RTOL = 1e-6  # beside the atol of the metric's case
#: The cases that the package ships.
SHIPPED = Path(__file__).parents[1] / "assets" / "parity"


@dataclass(frozen=True)
class Case:
    """``case.json``, ``io.safetensors`` and maybe ``weights.safetensors``; or the json file of a metric."""

    place: Path  # the folder, zip or json file
    facts: Mapping[str, Any]  # the content of the json file
    weights: Mapping[str, Tensor]  # under the official key names, in single precision
    inputs: Mapping[str, Tensor]  # tensors ``in.*`` without that prefix
    mids: Mapping[str, Tensor]  # tensors ``mid.*``, values on the way
    expected: Mapping[str, Tensor]  # tensors ``out.*``, what the official program returned

    @classmethod
    def read(cls, place: Path) -> Case:
        """The case in a folder, a zip file or a json file; a `UserError` where a file is missing or damaged."""
        if place.suffix == ".json":
            return cls._read_metric(place)
        names = (FACTS, TENSORS, WEIGHTS)
        try:
            root = place if place.is_dir() else zipfile.Path(place)
            files = {name: (root / name).read_bytes() for name in names if (root / name).is_file()}
            facts = parse_json(files[FACTS], FACTS)
            if not isinstance(facts, dict):
                raise ValueError(f"{FACTS} holds no object")
            tensors, weights = load(files[TENSORS]), load(files[WEIGHTS]) if WEIGHTS in files else {}
        except (OSError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
            expected = f"expected {FACTS} and {TENSORS}, with {WEIGHTS} beside them"
            raise UserError(f"{place} is no reference case ({error}); {expected}") from error
        if missing := {"method", "module", "config"} - facts.keys():
            text = f"{place / FACTS} does not say {', '.join(sorted(missing))}"
            raise UserError(f"{text}; a reference case names its method, module and config")
        kinds = [below(tensors, prefix) for prefix in ("in.", "mid.", "out.")]
        single = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        return cls(place, facts, single, *kinds)

    @classmethod
    def _read_metric(cls, file: Path) -> Case:
        facts = read_case_json(file)
        if not is_metric_case(facts):
            says = f"a case of a metric says {', '.join(sorted(METRIC_FACTS))}"
            raise UserError(f"{file} is no reference case; {says}, other cases are folders or zip files")
        expected: dict[str, Tensor] = {}
        try:
            for key in (key for key in facts if key.startswith("expected")):
                for name, value in leaves(facts[key], key.removeprefix("expected").removeprefix("_")):
                    expected[name] = torch.tensor(value, dtype=torch.double)
        except (TypeError, ValueError) as error:
            returns = "a metric returns numbers, lists of numbers or tables of them"
            raise UserError(f"{file} is no reference case ({error}); {returns}") from error
        facts = {"rtol": METRIC_RTOL, "atol": 0.0, **facts, "method": "metrics", "module": facts["kind"], "config": {}}
        return cls(file, facts, {}, {}, {}, expected)

    @property
    def name(self) -> str:
        return self.place.name.removesuffix(".json").removesuffix(".zip")

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
        """(relative, absolute) tolerance of an output: under ``tolerances``, that of sampling loops, or the case's."""
        sampling = self.facts.get("sampling", {})
        named = self.facts.get("tolerances", {}).get(output)
        if named is None and output.partition(".")[0] in sampling.get("steps", {}):
            named = sampling.get("tolerance")
        chosen = named or self.facts
        return float(chosen["rtol"]), float(chosen["atol"])


def find_cases(place: Path) -> list[Path]:
    """The cases at or below a folder or file; json files in folders that are no case are passed over."""
    found = [place] if place.is_file() else [file.parent for file in place.rglob(FACTS)]
    if place.is_dir():
        jsons = [file for file in place.rglob("*.json") if file.name != FACTS]
        found += [*place.rglob("*.zip"), *(file for file in jsons if is_metric_case(read_case_json(file)))]
    if not found:
        kinds = f"a folder or zip file with {FACTS} and {TENSORS}, the json file of a metric's case"
        raise UserError(f"{place}: no reference case here; expected {kinds}, or a folder of these")
    return sorted(found)


def read_case_json(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes(), "it")
    except (OSError, UserError) as error:
        raise UserError(f"{file} is no reference case: {error}") from error


def is_metric_case(facts: Any) -> bool:
    return isinstance(facts, dict) and facts.keys() >= METRIC_FACTS


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, number or array of numbers) in nested mappings and lists; null and "nan" are not-a-number."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        for i, value in enumerate(values):
            yield from leaves(value, f"{name}[{i}]")
    else:
        yield name, np.array(values, float).tolist()
