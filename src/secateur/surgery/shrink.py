"""Really make tensors smaller."""

from __future__ import annotations

from torch import nn

from ..plan import Plan, check_fits, check_sizes
from ..structure.cut import cut, skip
from ..structure.kinds import at_old_size
from .mask import mask


def shrink(model: nn.Module, plan: Plan) -> nn.Module:
    """A smaller copy of `model`: of every tensor the kept indices, in the user's own classes, whose sizes follow.

    Where the plan removes connections, or blocks of them, there is nothing to make smaller, and the copy is the masked one.
    Raises PlanMismatch where the plan was made for another model.
    """
    if at_old_size(plan.structure):
        return mask(model, plan)
    check_fits(plan.shapes, model)
    check_sizes(plan, model)
    return skip(cut(model, plan.kept, plan.sizes), plan.skipped)
