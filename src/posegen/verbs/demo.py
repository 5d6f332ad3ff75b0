"""Compare methods in the browser: drag a pose, see every method draw it."""

from __future__ import annotations

from omegaconf import DictConfig

from posegen.demo import page
from posegen.demo.session import DemoSession
from posegen.errors import UserError


def main(cfg: DictConfig) -> None:
    if page.gr is None:
        raise UserError("the page needs gradio, which is not installed; install it with: pip install 'posegen[demo]'")
    if cfg.port is not None and not 1 <= int(cfg.port) < 2**16:
        raise UserError(f"port={cfg.port}: expected a number from 1 to 65535, or null for the first free one")
    session = DemoSession(cfg)
    session.loaded.methods()  # names a checkpoint that cannot be used before anything is served
    page.serve(session, cfg.port, bool(cfg.open))
