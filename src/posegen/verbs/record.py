"""Record a benchmark for others: records, table and pictures of it, in a small folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from posegen.report.recorded.files import RECORDS, STUDY, TABLE, record_study
from posegen.report.recorded.pictures import write_pictures
from posegen.report.study import benchmark_folders


def main(cfg: DictConfig) -> None:
    """Writes the recorded study of each of ``folders`` to ``target``, of several to a folder in it by their names."""
    folders = benchmark_folders("record", cfg.folders)
    for folder in folders:
        target = Path(cfg.target) / folder.resolve().name if folders[1:] else Path(cfg.target)
        table = record_study(folder, target)
        pictures = write_pictures(table, target, list(cfg.showcase))
        print("\n".join(map(str, [target / RECORDS, target / STUDY, target / TABLE, *pictures])))
        if not pictures:
            print(f"no pictures: the cells of {folder} have no samples")
