"""A given checkpoint brings the arguments that it was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from posegen.runner.cell import identity
from posegen.runner.components import Components
from posegen.runner.experiment import with_checkpoint
from posegen.runner.method_folder import save_method
from tests.tiny import configured


@pytest.fixture(scope="module")
def humansd_style(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A method folder of ControlNet that learned from skeletons in another style than the usual one."""
    folder = tmp_path_factory.mktemp("trained") / "method"
    with configured("train", *world, "adapter=controlnet", "adapter.style=humansd") as cfg:
        parts = Components(cfg)
        save_method(folder, parts.adapter, parts.backbone)
    return folder


@pytest.mark.parametrize(
    ("typed", "style", "strength", "said"),
    [
        ([], "humansd", 1.0, "adapter.style=humansd; used is that, not openpose"),
        (["adapter.style=openpose"], "openpose", 1.0, "adapter.style=humansd; used is the command line's openpose"),
        (["adapter.strength=0.5"], "humansd", 0.5, "adapter.strength=1.0; used is the command line's 0.5"),
        (["adapter.style=humansd"], "humansd", 1.0, ""),
        (["adapter=ablation/controlnet_humansd"], "humansd", 1.0, ""),
        (["+adapter.faithful=true"], "humansd", 1.0, "adapter.faithful=false; used is that"),
    ],
)
def test_arguments_of_the_folder_are_used_unless_typed(
    world: list[str],
    humansd_style: Path,
    typed: list[str],
    style: str,
    strength: float,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["adapter=controlnet"] if not any(word.startswith("adapter=") for word in typed) else []
    with configured("evaluate", *world, *words, *typed, f"checkpoint={humansd_style}") as cfg:
        found = with_checkpoint(cfg)
        assert (found.adapter.style, found.adapter.strength) == (style, strength)
        printed = capsys.readouterr().out
        assert (f"{humansd_style} was trained with {said}" in printed) if said else not printed
        same = style == cfg.adapter.style
        assert (identity(found)["adapter"] == identity(cfg)["adapter"]) == same, (
            "the picture's settings are its identity"
        )
