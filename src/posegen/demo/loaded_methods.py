"""The methods that can draw on the page: finished cells below the output folder, or named folders."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from posegen.config import groups as listing
from posegen.errors import UserError
from posegen.pipeline import PoseGuidedPipeline
from posegen.runner.method_folder import adapter_class, method_folder, parts_of, read_about
from posegen.runner.precision import device_of
from posegen.runner.received.state_files import read_cell_config, read_status

NONE = "none"  # label of the backbone alone
GENERATES_POSES = "generates a pose and no image"  # why a pose prior is no method of the page


@dataclass(frozen=True)
class DemoMethod:
    """One method that can be chosen."""

    label: str  # unique on the page
    folder: Path | None  # its method folder; None for the backbone alone
    written: float = 0.0  # when its weights were written, so that a new training is loaded anew


class LoadedMethods:
    """Finds methods and keeps the ones used last in memory; ``cfg`` is that of the page."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.left_out: list[str] = []  # the methods that cannot draw, with the reasons
        self._loaded: OrderedDict[DemoMethod, PoseGuidedPipeline] = OrderedDict()

    def methods(self) -> list[DemoMethod]:
        """The named folders, or all finished cells with an image method, newest first; last the backbone alone."""
        self.left_out = []
        found = self._named() if self.cfg.checkpoints else self._cells(Path(self.cfg.paths.output))
        labels = [label for label, _ in found]
        unique: dict[str, Path] = {}
        for label, folder in found:  # a cell's settings, or the folder around any other, tell equal labels apart
            if labels.count(label) > 1:
                label += f" ({folder.parents[1].name if folder.name == 'method' else folder.parent})"
            unique[label] = folder
        methods = [DemoMethod(label, f, (f / "posegen.json").stat().st_mtime) for label, f in unique.items()]
        return [*methods, DemoMethod(NONE, None)]

    def pipeline(self, method: DemoMethod) -> PoseGuidedPipeline:
        """The method, loaded when it is first used."""
        pipe = self._loaded.pop(method, None) or self._read(method)
        pipe.set_progress_bar_config(disable=True)
        self._loaded[method] = pipe
        while len(self._loaded) > max(1, self.cfg.keep):
            self._loaded.popitem(last=False)
        return pipe

    def _read(self, method: DemoMethod) -> PoseGuidedPipeline:
        device = device_of(self.cfg.trainer.accelerator)
        if method.folder is not None:
            return PoseGuidedPipeline.from_pretrained(method.folder, self._backbone(method.folder), device=device)
        adapter: Any = instantiate(OmegaConf.load(listing.conf_dir() / "adapter" / f"{NONE}.yaml"))
        adapter.attach(instantiate(self.cfg.backbone, _convert_="all"))
        return PoseGuidedPipeline(adapter, OmegaConf.to_container(self.cfg.sampler, resolve=True)).to(device)  # type: ignore[arg-type]

    def _backbone(self, folder: Path) -> dict[str, Any] | None:
        """The configured backbone for a method folder that belongs to it; a cell's or pipeline's folder names one."""
        about, node = read_about(folder), OmegaConf.to_container(self.cfg.backbone, resolve=True)
        knows = "pipeline" in about or (folder.name == "method" and (folder.parent / "config.yaml").is_file())
        if knows or not isinstance(node, dict) or node.get("id") != about["backbone"]["id"]:
            return None
        return {str(key): value for key, value in node.items() if key != "_target_"}

    def _named(self) -> list[tuple[str, Path]]:
        """(label, method folder) of ``checkpoints``; a named folder that cannot be used is an error."""
        named = [self.cfg.checkpoints] if isinstance(self.cfg.checkpoints, str) else list(self.cfg.checkpoints)
        found: list[tuple[str, Path]] = []
        for place in named:
            folder = method_folder(Path(place).expanduser())
            if folder.is_dir() and not (folder / "posegen.json").is_file() and (cells := self._cells(folder)):
                found += cells
            elif reason := why_not(folder):
                raise UserError(f"checkpoints: {place} {reason}")
            else:
                found.append((label_of(folder.parent if folder.name == "method" else folder), folder))
        return found

    def _cells(self, output: Path) -> list[tuple[str, Path]]:
        """(label, method folder) of the finished cells below a folder that can draw; notes why others cannot."""
        found: list[tuple[str, Path]] = []
        for status in sorted(output.glob("**/status.json"), key=written, reverse=True):
            folder = status.parent / "method"
            try:
                if not (folder / "posegen.json").is_file() or read_status(status.parent)["state"] != "finished":
                    continue
                label, reason = label_of(status.parent), why_not(folder)
            except UserError as error:
                self.left_out.append(f"{status.parent}: {error}")
                continue
            if not reason:
                found.append((label, folder))
            elif reason != GENERATES_POSES:
                self.left_out.append(f"{label} {reason}")
        return found


def written(file: Path) -> float:
    """When a file was changed; 0 for a link to nothing."""
    return file.stat().st_mtime if file.exists() else 0.0


def why_not(folder: Path) -> str:
    """Why a method cannot draw from a prompt and a pose; empty where it can."""
    try:
        about = read_about(folder)
        cls: Any = adapter_class(about["class"], folder)
        parts = [adapter_class(part["_target_"], folder) for part in parts_of(about["kwargs"]).values()]
    except UserError as error:
        return f"cannot be used: {error}"
    if cls.sample != "image":
        return GENERATES_POSES
    needs = frozenset().union(*(each.needs for each in parts or [cls]))
    lacking = sorted(needs - {"hint", "source"})  # which a pose and a picture of a person fill
    return f"needs what this page does not bring: {', '.join(lacking)}" if lacking else ""


def label_of(cell: Path) -> str:
    """Method, study, seed and training steps of a cell; of any other folder its name."""
    config = read_cell_config(cell)
    if not config:
        return cell.name
    steps = config.get("budget", {}).get("steps")
    about = f"{config['method']} · {config['study']}, seed {config['seed']}"
    return f"{about}, {steps} steps" if isinstance(steps, int) and steps else about
