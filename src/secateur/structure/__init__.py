"""Which units exist in a model: `weights` (each connection) and `channels` (what labels flowing through one run leave connected)."""

from .channels import Channels, channels
from .graph import Graph, as_graph
from .layers import Layers, layers
from .rules import rule
from .structure import Group, Structure, all_kept, check_prunable, digest_of, shapes_of
from .weights import Weights, weights

__all__ = [
    "Channels",
    "Graph",
    "Group",
    "Layers",
    "Structure",
    "Weights",
    "all_kept",
    "as_graph",
    "channels",
    "check_prunable",
    "digest_of",
    "layers",
    "rule",
    "shapes_of",
    "weights",
]
