"""Where a method computes."""

from __future__ import annotations

import torch

from posegen.errors import UserError


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` means.

    Raises:
        UserError: there is no such device here.
    """
    wanted = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(accelerator, accelerator)
    if wanted not in ("cpu", "cuda") or (wanted == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"trainer.accelerator={accelerator} is not on this machine; expected auto, cpu, or gpu where there is one"
        )
    return torch.device(wanted)
