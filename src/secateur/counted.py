"""A batch of which nothing counts in the loss, such as one sample whose targets are all ignored: its mean is over none, 0 / 0.

Removing a unit changes nothing there, so 0 is meant. That it is this, and not some other NaN, is read off the graph of the loss, from its
value down to the outputs: a mean over none stands in it, the derivative by the outputs is exactly 0, and no other way leads to a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import Node

Edge = tuple[Node | None, int]  # where a tensor comes from: a node of the graph, and which of its results


def edge(value: Tensor) -> Edge:
    return value.grad_fn, value.output_nr


def nodes(value: Tensor, without: Collection[Edge] = ()) -> Iterator[Node]:
    """The graph of a value, but for what only these edges lead to."""
    seen, ahead = set(without), [edge(value)]
    while ahead:
        node, _ = at = ahead.pop()
        if node is None or at in seen:
            continue
        seen.add(at)
        yield node
        ahead += node.next_functions


def nothing_counts(value: Tensor, outputs: list[Tensor]) -> bool:
    """Whether this loss of these outputs is NaN since it is a mean over none. The graph stays."""
    made = [output for output in outputs if output.grad_fn is not None and output is not value]
    if not value.isnan().any() or not value.requires_grad or not made:
        return False
    graph = [*nodes(value, {edge(output) for output in made})]
    if any(hasattr(node, "variable") for node in graph) or not any(over_none(node) for node in graph):
        return False
    gradients = torch.autograd.grad(value.mean(), made, retain_graph=True, allow_unused=True)
    return not any(gradient.any() for gradient in gradients if gradient is not None)


def no_loss(outputs: list[Tensor]) -> Tensor:
    """0, with derivatives of 0 by all that these were computed from: the sum of none of their elements."""
    return torch.cat([output.flatten()[:0] for output in outputs if output.grad_fn is not None]).sum()


def over_none(node: Node) -> bool:
    so = OVER_NONE.get(node.name().partition("Backward")[0])
    return so is not None and so(node)


def none_weighed(node: Node) -> bool:
    return saved(node, "reduction") == MEAN and not tensor(node, "total_weight").any()


def none_given(node: Node) -> bool:
    return not tensor(node, "self").numel()


def saved(node: Node, what: str) -> object:
    return getattr(node, f"_saved_{what}")


def tensor(node: Node, what: str) -> Tensor:
    value = saved(node, what)
    return value if isinstance(value, Tensor) else torch.ones(())


MEAN = 1  # how a node writes reduction="mean"
OVER_NONE: dict[str, Callable[[Node], bool]] = {
    "NllLoss": none_weighed,
    "NllLoss2D": none_weighed,
    "Mean": lambda node: saved(node, "self_sym_numel") == 0,
    "Div": lambda node: not tensor(node, "other").any(),  # a sum over the number of what counts
    **dict.fromkeys(("MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"), none_given),
}
