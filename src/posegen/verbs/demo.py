"""Compare methods in the browser: drag a pose, and every method paints it."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.demo import page
from posegen.demo.session import DemoSession
from posegen.errors import UserError


def main(cfg: DictConfig) -> None:
    if page.gr is None:
        raise UserError("the page needs gradio, which is not installed; install it with: pip install 'posegen[demo]'")
    session = DemoSession(cfg)
    session.loaded.methods()  # names a checkpoint that cannot be used before anything is served
    page.serve(session, cfg.port, bool(cfg.open))
