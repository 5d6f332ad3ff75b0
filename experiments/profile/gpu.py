"""All that a GPU is needed for, in a few minutes and one csv.

    experiments/profile/gpu.sh [--dry-run] [--seconds 480] [--out FILE.csv] [--only WORDS]

The most important measurements come first. Each is tried by itself and is a row of the csv as soon as it ends: what
fails has its reason there, and what the time was not enough for says so. ``--only`` takes the measurements with these
words in their names. ``--dry-run`` takes a tiny model on the CPU, to see that everything runs.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.profile.against_diffusers import (
    DiffusersTraining,
    PosegenTraining,
    Sampling,
    relative,
    some_weights,
    spent,
)
from posegen.backbones.base import Backbone
from posegen.config.compose import composed
from posegen.config.groups import conf_dir
from posegen.runner.components import Components
from posegen.train.profiling import Clock, kernel_times, matrix_rate, measure_phase, process_peak_mb

ROOT = Path(__file__).resolve().parents[2]
#: In the order in which they are measured; all on the same backbone.
METHODS = ("controlnet", "stable_pose", "grpose", "humansd", "t2i_adapter", "dnaf", "none")
COLUMNS = (
    *("number", "name", "side", "ms", "images_per_s", "peak_mib", "tflops", "share_of_matrix_rate", "ratio"),
    *("difference", "bottleneck", "kind", "kind_share", "precision", "pixels", "batch", "device", "torch"),
    *("took_s", "problem"),
)
Row = dict[str, Any]
TAIL = 15  # seconds that a measurement may run over before its process is ended


@dataclass(frozen=True)
class Measurement:
    """One try: its name, about how many seconds it needs, and the function that returns its rows."""

    name: str
    seconds: int
    rows: Callable[[Setting], list[Row]]


@dataclass
class Setting:
    """Where and at which size everything is measured."""

    overrides: list[str]
    seconds_left: float = 0.0

    def config(self, *overrides: str) -> DictConfig:
        with composed("profile", (*self.overrides, *overrides)) as cfg:
            return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))

    @cache  # noqa: B019 (there is one)
    def pristine(self) -> Backbone:
        cfg = self.config("adapter=none")
        return Components(cfg).backbone

    def components(self, cfg: DictConfig) -> Components:
        """With a copy of the backbone, which takes a moment; building it takes many."""
        components = Components(cfg)
        components.backbone = deepcopy(self.pristine())
        return components

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.dry else "cpu")

    @property
    def dry(self) -> bool:
        return "trainer.accelerator=cpu" in self.overrides

    def __hash__(self) -> int:
        return id(self)


def way(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def options(method: str, compiled: bool) -> list[str]:
    return [f"adapter={method}", f"compute.compile={str(compiled).lower()}", "compute.channels_last=true"]


def measure_matrix(setting: Setting) -> list[Row]:
    rate = matrix_rate(Clock(setting.device), setting.device, torch.bfloat16)
    return [{"side": "torch", "tflops": rate / 1e12, "bottleneck": "a product of two square bf16 matrices"}]


def measure_method(method: str, phase: Any, compiled: bool, setting: Setting, backbone: str | None = None) -> list[Row]:
    """A method as `posegen profile` measures it; on ``backbone`` with random weights, or on the usual one."""
    other = [] if backbone is None else [f"backbone={backbone}", "backbone.path=null", "backbone.initialise=random"]
    cfg = setting.config(*options(method, compiled), f"phases=[{phase}]", *other)
    components = setting.components(cfg) if backbone is None else Components(cfg)
    found = measure_phase(OmegaConf.to_container(cfg), phase, components)
    seconds, flops = median(found["seconds"]), found["flops"] or 0
    kind, share = max(found["shares"].items(), key=lambda item: item[1])
    passes = cfg.sampler.steps if phase == "sample" else 1
    speeds = {"tflops": flops / seconds / 1e12, "share_of_matrix_rate": flops / seconds / found["matrix_rate"]}
    times = {"ms": 1000 * seconds, "images_per_s": cfg.batch / seconds / passes, "peak_mib": found["memory_mb"]}
    return [
        {"side": "posegen", **times, **speeds, "bottleneck": found["largest_kernel"], "kind": kind, "kind_share": share}
    ]


def in_turns(sides: dict[str, Callable[[], torch.Tensor]], setting: Setting, warmup: int, repeats: int) -> list[Row]:
    """A row per side; ``ratio`` is how many times faster the first is."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    peaks, results = dict.fromkeys(sides, 0.0), {}
    for i in range(warmup + repeats):
        for name, run in sides.items():
            if setting.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = spent(run, setting.device)
            peaks[name], results[name] = process_peak_mb(setting.device), found.result
            times[name] += [found.wall] if i >= warmup else []
    first, last = sides
    rows = []
    for name, run in sides.items():
        kernels, _ = kernel_times(run, setting.device)
        ms, largest = 1000 * median(times[name]), max(kernels, key=lambda each: kernels[each])
        rows.append({"side": name, "ms": ms, "peak_mib": peaks[name], "bottleneck": largest})
    rows[0] |= {"ratio": rows[1]["ms"] / rows[0]["ms"], "difference": relative(results[first], results[last])}
    return rows


def measure_pipelines(compiled: bool, setting: Setting) -> list[Row]:
    """A call of both pipelines, in bf16, its few steps together."""
    cfg = setting.config(*options("controlnet", compiled))
    both = Sampling(cfg, f"bf16{'-compiled' * compiled}", setting.components)
    sides = {"posegen": both.of(both.ours), "diffusers": both.of(both.theirs)}
    return in_turns(sides, setting, 2, cfg.repeats)


def measure_training(compiled: bool, setting: Setting) -> list[Row]:
    """A training step of both sides, each with weights of its own; what they change is compared."""
    cfg = setting.config(*options("controlnet", compiled), "optim.drop_text=0")
    theirs = f"bf16{'-compiled' * compiled}"
    sides = {"posegen": PosegenTraining, "diffusers": DiffusersTraining}
    built = {name: side(cfg, theirs, setting.components) for name, side in sides.items()}
    before = {name: some_weights(side.network) for name, side in built.items()}
    rows = in_turns({name: side.step for name, side in built.items()}, setting, 2, cfg.repeats)
    ours, reference = (some_weights(side.network) - before[name] for name, side in built.items())
    rows[0]["difference"] = relative(ours, reference)
    for row in rows:
        row["peak_mib"] = None  # both stand in one memory; `posegen profile` has the peak of one
    return rows


def run_tests(setting: Setting) -> list[Row]:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-ra", "-m", "cuda", "-p", "no:cacheprovider"]
    environment = {**os.environ, "POSEGEN_CUDA_TESTS": setting.device.type}
    left = max(30.0, setting.seconds_left / 2)  # the measurements behind them need time, too
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "train" / "test_on_a_gpu.py")],
        cwd=ROOT,
        env=environment,
        timeout=left,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines() or ["nothing was printed", done.stderr[-500:]]
    print("\n".join(lines[-40:]), flush=True)
    return [
        {
            "side": "posegen",
            "bottleneck": lines[-1],
            "problem": ""
            if done.returncode == 0
            else " | ".join(line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED")))
            or f"exit code {done.returncode}",
        }
    ]


def measurements() -> list[Measurement]:
    """All of them, the most important first; the seconds are guesses for a large GPU."""
    listed = [Measurement("matrix rate", 5, measure_matrix)]
    for compiled, seconds in ((False, 20), (True, 60)):
        listed.append(
            Measurement(
                f"controlnet train {way(compiled)}", seconds, partial(measure_method, "controlnet", "train", compiled)
            )
        )
        listed.append(
            Measurement(f"controlnet pipelines {way(compiled)}", seconds, partial(measure_pipelines, compiled))
        )
        listed.append(
            Measurement(f"controlnet training steps {way(compiled)}", seconds, partial(measure_training, compiled))
        )
    listed.insert(4, Measurement("tests", 90, run_tests))
    for compiled, seconds in ((False, 12), (True, 40)):
        for phase in ("sample", "train"):
            for method in METHODS:
                if (method, phase) not in (("none", "train"), ("controlnet", "train")):
                    run = partial(measure_method, method, phase, compiled)
                    listed.append(Measurement(f"{method} {phase} {way(compiled)}", seconds, run))
    for compiled, seconds in ((False, 60), (True, 120)):  # last: their random weights take long to make
        for phase in ("sample", "train"):
            for backbone in further_backbones():
                run = partial(measure_backbone, backbone, phase, compiled)
                listed.append(Measurement(f"controlnet on {backbone} {phase} {way(compiled)}", seconds, run))
    return listed


def measure_backbone(backbone: str, phase: str, compiled: bool, setting: Setting) -> list[Row]:
    """ControlNet on another backbone at its published size, which no dry run can hold."""
    if setting.dry:
        return [{"problem": "not in a dry run: it has the published size"}]
    return measure_method("controlnet", phase, compiled, setting, backbone=backbone)


def further_backbones() -> list[str]:
    """The backbones besides Stable Diffusion 1.5 that have a full size without any files, transformers among them."""
    nodes = {file.stem: OmegaConf.load(file) for file in sorted((conf_dir() / "backbone").glob("*.yaml"))}
    return [name for name, node in nodes.items() if node.get("size") is not None and name not in ("sd15", "sd21")]


def work(listed: Sequence[Measurement], setting: Setting, first: int, until: float, out: Path) -> None:
    """Measures from number ``first`` on; a row is written when it is there."""
    place = "CPU" if setting.device.type == "cpu" else torch.cuda.get_device_name()
    sizes = setting.config()
    facts = {"precision": sizes.trainer.precision, "pixels": sizes.size, "batch": sizes.batch}
    facts |= {"device": place, "torch": torch.__version__}
    for number, each in enumerate(listed[first:], first):
        setting.seconds_left = until - time.time()
        if setting.seconds_left < each.seconds and not setting.dry:
            problem = f"not tried: {setting.seconds_left:.0f} s were left, about {each.seconds} s are needed"
            append(out, number, each.name, [{"problem": problem}])
            continue
        start = time.time()
        append(out, number, each.name, None)  # in case that the process does not survive it
        try:
            rows = each.rows(setting)
        except Exception as error:
            rows = [{"problem": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}]
        append(out, number, each.name, [{**facts, **row, "took_s": time.time() - start} for row in rows])
        torch._dynamo.reset()
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def append(out: Path, number: int, name: str, rows: list[Row] | None) -> None:
    """Writes rows behind the others; None notes what begins, in a file beside it."""
    beside = out.with_suffix(".running")
    if rows is None:
        beside.write_text(f"{number}\n{name}")
        return
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        for row in rows:
            found = {"number": number, "name": name, **row}
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in found.items()})
            shown = [f"{found[k]:.4g} {k}" for k in ("ms", "peak_mib", "tflops", "ratio") if found.get(k) is not None]
            print(f"{name}, {found.get('side', '')}: {', '.join(shown)} {found.get('problem', '')}".strip(), flush=True)
    with suppress(FileNotFoundError):
        beside.unlink()


def overrides_of(dry: bool, folder: Path) -> list[str]:
    """Stable Diffusion 1.5 at 512 pixels on the GPU, or the tests' tiny one on the CPU."""
    usual = ["data=mannequin_pairs", "backbone=sd15", "compute.checkpointing=none", f"paths.output={folder}"]
    usual += ["trainer.precision=bf16-mixed", f"paths.cache={folder / 'cache'}"]
    if not dry:
        random = ["backbone.initialise=random", "backbone.path=null"]
        return [*usual, *random, "size=512", "batch=8", "warmup=2", "repeats=5", "trainer.accelerator=gpu"]
    from tests.backbones.models import SD1, parts_of

    parts_of(SD1).save(folder / "tiny")
    tiny = [f"backbone.path={folder / 'tiny'}", "size=64", "batch=2", "warmup=1", "repeats=1"]
    return [*usual, *tiny, "trainer.accelerator=cpu"]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--first", type=int, default=None, help=argparse.SUPPRESS)  # of a process that measures
    parser.add_argument("--until", type=float, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Starts the process that measures, and another one behind each measurement that ended the last."""
    given, started = arguments(words), time.time()
    listed = [each for each in measurements() if all(word in each.name.split() for word in given.only)]
    if given.first is not None:
        with TemporaryDirectory() as place:
            setting = Setting(overrides_of(given.dry_run, Path(place)))
            work(listed, setting, given.first, given.until, given.out)
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        print("no CUDA GPU is visible to torch; --dry-run runs everything on the CPU, at a tiny size", file=sys.stderr)
        return 2
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(",".join(COLUMNS) + "\n")
    until, first = started + given.seconds, 0
    while first < len(listed):
        command = [sys.executable, __file__, "--first", str(first), "--until", str(until), "--out", str(given.out)]
        command += ["--dry-run"] * given.dry_run + (["--only", *given.only] if given.only else [])
        reason = ""
        try:
            code = subprocess.run(command, timeout=max(until + TAIL - time.time(), 1), check=False).returncode
        except subprocess.TimeoutExpired:
            code, reason = 1, "ended: the time was over"
        if code == 0:
            break
        beside = given.out.with_suffix(".running")
        if not beside.is_file():
            append(given.out, first, "start", [{"problem": reason or f"the process ended with {code} at its start"}])
            break
        number, name = beside.read_text().split("\n")
        append(given.out, int(number), name, [{"problem": reason or f"the process ended with {code}"}])
        first = int(number) + 1
        if reason:
            for later in range(first, len(listed)):
                append(given.out, later, listed[later].name, [{"problem": "not tried: the time was over"}])
            break
    print(f"{given.out}: {time.time() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
