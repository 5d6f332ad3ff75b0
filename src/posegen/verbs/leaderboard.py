"""Write a page that compares recorded studies, from their records alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from posegen.io.atomic import write_text
from posegen.report.recorded.leaderboard import Leaderboard, study_folders


def main(cfg: DictConfig) -> None:
    """Writes the page of ``folders``, and names the studies that are left out."""
    with TemporaryDirectory(prefix="posegen-") as place:
        board = Leaderboard(Path(place))
        for folder in study_folders(cfg.folders):
            board.add(folder)
        write_text(Path(cfg.target), board.page())
    for left, reason in board.left_out.items():
        print(f"left out: {left}: {reason}")
    print(f"{cfg.target}: {len(board.studies)} studies, {len(board.plans)} tables")
