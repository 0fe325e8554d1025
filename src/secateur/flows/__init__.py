"""What flows through every weight while the model runs, and what it says about units: gate gradients of every single sample."""

from .elements import sums
from .gates import gate_inputs, gates, inputs
from .rules import FLOWS, Use, flow, operator_of
from .watch import Line, Lines

__all__ = ["FLOWS", "Line", "Lines", "Use", "flow", "gate_inputs", "gates", "inputs", "operator_of", "sums"]
