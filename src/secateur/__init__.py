"""Measure how much every connection of a neural network matters, cut those that matter least, and prove what the cut cost."""

from .activations import Activations
from .allocate import allocate, select_by_curves
from .api import Pruned, channels, prune
from .cost import cost, costs
from .criteria import CRITERIA
from .curves import Curves, curves
from .errors import BadInput, BadLoss, BudgetUnreachable, MissingExtra, NothingToPrune, PlanMismatch, SecateurError, Unreadable
from .evaluate import compare, evaluate
from .explain import explain
from .explanation import Explanation
from .files import load, read_plan, save
from .finetune import Tuned, finetune
from .gradual import Gradual, gradual
from .latency import Latency
from .measure import measure
from .optimizers import rebind
from .plan import Plan
from .rates import RATES
from .repair import PrunedShards, least_squares, match_moments, prune_shards, reestimate
from .rounds import Round, rounds
from .schedule import SCHEDULES
from .scope import SCOPES, per
from .select import select, select_each
from .sensitivity import Collector, Sensitivity, merge
from .sensitivity_file import read_sensitivity, write_sensitivity
from .structure import Group, Structure, as_graph, blocks, layers, n_of_m, rule, weights
from .surgery import hold, mask, shrink, with_values
from .table import Table
from .task import Task
from .version import __version__ as __version__

__all__ = [
    "CRITERIA",
    "RATES",
    "SCHEDULES",
    "SCOPES",
    "Activations",
    "BadInput",
    "BadLoss",
    "BudgetUnreachable",
    "Collector",
    "Curves",
    "Explanation",
    "Gradual",
    "Group",
    "Latency",
    "MissingExtra",
    "NothingToPrune",
    "Plan",
    "PlanMismatch",
    "Pruned",
    "PrunedShards",
    "Round",
    "SecateurError",
    "Sensitivity",
    "Structure",
    "Table",
    "Task",
    "Tuned",
    "Unreadable",
    "allocate",
    "as_graph",
    "blocks",
    "channels",
    "compare",
    "cost",
    "costs",
    "curves",
    "evaluate",
    "explain",
    "finetune",
    "gradual",
    "hold",
    "layers",
    "least_squares",
    "load",
    "mask",
    "match_moments",
    "measure",
    "merge",
    "n_of_m",
    "per",
    "prune",
    "prune_shards",
    "read_plan",
    "read_sensitivity",
    "rebind",
    "reestimate",
    "rounds",
    "rule",
    "save",
    "select",
    "select_by_curves",
    "select_each",
    "shrink",
    "weights",
    "with_values",
    "write_sensitivity",
]
