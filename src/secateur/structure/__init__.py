"""Which units exist in a model: `weights` (each connection) and `channels` (what labels flowing through one run leave connected)."""

from .channels import Channels, channels
from .graph import Graph, as_graph
from .rules import rule
from .structure import Group, Structure, all_kept, check_prunable, digest_of, shapes_of
from .weights import Weights, weights

__all__ = [
    "Channels",
    "Graph",
    "Group",
    "Structure",
    "Weights",
    "all_kept",
    "as_graph",
    "channels",
    "check_prunable",
    "digest_of",
    "rule",
    "shapes_of",
    "weights",
]
