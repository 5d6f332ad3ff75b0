"""Packs reference cases into the zip files that ``posegen parity`` without arguments compares with.

    python experiments/parity/pack.py FOLDER_OF_CASES src/posegen/assets/parity

Only storage changes: weights that are exact in 8 bits (float8_e4m3fn) are stored so, and everything is deflated. What
`CASES` names is left out to keep all near 15 MB: mostly values on the way and outputs that another output contains.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

GUNET_RUNS = ("train17", "cfg34", "loss", "sample17", "odd2")  # gunet_spatial_block has their paths through the graph
#: Case -> beginnings of the names of tensors that are left out.
CASES: dict[str, tuple[str, ...]] = {
    "controlnet_wide": ("mid.guided_hint", "out.res_00", "out.res_01"),
    "t2i_adapter_full": ("model.diffusion_model.", "in.x", "in.timesteps", "in.context", "out.eps"),
    "stable_pose_wide": ("mid.pose_feature", "out.res_00", "out.res_01"),
    "humansd_wide": ("mid.heatmaps", "mid.difference_image", "mid.vae_decoded", "mid.after", "mid.below"),
    "grpose_wide": (
        "mid.",
        "out.residual.1",
        "out.residual.2",
        "out.residual.4",
        "out.residual.5",
        "out.residual.7",
        "out.residual.8",
    ),
    "gunet_spatial_block": (),
    "gunet_encode": ("in.1.", "in.2.", "out.1.", "out.2."),
    "gunet_decode": (),
    "gunet_full": tuple(f"{part}.{run}." for part in ("in", "out", "mid") for run in GUNET_RUNS),
    "controlnext_sd15": (),
    "controlnext_sd15_mid": (),
    "spctrl_full": (),
    "reward_loss": ("mid.", "vae.encoder.", "vae.quant_conv."),
    "higherhrnet_small": ("in.dec_", "out.dec_", "mid.tags", "mid.head_out", "mid.heatmaps"),
}
KEPT = ("out.residual.10", "out.residual.11", "out.residual.12")  # begin like another one
STAMP = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it runs


def kept(tensors: dict[str, Tensor], left_out: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key in KEPT or not key.startswith(left_out or ("\0",))}


def small(value: Tensor) -> Tensor:
    """In 8 bits where that is exact."""
    if not value.is_floating_point():
        return value
    short = value.to(torch.float8_e4m3fn)
    return short if torch.equal(short.float(), value.float()) else value


def pack(folder: Path, target: Path, left_out: tuple[str, ...]) -> None:
    """Writes the case in ``folder`` to the zip file ``target``."""
    facts = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "io.safetensors")
    if left_out:
        facts["left_out"] = sorted({*tensors} - {*kept(tensors, left_out)})
    files = {"case.json": json.dumps(facts, indent=1).encode(), "io.safetensors": save(kept(tensors, left_out))}
    if (folder / "weights.safetensors").is_file():
        weights = kept(load_file(folder / "weights.safetensors"), left_out)
        files["weights.safetensors"] = save({key: small(value) for key, value in weights.items()})
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, STAMP), content, zipfile.ZIP_DEFLATED, 9)


def main(source: Path, target: Path) -> None:
    (target / "metrics").mkdir(parents=True, exist_ok=True)
    for name, left_out in CASES.items():
        pack(source / name, target / f"{name}.zip", left_out)
    for file in sorted((source / "metrics").glob("*.json")):
        facts = json.loads(file.read_text())
        (target / "metrics" / file.name).write_text(json.dumps(facts, separators=(",", ":")) + "\n")
    files = sorted(file for file in target.rglob("*") if file.suffix in (".zip", ".json"))
    for file in files:
        print(f"{file.stat().st_size / 1e6:7.2f} MB  {file.relative_to(target)}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:7.2f} MB in all")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
