"""A package that is not posegen's adds a method, a data set, a metric, a backbone, a logger and a callback by its files
alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
from pathlib import Path

FILES = {
    "theirs/__init__.py": "",
    "theirs/method.py": '''
        from torch import nn

        from posegen.adapters.base import Adapter, Paper
        from posegen.backbones.base import Injection
        from posegen.poses.drawing import PoseDrawing


        class Middle(Adapter):
            """Adds a picture of the pose to the middle block."""

            needs = frozenset({"hint"})
            paper = Paper("A third party's method", "")

            def __init__(self, gain: float = 1.0):
                super().__init__()
                self.hint, self.gain = PoseDrawing("humansd"), gain

            def attach(self, backbone):
                super().attach(backbone)
                self.project = nn.Conv2d(3, backbone.geometry.channels[-1], 1)
                nn.init.zeros_(self.project.weight)
                self.cells = 2 ** (backbone.geometry.levels - 1)

            def encode(self, batch):
                size = batch.hint.shape[-1] // (self.backbone.geometry.latent_factor * self.cells)
                return self.text_state(batch).having(pose=nn.functional.adaptive_avg_pool2d(batch.hint, size))

            def inject(self, state, latents, timesteps):
                return Injection(mid=self.gain * self.project(state["pose"]))
        ''',
    "theirs/data.py": '''
        from posegen.data.mannequin.dataset import MannequinData


        class Shouting(MannequinData):
            """The mannequins, with captions in capitals."""

            name = "shouting"

            @property
            def prompts(self):
                return [prompt.upper() for prompt in super().prompts]
        ''',
    "theirs/metric.py": '''
        import numpy as np

        from posegen.metrics.base import Metric


        class Novelty(Metric):
            """The share of images in which more people are found than asked for."""

            columns = ("novelty",)

            def record(self, judged):
                return {"more": float(len(judged.found) > len(judged.keypoints))}

            def resampled(self, records, weights, reference=None):
                more = np.asarray(records["more"])
                return {"novelty": 100 * (weights * more).sum(1) / weights.sum(1)}
        ''',
    "theirs/backbone.py": '''
        from posegen.backbones.stable_diffusion import StableDiffusion


        class Theirs(StableDiffusion):
            """A backbone family of a third party."""
        ''',
    "theirs/training.py": '''
        from pathlib import Path

        from lightning.pytorch import Callback
        from lightning.pytorch.loggers import CSVLogger


        class Note(CSVLogger):
            """A logger of a third party."""


        class Count(Callback):
            def __init__(self, file):
                self.file, self.steps = file, 0

            def on_train_batch_end(self, trainer, *_):
                self.steps += 1

            def on_train_end(self, trainer, module):
                Path(self.file).write_text(str(self.steps))
        ''',
    "conf/adapter/middle.yaml": """
        _target_: theirs.method.Middle
        gain: 1.0
        recipes: {mannequin: {lr: 1.0e-3, drop_text: 0.1}}
        """,
    "conf/data/shouting.yaml": """
        train: {_target_: theirs.data.Shouting, split: train, count: 24, cache: "${paths.cache}"}
        validation: {_target_: theirs.data.Shouting, split: validation, count: 8, cache: "${paths.cache}"}
        test: {_target_: theirs.data.Shouting, split: test, count: 6, cache: "${paths.cache}"}
        """,
    "conf/protocol/novel.yaml": """
        _target_: posegen.metrics.protocol.Protocol
        name: novel
        metrics:
          - {_target_: posegen.metrics.pose.PoseMetric}
          - {_target_: theirs.metric.Novelty}
        """,
    "conf/backbone/theirs.yaml": """
        _target_: theirs.backbone.Theirs
        path: ???
        autoencoder: null
        recipe: mannequin
        """,
    "conf/logger/note.yaml": """
        _target_: theirs.training.Note
        save_dir: ${paths.cell}/notes
        """,
    "conf/callbacks/count.yaml": """
        defaults: [default]
        count: {_target_: theirs.training.Count, file: "${paths.output}/steps.txt"}
        """,
}


def test_a_package_adds_all_six_with_no_edit_here(world: list[str], tmp_path: Path) -> None:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())
    output = tmp_path / "out"
    tiny = [override for override in world if not override.startswith("progress")]
    chosen = [
        "adapter=middle,none",
        "data=shouting",
        "protocol=novel",
        "backbone=theirs",
        "logger=note",
        "callbacks=count",
    ]
    command = [
        *("benchmark", "benchmark=smoke", "hydra/launcher=basic", f"paths.output={output}"),
        *(*chosen, *tiny, "trainer.log_every_n_steps=1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "POSEGEN_SEARCHPATH": str(tmp_path / "conf")}
    run = [sys.executable, "-m", "posegen.cli", *command]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    folder = output / "benchmark" / "smoke"
    with (folder / "table.csv").open(newline="") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert list(table) == ["middle", "none"] and table["middle"]["state"] == "finished"  # the method ...
    assert float(table["middle"]["cost_trained_parameters"]) == 3 * 16 + 16
    shown = (folder / "table.md").read_text()
    assert all(
        column in shown for column in ("novelty", "PCK@0.1", "AP50", "AP75", "AR")
    )  # ... the metric, beside all others
    (prompts,) = folder.rglob("middle/shouting*/**/prompts.txt")
    assert prompts.read_text().isupper()  # ... the data set
    (cell,) = folder.rglob("middle/shouting*/seed0")
    assert "theirs.backbone.Theirs" in (cell / "status.json").read_text()  # ... the backbone
    assert list((cell / "notes").rglob("metrics.csv")) and (cell / "curves" / "metrics.csv").is_file()  # ... the logger
    assert (output / "steps.txt").read_text() == "6"  # ... and the callback
