"""The model card of a method folder: what the method is, how it was trained, what it scored, and what its files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from posegen import assets
from posegen.adapters.base import Adapter, Paper
from posegen.backbones.base import Weights
from posegen.io.hashes import file_hashes
from posegen.io.hub import HubPlace
from posegen.runner.received.state_files import read_cell_config

MARK = "<!-- Written by posegen, which writes it again with the next push; without this line it stays as it is. -->"
#: Licences by the names that papers' programs give them -> the Hub's names.
LICENCES = {name.lower(): name.lower() for name in ("Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "GPL-3.0")}

USE = """\
```python
from posegen.pipeline import PoseGuidedPipeline

pipe = PoseGuidedPipeline.from_pretrained("{repo}")
image = pipe("a person on a beach", "pose.json"{source}).images[0]
```"""


def record_of(method: Path, about: Mapping[str, Any], origin: HubPlace | None) -> dict[str, Any]:
    """What ``posegen.json`` keeps about how a method came about; of a cell, from its configuration."""
    kept = {key: about[key] for key in ("converted", "training", "origin") if about.get(key)}
    if training := training_of(method):
        kept["training"] = training
    return {**kept, "origin": str(origin)} if origin else kept


def training_of(method: Path) -> dict[str, Any]:
    """How the method of a cell was trained, from the cell's configuration; empty for another folder."""
    config = read_cell_config(method.parent) if method.name == "method" else {}
    if "optim" not in config:
        return {}
    optim, budget, adapter = config["optim"], config["budget"], config["adapter"]
    own = (adapter.get("recipes") or {}).get(config["backbone"].get("recipe"), {})
    lr = optim["lr"] if optim.get("lr") is not None else own.get("lr")
    return {
        "data": config.get("dataset"),
        "steps": budget.get("steps"),
        "batch": optim.get("batch"),
        "optimizer": optim.get("optimizer"),
        "learning rate": lr,
        "averaging of weights": budget.get("ema"),
        "seed": config["seed"],
        "precision": (config.get("trainer") or {}).get("precision"),
    }


def model_card(
    folder: Path, repo: str, adapter: Adapter, weights: Weights, record: Mapping[str, Any], results: str = ""
) -> str:
    """The text of README.md for a saved pipeline, with the metadata that the Hub reads.

    Args:
        record: ``training``, ``converted`` and ``origin``, as ``posegen.json`` has them.
        results: the row of a table, in Markdown; none for what was not judged here.
    """
    name, paper = type(adapter).__name__, adapter.paper
    base = HubPlace.of(weights.hub["path"]) if "path" in weights.hub else None
    licence, why = licence_of(paper, weights)
    data = ModelCardData(
        library_name="posegen",
        pipeline_tag="text-to-image",
        license=licence,
        license_name=None if licence != "other" else "see-the-card",
        base_model=base.repo if base else None,
        tags=["posegen", "pose-guided-image-generation", "diffusers", name.lower()],
    )
    digest = f"`{weights.id}`, SHA-256 of its weights `{weights.sha256}`"
    body = f"[{base.repo}](https://huggingface.co/{base.repo}) at commit `{base.revision}`" if base else digest
    code = f", official program [{paper.code}](https://github.com/{paper.code.partition('@')[0]})" if paper.code else ""
    about = [f"{name}, a pose-guided image generator: *{paper.title}*, {paper.id}{code}.", f"Backbone: {body}."]
    training = [f"- {key}: {value}" for key, value in (record.get("training") or {}).items() if value is not None]
    if converted := record.get("converted"):
        training = [f"Converted from the official file `{converted.get('file')}`, SHA-256 `{converted.get('sha256')}`."]
    files = sorted(folder.rglob("*.safetensors"))
    hashed = zip(files, file_hashes(files), strict=True)
    hashes = (f"| `{f.relative_to(folder)}` | {f.stat().st_size} | `{sha256}` |" for f, sha256 in hashed)
    parts = {
        "": [
            *about,
            "",
            USE.format(repo=repo, source=', source="person.png"' if "source" in adapter.needs | adapter.reads else ""),
        ],
        "Training": training or ["Not recorded."],
        "Results": [results or "Not judged here."],
        "Licence": [why],
        "Weights": ["| file | bytes | SHA-256 |", "|---|---|---|", *hashes],
    }
    text = "\n\n".join("\n".join([*([f"## {title}", ""] if title else []), *lines]) for title, lines in parts.items())
    return f"---\n{data.to_yaml()}\n---\n{MARK}\n\n# {name} on {weights.id}\n\n{text}\n"


def licence_of(paper: Paper, weights: Weights) -> tuple[str, str]:
    """(the Hub's name of the licence, what is known about it); ``other`` unless it is known of method and backbone."""
    here = "posegen records no licence of the official program, see its repository"
    method = f"Method: {f'{paper.licence}, by its repository' if paper.licence else here}."
    if not weights.hub and (Path(assets.__file__).parent / weights.id).is_dir():
        known = LICENCES.get(paper.licence.lower())
        why = "" if known else " The licence is given as other because that of the method is not known."
        return known or "other", f"{method} Backbone: ships with posegen, Apache-2.0.{why}"
    where = weights.hub.get("path", f"the source of {weights.id}")
    why = "The licence is given as other because trained weights carry the terms of their backbone, too."
    return "other", f"{method} Backbone: see {where}. {why}"
