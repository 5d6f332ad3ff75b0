"""Where weights are read from: a folder, an original file, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posegen.backbones.loading.layout import Layout
from posegen.io.hub import HubPlace, fetched, on_hub
from posegen.io.weights import WeightsError

AUTOENCODER_FILES = ("vae/", "config.json", "diffusion_pytorch_model")  # beginnings of their names, in a repository


def fetched_parts(layout: Layout, autoencoder: bool, leave_out: Sequence[str] = ()) -> tuple[str, ...]:
    """The folders of a repository that are fetched of a model, with or without its own autoencoder."""
    folders = [name for name in layout.folders if name not in leave_out]
    return (*(f"{name}/" for name in (*folders, *(("vae",) if autoencoder else ()))), *layout.settings)


def source_name(place: Path, hub: HubPlace | None) -> str:
    """A name for the weights; a folder of the Hub's cache is named after its commit."""
    return hub.name if hub else place.stem


def resolve(path: str | Path | None, layout: Layout, wanted: Sequence[str]) -> tuple[Path, HubPlace | None]:
    """The folder or file that ``path`` means, and where it was fetched; a WeightsError where nothing is there.

    ``wanted`` are the beginnings of the names of the files that are fetched of a repository."""
    folders = " ".join(f"{name}/" for name in (layout.network_folder, "vae", *layout.folders[1:]))
    file = ", an original .safetensors or .ckpt file," if layout.single_file else ""
    expected = (
        f"backbone.path expects {layout.model} on this machine: a folder in diffusers' layout ({folders}){file} or "
        "hub:owner/name to fetch one; nothing is downloaded unless you say so. backbone.path=null needs "
        "backbone.initialise=random and a published backbone.size"
    )
    if path is None:
        raise WeightsError(f"backbone.path is not set. {expected}")
    if on_hub(path):
        return fetched(HubPlace.of(str(path)), wanted)
    place = Path(path).expanduser()
    if not place.exists():
        raise WeightsError(f"{place}: no such file or folder. {expected}")
    if place.is_file() and not layout.single_file:
        raise WeightsError(f"{place}: a file; {expected}")
    return place, None
