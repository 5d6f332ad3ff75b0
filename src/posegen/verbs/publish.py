"""Upload a method to the Hugging Face Hub, with a model card."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from posegen.pipeline import PoseGuidedPipeline
from posegen.report.formats import markdown, table_grid
from posegen.report.table import build_table
from posegen.runner.received.state_files import read_cell_config, read_status


def main(cfg: DictConfig) -> None:
    """Publishes the pipeline of ``checkpoint`` as ``repo``; of a judged cell, with its row."""
    place = Path(cfg.checkpoint).expanduser()
    pipe = PoseGuidedPipeline.from_pretrained(place, backbone=cfg.backbone.path)
    settings = {key: cfg[key] for key in ("private", "create_pr", "revision")}
    commit = pipe.push_to_hub(cfg.repo, cfg.message, results=row_of_cell(place), **settings)
    print(f"published {cfg.checkpoint}: {commit.pr_url or commit.commit_url}")


def row_of_cell(place: Path) -> str:
    """The row of a judged cell, or of the cell around a method folder, in Markdown; empty where nothing was judged."""
    cell = place.parent if place.name == "method" else place
    config = read_cell_config(cell)
    if not config or not (cell / "records.csv").is_file():
        return ""
    entry = {"folder": cell.name, "method": config["method"], "seed": config["seed"], "hash": read_status(cell)["hash"]}
    plan = {"title": "", "baseline": None, "protocol": config["protocol"], "cells": [entry]}
    table = build_table(cell.parent, plan=plan)
    data = f"Data: {config.get('dataset')}."
    return "\n\n".join([markdown(table_grid(table)), f"{data} {table.caption}", *table.notes])
