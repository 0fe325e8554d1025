"""Which units exist in a model: `weights` (each connection) and `channels` (what labels flowing through one run leave connected)."""

from .channels import Channels, channels
from .rules import rule
from .structure import Group, Structure, all_kept, check_prunable, digest_of, shapes_of
from .weights import Weights, weights

__all__ = [
    "Channels",
    "Group",
    "Structure",
    "Weights",
    "all_kept",
    "channels",
    "check_prunable",
    "digest_of",
    "rule",
    "shapes_of",
    "weights",
]
