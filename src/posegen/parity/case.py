"""A reference case: what an official implementation was given, and what it returned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from posegen.runner.errors import UserError


@dataclass(frozen=True)
class Case:
    """One folder with ``case.json``, ``io.safetensors`` and, where the method has weights, ``weights.safetensors``.

    Attributes:
        folder: where it lies.
        facts: the content of ``case.json``.
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
        """The case in ``folder``.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "io.safetensors")
            weights = load_file(folder / "weights.safetensors") if (folder / "weights.safetensors").exists() else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} is no reference case ({error}); expected case.json and io.safetensors, with weights.safetensors beside them") from error
        if missing := {"method", "module", "config"} - facts.keys():
            raise UserError(f"{folder / 'case.json'} does not say {', '.join(sorted(missing))}; a reference case names its method, module and config")
        parts = {kind: {key.removeprefix(f"{kind}."): value for key, value in tensors.items() if key.startswith(f"{kind}.")} for kind in ("in", "mid", "out")}
        single = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
        return cls(folder, facts, single, parts["in"], parts["mid"], parts["out"])

    @property
    def name(self) -> str:
        return self.folder.name

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
