"""posegen: pose-guided human image generation, compared fairly."""

from typing import Any

__all__ = ["PoseGuidedPipeline"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline, and torch with it, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("posegen.pipeline"), name)
