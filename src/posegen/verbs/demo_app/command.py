"""The verb ``posegen demo``."""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig

from posegen.errors import UserError


def demo(cfg: DictConfig) -> None:
    """Serves the page until it is interrupted.

    Raises:
        UserError: gradio is not installed, or the configuration or a named checkpoint cannot be used.
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed; install it with: pip install 'posegen[demo]'")
    if cfg.port is not None and not 1 <= int(cfg.port) < 2**16:
        raise UserError(f"port={cfg.port}: expected a number from 1 to 65535, or null for the first free one")
    from posegen.verbs.demo_app.session import Studio

    studio = Studio(cfg)
    studio.shelf.methods()  # a checkpoint that cannot be used is said before anything is served
    from posegen.verbs.demo_app.page import serve

    serve(studio, cfg.port, bool(cfg.open))
