"""The method of the page on new methods works as the page says: from a package of its own, with nothing edited."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from posegen.cli import main
from tests.docs.blocks import blocks, write_files

PAGE = "add-your-method.md"
COMPOSING = {"train", "evaluate", "benchmark"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [words for block in blocks(PAGE) if block.language == "bash" for words in block.commands], ids=" ".join
)
def test_commands_of_the_page_run(
    words: list[str],
    world: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(list(write_files(PAGE, tmp_path))) == 4
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    program, verb, *rest = words
    assert program == "posegen"
    if verb == "evaluate":
        assert main(["train", *rest, *world]) == 0
    tiny = [*world, "hydra/launcher=serial"] if verb == "benchmark" else world if verb in COMPOSING else []
    assert main([verb, *rest, *tiny]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    if verb == "list":
        assert "Mine: the pose in the middle of the U-Net, backbone frozen  [My method, arXiv:0000.00000]" in said
    if verb == "benchmark":
        (table,) = tmp_path.rglob("table.csv")
        assert {row["method"]: row["state"] for row in csv.DictReader(table.open())} == {
            "mine": "finished",
            "none": "finished",
        }
    for name in [name for name in sys.modules if name.partition(".")[0] == "yours"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_method_keeps_what_all_methods_must(
    world: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts as the backbone alone, and what it adds changes the prediction once it has weights."""
    import torch

    from posegen.backbones.base import Injection
    from posegen.runner.components import Components
    from posegen.runner.generate import batch_of
    from tests.tiny import configured

    list(write_files(PAGE, tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with configured(
        "train",
        *world,
        "trainer.precision=32-true",
        "adapter=mine",
        f"hydra.searchpath=[file://{tmp_path / 'yours/conf'}]",
    ) as cfg:
        components = Components(cfg)
        batch = batch_of(components, components.adapter, range(2))
        noisy, at = torch.randn(2, *components.backbone.latent_shape(batch.size)), torch.tensor([100, 700])

        def predicted() -> torch.Tensor:
            state = components.adapter.encode(batch)
            return components.backbone.predict(noisy, at, state.text, components.adapter.inject(state, noisy, at))

        with torch.no_grad():
            alone = components.backbone.predict(noisy, at, components.adapter.encode(batch).text, Injection())
            assert torch.equal(predicted(), alone)
            torch.nn.init.ones_(components.adapter.net[-1].weight)
            assert not torch.allclose(predicted(), alone)
