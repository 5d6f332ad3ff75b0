"""What a training minimises: the method's own loss, and what a loss of this folder adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from posegen.backbones.base import Backbone, Step
from posegen.data.base import PoseBatch, PoseData


class TrainingLoss:
    """The method's own loss and nothing else (``loss=plain``); subclasses add terms that serve any method.

    It is no module: nothing of it is trained or saved. Networks in it are frozen and move to the images' device."""

    reads: frozenset[str] = frozenset()  # fields of `PoseBatch` that it reads

    @classmethod
    def unserved(cls, task: Any, backbone: Any, teacher: Any) -> str | None:
        """Why nothing can be trained with it, from the classes of these choices alone; None where it can."""
        return None

    def require(self, backbone: Backbone, data: PoseData) -> None:
        """Raises a UserError for a backbone or data that it cannot work on."""

    def __call__(
        self, own: Mapping[str, Tensor], step: Step, batch: PoseBatch, backbone: Backbone
    ) -> dict[str, Tensor]:
        """Named losses of a step, of which ``loss`` is minimised; ``own`` are those of `Adapter.loss`."""
        return dict(own)
