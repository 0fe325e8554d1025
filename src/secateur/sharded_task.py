"""A task whose model lies in shards over several processes (FSDP2): they compute every batch together, and each has its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from .errors import BadInput
from .task import Around, Task, call, derived, evaluating, number_of, plain
from .tree import Tree


class ShardedTask(Task):
    """Gradients are of the mean loss over the processes, as FSDP makes them: of the batch, where all are given the same; of the batches
    of all, where each has its own. Parameters and gradients are DTensors, so that what is computed of them element by element is
    computed where the shards are, and nothing is gathered but what FSDP gathers to run a layer.
    """

    def run_on(self, inputs: object, batch: int = 0, around: Around = nullcontext) -> tuple[object, Tree]:
        raise BadInput(
            "A sharded model cannot be differentiated by leaves of its own, or twice. "
            "Choose gradient, taylor, fisher, l1 or l2, or measure a model that is whole."
        )

    def gradients(self) -> Iterator[Tree]:
        for number, (inputs, targets) in enumerate(self.batches()):
            with own_gradients(self.model) as parameters:
                with torch.enable_grad(), evaluating(self.model), derived(self.place(number)):
                    number_of(self.loss, call(self.model, inputs), targets, self.place(number)).backward()  # type: ignore[no-untyped-call]
                found = {
                    name: torch.zeros_like(value) if value.grad is None else plain(value.grad) for name, value in parameters.items()
                }
            yield found


@contextmanager
def own_gradients(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The floating-point parameters without gradients, and the buffers as they are; all the caller's are back afterwards."""
    parameters = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    before = {name: value.grad for name, value in parameters.items()}
    buffers = [(value, value.detach().clone()) for value in model.buffers()]
    for value in parameters.values():
        value.grad = None
    try:
        yield parameters
    finally:
        for name, value in parameters.items():
            value.grad = before[name]
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
