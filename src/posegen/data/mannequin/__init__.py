"""The mannequin world: an embedded, offline data set with exact poses and captions."""

from posegen.data.mannequin.dataset import MannequinData
from posegen.data.mannequin.world import WORLD_VERSION, World

__all__ = ["WORLD_VERSION", "MannequinData", "World"]
