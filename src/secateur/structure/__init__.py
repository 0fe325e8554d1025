"""Which units exist in a model: `weights` (each connection) and `channels` (what labels flowing through one run unite)."""

from .structure import Group, Structure, all_kept
from .weights import Weights, weights

__all__ = ["Group", "Structure", "Weights", "all_kept", "weights"]
