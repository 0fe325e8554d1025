"""Which units exist in a model: `weights` (each connection), `blocks` and `n_of_m` of them, `channels` (what labels flowing through one run
leave connected) and `layers`."""

from .blocks import blocks
from .channels import Channels, channels
from .graph import Graph, as_graph
from .layers import Layers, layers
from .n_of_m import n_of_m
from .rules import rule
from .structure import Group, Run, Structure, all_kept, check_prunable, digest_of, shapes_of
from .weights import Weights, weights

__all__ = [
    "Channels",
    "Graph",
    "Group",
    "Layers",
    "Run",
    "Structure",
    "Weights",
    "all_kept",
    "as_graph",
    "blocks",
    "channels",
    "check_prunable",
    "digest_of",
    "layers",
    "n_of_m",
    "rule",
    "shapes_of",
    "weights",
]
