"""Global and local sensitivity: two reductions of one stream of scores, one for each context.

    n_c = s_c / sum |s_c|          every context's scores, normalised over all units
    global = mean over c of n_c    local = max (or a quantile) over c of n_c
    score = (1 - a) global + a local / sum |local|
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import tree
from .conflicts import Conflict, conflicts
from .contexts import natural
from .criteria import STEPS
from .errors import BadInput
from .reductions import Mean, Reductions, State, listed, magnitude, normalised, parts_of, whole
from .sharded import is_sharded, local
from .structure import Structure
from .sure import Stability, stability
from .task import plain
from .tree import Scores


@dataclass(frozen=True)
class Sensitivity:
    """How much the loss depends on every unit: over all contexts, and in the context that depends on it most.

    global_, local, spread: mean, maximum (or quantile) and standard deviation of the normalised scores over the contexts.
    keys: for contexts that have names (classes), the normalised scores of each.
    count, samples: contexts and samples that were seen.
    local_by: "max", or the quantile.
    error: the standard error of global_, None where only one context was seen. It is spread / sqrt(count - 1); where contexts have keys,
    half the difference of the means of two halves of the data (one degree of freedom, so rough for a single unit): every key's data is
    halved, and keys that came in one piece only are left out; None where all did.
    stability: how well two halves of the data agree on what to remove; None where there are none (as for `error`), and for sharded models.
    digest: of the model that it was measured on, as its structure has it.
    """

    global_: Scores
    local: Scores
    spread: Scores
    keys: dict[str, Scores] = field(default_factory=dict)
    criterion: str = "taylor"
    contexts: str = "batch"
    count: int = 0
    samples: int = 0
    local_by: str | float = "max"
    error: Scores | None = None
    stability: Stability | None = None
    digest: str = ""

    def needs(self, group: str) -> list[str | None]:
        """For every unit of the group, the key (class) whose sensitivity to it is the largest; None where no key needs it."""
        if group not in self.global_:
            raise BadInput(f"There is no group {group!r} in this sensitivity. Choose one of: {', '.join(list(self.global_)[:8])}.")
        if not self.keys:
            return [None] * self.global_[group].numel()
        highest, which = torch.stack([scores[group].reshape(-1) for scores in self.keys.values()]).max(dim=0)
        names = list(self.keys)
        return [names[index] if value > 0 else None for value, index in zip(highest.tolist(), which.tolist())]

    def for_(self, key: str | int) -> Scores:
        """The normalised scores of one key: of one class, domain, speaker, ..."""
        if str(key) not in self.keys:
            there = f"has {', '.join(list(self.keys)[:8])}" if self.keys else f"was measured by {self.contexts}, without keys"
            raise BadInput(f"There is no key {str(key)!r}: this sensitivity {there}. Measure with contexts= that has it.")
        return self.keys[str(key)]

    def conflicts(self, amount: float = 0.5, share: float = 0.1, limit: int = 100) -> list[Conflict]:
        """Units that would go at this amount by global sensitivity, and are among this share of the most needed in some context.

        Where contexts have no names, the local sensitivity stands for them all, and the key is None.
        """
        return conflicts(self.global_, self.local, self.keys, amount, share, limit)


class Collector:
    """Reduces a stream of scores to a Sensitivity. What it holds does not depend on how many contexts come.

    `update(scores)` adds a context. `update(scores, key)` adds a part of the context of that name: parts are averaged, weighted by their
    samples, and normalised together. `step(model)` adds a training step from the gradients it has anyway. `a.merge(b)` is a collector of
    what both have seen: the same numbers however the contexts were split, if each had a number of its own (without: its own count).
    """

    def __init__(
        self, structure: Structure, criterion: str = "taylor", contexts: str = "step", local: str | float = "max", seed: int = 0
    ) -> None:
        if local != "max" and not (isinstance(local, (int, float)) and not isinstance(local, bool) and 0 <= local <= 1):
            raise BadInput(f'The local sensitivity is by "max" or a quantile in 0..1, but it is {local!r}. Try local="max" or 0.95.')
        self.structure, self.criterion, self.contexts, self.local, self.seed = structure, criterion, contexts, local, seed
        self.samples = self.seen = 0  # seen: contexts, or parts of them
        self.stream = Reductions(local, seed)
        self.even = Mean()  # of the contexts of even numbers: the other half is what is left of the stream
        self.parts: Counter[str] = Counter()  # of each key
        self.sums: tuple[Sums, Sums] = ({}, {})  # of every key's parts of even numbers, and of odd ones
        self.types: dict[str, torch.dtype] = {}

    def update(self, scores: Mapping[str, Tensor], key: str | None = None, samples: int = 1, number: int | None = None) -> None:
        """Adds a context, or a part of the one of that key.

        number: its place among all contexts, or among all parts of its key, where this collector sees only some of them.
        """
        if number is None:
            number = self.seen if key is None else self.parts[key]
        context = f"context {number}" if key is None else f"the context {key}"
        scores, total = self.checked(scores, context)
        self.types = {name: value.dtype for name, value in scores.items()}
        self.samples, self.seen = self.samples + samples, self.seen + 1
        if key is None:
            shares = normalised(scores, total)
            self.stream.add(shares, number)
            if number % 2 == 0:
                self.even.add(shares)
            return
        self.parts[key] += 1
        half = self.sums[number % 2]
        if key not in half:
            half[key] = tree.apply(lambda value: torch.zeros_like(value, dtype=torch.float64), scores)
        for name, value in half[key].items():
            value.add_(scores[name], alpha=samples)

    def step(self, model: nn.Module, samples: int = 1) -> None:
        """Adds what the criterion (taylor: (sum of g w)^2, snip or movement) sees in a training step.

        Call it between `backward()` and the optimizer's step. A step whose gradients are not finite is left out, as a gradient scaler
        leaves it out.
        """
        if self.criterion not in STEPS:
            raise BadInput(f"The criterion {self.criterion} cannot be collected while training. Choose one of: {', '.join(STEPS)}.")
        named = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
        for prefix in ("module.", "_orig_mod."):  # what data-parallel and compiled wrappers put before every name
            if not all(name in named for name in self.structure.numel):
                named = {name.removeprefix(prefix): value for name, value in named.items()}
        for name, number in self.structure.numel.items():
            if name not in named or named[name].numel() != number:
                found = "has none" if name not in named else f"has {tuple(named[name].shape)}"
                raise BadInput(
                    f"The structure has {name} with {number} elements, but this model {found}. Collect from the model it was made of."
                )
        if all(value.grad is None for value in named.values()):
            raise BadInput("No parameter has a gradient. Call collector.step(model) after loss.backward() and before zero_grad().")
        with torch.no_grad():
            products = {name: torch.zeros_like(w) if w.grad is None else plain(w.grad) * w.detach() for name, w in named.items()}
            scores = STEPS[self.criterion](self.structure.reduce(products))
        if math.isfinite(magnitude(scores)):
            self.update(scores, None, samples)

    def merge(self, other: Collector) -> Collector:
        """A collector of all that both have seen. Raises BadInput where they collect different things."""
        for name in ("criterion", "contexts", "local", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise BadInput(
                    f"These collectors differ in {name}: {getattr(self, name)!r} and {getattr(other, name)!r}. Merge those of one kind."
                )
        if {name: group.shape for name, group in self.structure.groups.items()} != {
            name: group.shape for name, group in other.structure.groups.items()
        }:
            raise BadInput("These collectors are of different structures. Merge those that were made of the same model.")
        both = self.empty()
        both.samples, both.seen = self.samples + other.samples, self.seen + other.seen
        both.types = self.types or other.types
        both.stream, both.even = self.stream.merge(other.stream), self.even.merge(other.even)
        both.parts = self.parts + other.parts
        both.sums = (joined(self.sums[0], other.sums[0]), joined(self.sums[1], other.sums[1]))
        return both

    def empty(self) -> Collector:
        return Collector(self.structure, self.criterion, self.contexts, self.local, self.seed)

    def state(self) -> State:
        """All that it has seen, as JSON values and tensors."""
        told, tensors = self.stream.state()
        held = {f"stream/{name}": value for name, value in tensors.items()}
        held |= {f"even/{name}": value for name, value in self.even.mean.items()}
        for part, sums in zip(HALVES, self.sums):
            held |= {f"{part}/{number}/{name}": v for number, scores in enumerate(sums.values()) for name, v in scores.items()}
        types = {name: str(dtype).removeprefix("torch.") for name, dtype in self.types.items()}
        facts = {"samples": self.samples, "seen": self.seen, "stream": told, "even": self.even.count, "types": types}
        return {**facts, "parts": dict(self.parts), **{part: list(sums) for part, sums in zip(HALVES, self.sums)}}, held

    def restored(self, state: State) -> Collector:
        """A collector of these settings that has seen what `state` says. Raises KeyError, TypeError or ValueError where it cannot be."""
        told, tensors = state
        part = parts_of(tensors)
        new = self.empty()
        new.samples, new.seen = whole(told["samples"]), whole(told["seen"])
        stream, types = told["stream"], told["types"]
        if not isinstance(stream, dict) or not isinstance(types, dict):
            raise TypeError("it has no reductions")
        new.stream, new.even = new.stream.restored((stream, part("stream"))), Mean(whole(told["even"]), part("even"))
        new.types = {str(name): FLOATS[dtype] for name, dtype in types.items()}
        if not isinstance(parts := told["parts"], dict):
            raise TypeError("it has no numbers of parts")
        new.parts = Counter({str(key): whole(number) for key, number in parts.items()})
        for name, sums in zip(HALVES, new.sums):
            sums |= {str(key): part(f"{name}/{number}") for number, key in enumerate(listed(told[name]))}
        return new

    def sensitivity(self, amount: float = 0.5) -> Sensitivity:
        """What came so far, and how sure it is about the units that leave at `amount`. Raises BadInput where nothing came."""
        keys: dict[str, Scores] = {}
        reductions = self.stream
        if self.parts:
            reductions = Reductions(self.local, self.seed, limit=len(self.parts))
            for key in sorted(self.parts, key=natural):
                keys[key] = self.typed(normalised(self.of_key(key)))
                reductions.add(keys[key])
        if not reductions.count:
            raise BadInput(f"The criterion {self.criterion} yielded no scores. Give it data, or yield once for every batch of task.data.")
        halves, count = self.halves(), reductions.count
        error: Scores | None = None
        if keys and halves:
            error = tree.apply(lambda a, b: (a - b).abs() / 2, *halves)
        elif not keys and count > 1:
            error = tree.apply(lambda m2: (m2 / count / (count - 1)).sqrt(), reductions.m2)
        return Sensitivity(
            global_=self.plain(reductions.mean),
            local=self.plain(reductions.local()),
            spread=self.plain(tree.apply(lambda m2: (m2 / count).sqrt(), reductions.m2)),
            keys={key: self.plain(scores) for key, scores in keys.items()},
            criterion=self.criterion,
            contexts=self.contexts,
            count=count,
            samples=self.samples,
            local_by=self.local if isinstance(self.local, str) else float(self.local),
            error=None if error is None else self.plain(error),
            stability=self.agreed(halves, amount),
            digest=self.structure.digest,
        )

    def halves(self) -> tuple[Scores, Scores] | None:
        """The global sensitivity by either half of the contexts; where they have keys, by either half of each key's parts, over the keys
        that have two. None where there is no half."""
        if not self.parts:
            odd = self.stream.average.without(self.even)
            return (self.even.mean, odd.mean) if self.even.count and odd.count else None
        both = sorted(self.sums[0].keys() & self.sums[1].keys())
        if not both:
            return None
        first, second = (tree.apply(torch.zeros_like, sums[both[0]]) for sums in self.sums)
        for mean, sums in zip((first, second), self.sums):
            for key in both:
                share = 1 / (magnitude(sums[key]) or 1.0) / len(both)
                for name, value in sums[key].items():
                    mean[name].add_(value, alpha=share)
        return first, second

    @property
    def in_halves(self) -> bool:
        """Whether every key has parts in both halves."""
        return self.sums[0].keys() == self.sums[1].keys()

    def of_key(self, key: str) -> Scores:
        """The sum of all its parts."""
        there = [half[key] for half in self.sums if key in half]
        return tree.add(*there) if len(there) > 1 else there[0]

    def stability(self, amount: float) -> Stability | None:
        """None where a half of the contexts is still missing, or where the model is sharded."""
        return self.agreed(self.halves(), amount)

    def agreed(self, halves: tuple[Scores, Scores] | None, amount: float) -> Stability | None:
        if halves is None or any(is_sharded(value) for value in halves[0].values()):
            return None
        return stability(*halves, amount)

    def typed(self, scores: Scores) -> Scores:
        """In the type that the scores came in."""
        return {name: value.to(self.types[name]) for name, value in scores.items()}

    def plain(self, scores: Scores) -> Scores:
        """In the type that the scores came in, on the CPU; of shards, this process's part."""
        return {name: local(value).detach().to("cpu", self.types[name], copy=True) for name, value in scores.items()}

    def checked(self, scores: Mapping[str, Tensor], context: str) -> tuple[Scores, float]:
        """The scores, and the sum of their magnitudes."""
        for name, group in self.structure.groups.items():
            value = scores.get(name) if isinstance(scores, Mapping) else None
            if not isinstance(value, Tensor) or tuple(value.shape) != group.shape:
                found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else "none"
                raise BadInput(
                    f"The criterion {self.criterion} gave {found} for the group {name}, which has {group.shape} units. "
                    "Yield one number for every unit."
                )
        result = {name: plain(scores[name]) for name in self.structure.groups}
        total = magnitude(result)
        if not math.isfinite(total):
            name = next(name for name, value in result.items() if not torch.isfinite(value).all())
            raise BadInput(
                f"The criterion {self.criterion} gave a score that is not finite in {context} (group {name}). "
                "Look at that data and at the weights, or choose another criterion."
            )
        return result, total


FLOATS = {"float32": torch.float32, "float64": torch.float64}  # that scores come in
HALVES = ("even_sums", "odd_sums")
Sums = dict[str, Scores]  # by key


def joined(a: Sums, b: Sums) -> Sums:
    """The sums by key of both."""
    one = {key: tree.apply(torch.clone, scores) for key, scores in {**a, **b}.items()}
    return {**one, **{key: tree.add(a[key], b[key]) for key in a.keys() & b.keys()}}


def merge(sensitivity: Sensitivity, local: float | str = 0.0) -> Scores:
    """One score a unit, of global and local sensitivity.

    a number in 0..1    (1 - local) global + local l / sum |l|: 0 ranks by the whole data, 1 by the context that needs a unit most
    "rms"               sqrt(mean over c of n_c^2) = sqrt(global^2 + spread^2): between the two, what several contexts need counts more
                        than what one of them does, and what some need much more than what all need a little
    """
    if local == "rms":
        return tree.apply(torch.hypot, sensitivity.global_, sensitivity.spread)
    if isinstance(local, bool) or not isinstance(local, (int, float)) or not 0 <= local <= 1:
        raise BadInput(f'The weight of the local sensitivity must be in 0..1, or "rms", but it is {local!r}. Try local=0.3.')
    return tree.add(tree.scale(sensitivity.global_, 1 - local), tree.scale(normalised(sensitivity.local), local))
