"""One labelled run of a model: on a copy without values (on the `meta` device) where it can be, on a copy on its own device where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..task import call
from .calls import opaque_as_steps, wrapped
from .cut import owned, to_meta, twin, without_values
from .labels import HIDDEN, inert
from .rules import flat
from .sizes import remember
from .trace import SizesSeen, Trace
from .watch import like_the_trace


def traced(model: nn.Module, example: object) -> tuple[Trace, bool, object]:
    """The trace of a copy, whether that was without values, and the example as it was given to it."""
    originals = {id(value): name for name, value in model.named_parameters()}
    try:
        return run(copy_of(model, lambda _, value: without_values(value)), to_meta(example), originals), True, to_meta(example)
    except BadInput:
        raise
    except Exception as meta_failed:  # the model reads a value, mixes devices or does not fit the example: only a real run can tell
        try:
            trace = run(twin(model, lambda _, value: value.clone()), example, originals)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(
                f"The model cannot run on the example: {type(error).__name__}: {first_line(error)}. "
                "Give an example with the shapes and types of its inputs."
            ) from error
        if not trace.values_read:
            trace.notes.append(f"the model was run with its values, since it cannot run without: {first_line(meta_failed)}")
        return trace, False, example


def copy_of(model: nn.Module, replace: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A `twin`. Raises BadInput for a model of which there is none."""
    for path, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":
            name = path or "The model"
            raise BadInput(f"{name} is compiled, which hides its code. Give the module from before torch.compile (._orig_mod).")
    try:
        return twin(model, replace)
    except Exception as error:  # whatever a module holds
        raise BadInput(
            f"The model cannot be copied: {type(error).__name__}: {first_line(error)}. Let it hold only what copy.deepcopy takes."
        ) from error


def run(model: nn.Module, example: object, originals: dict[int, str]) -> Trace:
    trace = Trace()
    trace.originals = originals
    trace.active.update(id(leaf) for leaf in flat(example) if isinstance(leaf, Tensor))
    remember(model)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        dims = trace.tensors[name] = tuple(trace.labels.fresh(size) if size > 1 else inert(size) for size in value.shape)
        trace.put(value, dims)
    for name, value in model.named_parameters():
        trace.names[id(value)] = trace.origin[id(value)] = name
    for path, module in model.named_modules():
        trace.modules[id(module)] = path
        if isinstance(module, torch.jit.ScriptModule):
            trace.notes.append(f"{path or 'the model'} is a ScriptModule: what runs inside is not seen, and stays whole")
        for attribute, whose in owned(module).items():
            where = f"{path}.{attribute}" if path else attribute
            weight = module._parameters.get(whose[0]) if whose else None  # a parametrised weight is none
            trace.own[where, None] = trace[weight][whose[1]] if whose and weight is not None else None
    with like_the_trace(model), torch.no_grad():
        with SizesSeen(trace), trace, opaque_as_steps(model, trace.whole), wrapped(model, trace.span):
            outputs = call(model, example)
    trace.labels.step, trace.labels.place = -1, ""
    for name, dims in trace.tensors.items():
        if name.rpartition(".")[2].startswith("weight_hh"):  # PyTorch's name for what a recurrent layer multiplies its state by
            trace.labels.plays(dims[1], HIDDEN)
        if name.rpartition(".")[2].startswith("weight_hr"):
            trace.labels.freeze(dims[1], "a state that is projected must stay larger than its projection")
    if not any(isinstance(made, Tensor) for made in flat(outputs)):
        raise ValueError("no output of the model is a tensor, so nothing tells what it computes")
    for made in flat(outputs):
        if isinstance(made, Tensor):
            for dim in (*trace[made], *([trace.points[id(made)]] if id(made) in trace.points else [])):
                trace.labels.freeze(dim, "an output of the model")
    trace.idle = any(id(value) not in trace.used for value in model.parameters())
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if id(value) not in trace.used:
            for dim in trace[value]:
                trace.labels.freeze(dim, f"{name} is not used in this run")
    return trace


def macs_per_element(trace: Trace, example: object) -> dict[str, float]:
    """Parameter -> multiply-accumulates per element and sample."""
    batch = next((leaf.shape[0] for leaf in flat(example) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    return {name: macs / batch for name, macs in trace.macs.items()}


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
