"""Global and local sensitivity: two reductions of one stream of scores, one for each context.

    n_c = s_c / sum |s_c|          every context's scores, normalised over all units
    global = mean over c of n_c    local = max (or a quantile) over c of n_c
    score = (1 - a) global + a local / sum |local|
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import tree
from .contexts import CONTEXTS, Stream
from .criteria import STEPS, Criterion, criterion, name_of
from .errors import BadInput, Unreadable
from .folders import write_atomic
from .reductions import Reductions, magnitude, normalised
from .structure import Structure, check_prunable
from .task import Task, device_of, plain, seeded
from .tree import Scores

VERSION = 1


@dataclass(frozen=True)
class Sensitivity:
    """How much the loss depends on every unit: over all contexts, and in the context that depends on it most.

    global_, local, spread: mean, maximum (or quantile) and standard deviation of the normalised scores over the contexts.
    keys: for contexts that have names (classes), the normalised scores of each.
    count, samples: contexts and samples that were seen.
    local_by: "max", or the quantile.
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

    def needs(self, group: str) -> list[str | None]:
        """For every unit of the group, the key (class) whose sensitivity to it is the largest; None where no key needs it."""
        if group not in self.global_:
            raise BadInput(f"There is no group {group!r} in this sensitivity. Choose one of: {', '.join(list(self.global_)[:8])}.")
        if not self.keys:
            return [None] * self.global_[group].numel()
        highest, which = torch.stack([scores[group].reshape(-1) for scores in self.keys.values()]).max(dim=0)
        names = list(self.keys)
        return [names[index] if value > 0 else None for value, index in zip(highest.tolist(), which.tolist())]


def measure(
    task: Task,
    structure: Structure,
    criterion: str | Criterion = "taylor",
    contexts: str = "batch",
    local: str | float = "max",
    progress: Callable[[int, int | None], None] | None = None,
) -> Sensitivity:
    """Global and local sensitivity of every unit, in one pass over the data.

    contexts: "batch", "sample" (every sample on its own: exact, and as slow as batches of one) or "class" (samples are regrouped into
    batches of one class; memory is classes x units).
    local: "max", or a quantile in 0..1 over the contexts. It is exact over classes and over up to 64 other contexts; of more than 64
    it is taken over a random sample of 64 (from task.seed), so that memory does not grow.
    progress: called with (batches done, batches in all or None).
    Raises BadInput for scores that are not finite, naming the criterion and the context.
    """
    check_prunable(structure)
    function, name = criterion_of(criterion), name_of(criterion)
    if contexts not in CONTEXTS:
        steps = " Training steps are collected while training: finetune(..., collect=Collector(structure))." if "step" in contexts else ""
        raise BadInput(f"There are no contexts {contexts!r}. Choose {', '.join(CONTEXTS)}.{steps}")
    collector = Collector(structure, name, contexts, local, task.seed)
    stream = Stream(task.data, CONTEXTS[contexts])
    total, before = length(task.data), 0
    with seeded(task.seed, device_of(task.model)):
        yielded: object = function(replace(task, data=stream), structure)
        if not isinstance(yielded, Iterable):
            made = type(yielded).__name__
            raise BadInput(f"The criterion {name} returned {made}, not scores. Let it yield structure.reduce(...) for each batch.")
        for scores in yielded:
            if contexts == "class" and stream.handed not in (0, before + 1):
                raise BadInput(
                    f"The criterion {name} did not yield one score for each batch, so its scores cannot be told apart by class. "
                    'Use contexts="batch", or yield once for every batch of task.data.'
                )
            before = stream.handed
            collector.update(scores, stream.key, stream.samples)
            if progress:
                progress(stream.taken, total)
    return collector.sensitivity()


criterion_of = criterion  # `measure` has an argument of that name


def length(data: object) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a loader of a stream has a __len__ that raises
        return None


class Collector:
    """Reduces a stream of scores to a Sensitivity. What it holds does not depend on how many contexts come.

    `update(scores)` adds a context. `update(scores, key)` adds a part of the context of that name: parts are averaged, weighted by their
    samples, and normalised together. `step(model)` adds a training step from the gradients it has anyway.
    """

    def __init__(
        self, structure: Structure, criterion: str = "taylor", contexts: str = "step", local: str | float = "max", seed: int = 0
    ) -> None:
        if local != "max" and not (isinstance(local, (int, float)) and not isinstance(local, bool) and 0 <= local <= 1):
            raise BadInput(f'The local sensitivity is by "max" or a quantile in 0..1, but it is {local!r}. Try local="max" or 0.95.')
        self.structure, self.criterion, self.contexts, self.local, self.seed = structure, criterion, contexts, local, seed
        self.samples = 0
        self.stream = Reductions(local, seed)
        self.sums: dict[str, Scores] = {}

    def update(self, scores: Mapping[str, Tensor], key: str | None = None, samples: int = 1) -> None:
        context = f"context {self.stream.count}" if key is None else f"the context {key}"
        scores = self.checked(scores, context)
        self.samples += samples
        if key is None:
            self.stream.add(normalised(scores))
            return
        if key not in self.sums:
            self.sums[key] = tree.apply(torch.zeros_like, scores)
        for name, value in self.sums[key].items():
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

    def sensitivity(self) -> Sensitivity:
        """What came so far. Raises BadInput where nothing did."""
        keys = {key: normalised(scores) for key, scores in sorted(self.sums.items(), key=lambda item: natural(item[0]))}
        reductions = self.stream
        if keys:
            reductions = Reductions(self.local, self.seed, limit=len(keys))
            for scores in keys.values():
                reductions.add(scores)
        if not reductions.count:
            raise BadInput(f"The criterion {self.criterion} yielded no scores. Give it data, or yield once for every batch of task.data.")
        return Sensitivity(
            global_=on_cpu(reductions.mean),
            local=on_cpu(reductions.local()),
            spread=on_cpu(tree.apply(lambda m2: (m2 / reductions.count).sqrt(), reductions.m2)),
            keys={key: on_cpu(scores) for key, scores in keys.items()},
            criterion=self.criterion,
            contexts=self.contexts,
            count=reductions.count,
            samples=self.samples,
            local_by=self.local if isinstance(self.local, str) else float(self.local),
        )

    def checked(self, scores: Mapping[str, Tensor], context: str) -> Scores:
        for name, group in self.structure.groups.items():
            value = scores.get(name) if isinstance(scores, Mapping) else None
            if not isinstance(value, Tensor) or tuple(value.shape) != group.shape:
                found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else "none"
                raise BadInput(
                    f"The criterion {self.criterion} gave {found} for the group {name}, which has {group.shape} units. "
                    "Yield one number for every unit."
                )
        result = {name: plain(scores[name]) for name in self.structure.groups}
        if not math.isfinite(magnitude(result)):
            name = next(name for name, value in result.items() if not torch.isfinite(value).all())
            raise BadInput(
                f"The criterion {self.criterion} gave a score that is not finite in {context} (group {name}). "
                "Look at that data and at the weights, or choose another criterion."
            )
        return result


def merge(sensitivity: Sensitivity, local: float = 0.0) -> Scores:
    """(1 - local) x global + local x local: 0 ranks by the whole data, 1 by the context that needs a unit most."""
    if isinstance(local, bool) or not isinstance(local, (int, float)) or not 0 <= local <= 1:
        raise BadInput(f"The weight of the local sensitivity must be in 0..1, but it is {local!r}. Try local=0.3.")
    return tree.add(tree.scale(sensitivity.global_, 1 - local), tree.scale(normalised(sensitivity.local), local))


def on_cpu(scores: Scores) -> Scores:
    return {name: value.detach().to("cpu", copy=True) for name, value in scores.items()}


def natural(key: str) -> tuple[int, int, str]:
    """Whole numbers in their order, before other keys."""
    return (0, int(key), key) if key.lstrip("-").isdecimal() else (1, 0, key)


def write_sensitivity(path: str | Path, sensitivity: Sensitivity) -> None:
    """One safetensors file, whole or not at all. Raises BadInput where it cannot be written."""
    parts = {"global": sensitivity.global_, "local": sensitivity.local, "spread": sensitivity.spread}
    parts |= {f"key{index}": scores for index, scores in enumerate(sensitivity.keys.values())}
    tensors = {f"{part}/{name}": value.cpu().contiguous().clone() for part, scores in parts.items() for name, value in scores.items()}
    told = {name: getattr(sensitivity, name) for name in ("criterion", "contexts", "count", "samples", "local_by")}
    told |= {"version": VERSION, "keys": list(sensitivity.keys), "groups": list(sensitivity.global_)}
    told["digest"] = digest(tensors, told)
    write_atomic(path, save(tensors, metadata={"secateur": json.dumps(told)}))


def read_sensitivity(path: str | Path) -> Sensitivity:
    """What `write_sensitivity` wrote. Raises Unreadable where it is missing, damaged or of another version."""
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["secateur"])
            if told["version"] != VERSION:
                raise Unreadable(f"{path} is of version {told['version']}, but this Secateur reads {VERSION}. Measure again.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        if told.pop("digest") != digest(tensors, told):
            raise ValueError("it does not hold what was written")
        part: Callable[[str], Scores] = lambda which: {name: tensors[f"{which}/{name}"] for name in told["groups"]}
        return Sensitivity(
            global_=part("global"),
            local=part("local"),
            spread=part("spread"),
            keys={key: part(f"key{index}") for index, key in enumerate(told["keys"])},
            criterion=str(told["criterion"]),
            contexts=str(told["contexts"]),
            count=int(told["count"]),
            samples=int(told["samples"]),
            local_by="max" if told["local_by"] == "max" else float(told["local_by"]),
        )
    except FileNotFoundError as error:
        raise Unreadable(f"{path} does not exist. Make it with: secateur measure ... --out {path}") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path} is damaged or was not written by Secateur ({str(error).splitlines()[0]}). Measure again.") from error


def digest(tensors: Mapping[str, Tensor], told: Mapping[str, object]) -> str:
    """SHA-256 over names, shapes and values, and what is told of them."""
    result = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        result.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        result.update(tensors[name].contiguous().numpy().data)
    return result.hexdigest()
