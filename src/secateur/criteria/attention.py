"""Criteria that rank attention heads by what they attend to. (By what the loss makes of them: `gate`.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import BadInput
from ..flows import Line
from ..flows.watch import seen_through
from ..structure import Channels, Structure
from ..task import Task, plain
from ..tree import Scores, Tree

ATEN = torch.ops.aten
SOFTMAX = {F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax, ATEN.softmax.int, ATEN._softmax.default}
FUSED = {F.scaled_dot_product_attention, ATEN.scaled_dot_product_attention.default}


def confidence(task: Task, structure: Structure) -> Iterator[Scores]:
    """How surely a head looks at one place (Voita et al., 2019, "Analyzing multi-head self-attention", sec. 4).

    score_u = mean over samples and queries of max over keys of p

    p: the attention probabilities. The paper leaves out the end of the sentence; all queries count here, those of a padding, too. A unit of
    several query heads (grouped queries) gets their mean. Raises BadInput where units are no heads, or their probabilities are not seen.
    """
    yield from of_heads(task, structure, lambda p: p.amax(-1), "confidence")


def entropy(task: Task, structure: Structure) -> Iterator[Scores]:
    """How little a head spreads: one minus the entropy of its attention, relative to the largest (Clark et al., 2019, sec. 3.2, plot it).

    score_u = 1 - mean over samples and queries of (-sum over keys of p log p) / log keys

    A head that attends to all keys alike does no more than a mean would, and has zero; one that always attends to a single key has one.
    """
    yield from of_heads(task, structure, lambda p: 1 + torch.xlogy(p, p).sum(-1) / torch.tensor(max(p.shape[-1], 2)).log(), "entropy")


def of_heads(task: Task, structure: Structure, statistic: Callable[[Tensor], Tensor], criterion: str) -> Iterator[Scores]:
    """A statistic of the attention probabilities (..., keys) -> (...), averaged over all but the heads."""
    if not isinstance(structure, Channels) or any(group.kind != "head" for group in structure.groups.values()):
        raise BadInput(
            f"The criterion {criterion} ranks attention heads, and nothing else. "
            "Let only these be units: channels(model, example, units=('head',))."
        )
    lines = [(name, line) for name, group in structure.groups.items() for line in group.members if line[0] in structure.numel]
    for number, (inputs, _) in enumerate(task.batches()):
        seen = Attention({parameter for _, (parameter, _) in lines}, statistic)
        with torch.no_grad():
            task.run_on(inputs, number, seen.on)
        found: dict[str, list[Tensor]] = {name: [] for name in structure.groups}
        for parameter, values in seen.read:
            for name, line in lines:
                if line[0] == parameter:
                    found[name] += [by_unit(value, structure, name, line) for value in values]
        if missing := [name for name, parts in found.items() if not parts]:
            raise BadInput(
                f"The criterion {criterion} saw no attention probabilities of the heads {missing[0]}: no softmax, and no "
                "scaled_dot_product_attention, ran before the weight that reads them. Choose gate, which needs none."
            )
        yield {name: torch.stack(parts).mean(0) for name, parts in found.items()}


def by_unit(value: Tensor, structure: Channels, group: str, line: Line) -> Tensor:
    """(samples, heads, queries) -> the mean over each unit's heads, which lie one behind the other in what the weight reads."""
    index = structure.index[line[0]][line[1]]
    assert index is not None  # the line is a member of the group
    places = next(lines for name, lines in structure.lines(index) if name == group).view(structure.groups[group].size, -1)
    width, heads = structure.shapes[line[0]][line[1]], value.shape[1]
    if width % heads or heads % len(places):
        raise BadInput(
            f"Attention with {heads} heads runs before {line[0]}, which reads {width} features of {len(places)} units: they do not fit. "
            "Choose gate, which does not look at attention."
        )
    of = places // (width // heads)  # (units, features of each) -> head
    whole = of[:, :: width // heads] if places.shape[1] * len(places) == width else of[:, :0]
    if whole.shape[1] != heads // len(places) or not torch.equal(of, whole.repeat_interleave(width // heads, 1)):
        raise BadInput(
            f"The units of {group} are not whole heads of the attention that runs before {line[0]}. "
            "Choose gate, which does not look at attention."
        )
    return value.mean((0, 2))[whole.to(value.device)].mean(1)


class Attention(TorchFunctionMode):
    """Keeps a statistic of attention probabilities until a weight of heads reads what was attended to.

    weights: the names of the parameters that heads lie along.
    read: of each that was read after an attention, its name and the statistics, (samples, heads, queries).
    """

    def __init__(self, weights: set[str], statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weights, self.statistic = weights, statistic
        self.names: dict[tuple[int, int], str] = {}
        self.waiting: list[Tensor] = []
        self.read: list[tuple[str, list[Tensor]]] = []

    def on(self, leaves: Tree) -> Attention:
        self.names = {place(leaves[name]): name for name in self.weights}
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return seen_through(F.multi_head_attention_forward)(*args, **kwargs)
        name = next((self.names[place(v)] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and place(v) in self.names), None)
        if name is not None and self.waiting:
            self.read.append((name, self.waiting))
            self.waiting = []
        out = func(*args, **kwargs)
        if func in SOFTMAX and kwargs.get("dim", args[1] if len(args) > 1 else None) in (-1, out.dim() - 1):
            self.attends(out)
        elif func in FUSED:
            self.attends(probabilities(*args, **kwargs))
        return out

    def attends(self, p: Tensor) -> None:
        if p.dim() == 4:  # (samples, heads, queries, keys); a softmax over something else has no heads
            self.waiting.append(self.statistic(plain(p)))


def probabilities(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q k' scale + mask), as torch.nn.functional.scaled_dot_product_attention documents it."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = plain(query) @ plain(key).transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1).nan_to_num(0)  # a query that may look at nothing


def place(value: Tensor) -> tuple[int, int]:
    """Where its elements lie: a view of all of them has the same."""
    return value.data_ptr(), value.numel()
