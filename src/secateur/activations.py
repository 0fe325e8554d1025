"""Peak activation memory as a cost: the most that the activations of one run take at a time, counted from shapes.

    peak = max over the operators of a run of (sum of the bytes of all tensors that are alive behind it) / samples of the example

A structure keeps how often each parameter is used, but not the activations, so the smaller model is run, without values where it can (on
the `meta` device), and every storage that an operator makes is watched until it is freed. Parameters, buffers and the example do not
count, nor do the kernels' own buffers; attention is counted unfused, with its matrix of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import BadInput
from .structure import Structure
from .structure.cut import cut, skip, to_meta
from .structure.run import first_line
from .structure.watch import like_the_trace
from .task import call, describe


@dataclass(frozen=True)
class Activations:
    """Bytes of activations per sample, at their peak, of the smaller model: `select(..., of=Activations(model, example))`.

    example: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
    """

    model: nn.Module
    example: object
    name: str = "activations"

    def __call__(self, structure: Structure, keep: Mapping[str, Tensor]) -> float:
        """Raises BadInput where the smaller model does not run on the example."""
        failed: Exception | None = None
        for on_meta in (True, False):  # a model that reads values cannot run without
            small = smaller(self.model, structure, keep, on_meta)
            try:
                return peak(small, to_meta(self.example) if on_meta else self.example)
            except Exception as error:  # the user's code, whatever it raises
                failed = failed or error
        raise BadInput(
            f"The smaller model does not run on the example {describe(self.example)}: {first_line(failed or Exception())}. "
            "Give an example of the model's own inputs."
        ) from failed


def smaller(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], shapes_only: bool = False) -> nn.Module:
    """What `shrink` makes of a plan that keeps these units; on request without values."""
    kept = {name: mask.bool() for name, mask in keep.items()}
    return skip(cut(model, structure.kept(kept), structure.sizes(kept), shapes_only), structure.skipped(kept))


def peak(model: nn.Module, inputs: object) -> float:
    """Bytes of the activations that are alive together, per sample, at the most."""
    given = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    samples = next((len(value) for value in given if value.dim()), 1)
    own = [*model.parameters(), *model.buffers(), *given]
    alive = Alive({value.untyped_storage()._cdata for value in own})
    with like_the_trace(model), torch.inference_mode(), alive:
        outputs = call(model, inputs)
    del outputs
    return alive.peak / max(samples, 1)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up, behind every operator, the storages that operators made and that nothing has freed yet."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = own
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        self.living = {key: entry for key, entry in self.living.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for value in tree_leaves(results):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                storage = value.untyped_storage()
                if storage._cdata not in self.own:
                    self.living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(size for _, size in self.living.values()))
        return results
