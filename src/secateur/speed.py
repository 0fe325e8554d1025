"""How long a model takes: several models timed in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from .errors import BadInput
from .footprint import cuda_of, first_line, repeat
from .task import call, describe, device_of, evaluating, to, without_collection

WARM = 3  # rounds before the clock starts: memory is allocated, kernels are chosen


def latency(
    models: Mapping[str, nn.Module],
    example: object,
    batches: Sequence[int] = (1, 32),
    repeats: int = 50,
    seconds: float = 2.0,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Milliseconds per run: model -> batch size (as text) -> (median, 95th percentile).

    Every round runs each model once, beginning with another one each time. Per batch size there are `repeats` rounds, or as many as
    fit into `seconds`, but five at least.
    """
    timed: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.random.fork_rng(cuda_of(model)))
        stack.enter_context(torch.inference_mode())
        gc.collect()
        stack.enter_context(without_collection())
        for size in batches:
            for name, times in rounds(models, repeat(example, size), repeats, seconds).items():
                timed[name][str(size)] = (statistics.median(times), percentile(times, 0.95))
    return timed


def rounds(models: Mapping[str, nn.Module], inputs: object, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every run of every model."""
    inputs_of = {name: to(inputs, device_of(model)) for name, model in models.items()}
    names, times = list(models), {name: list[float]() for name in models}
    for _ in range(WARM):
        for name in names:
            once(name, models[name], inputs_of[name])
    end = time.perf_counter() + seconds
    for number in range(repeats):
        if number >= 5 and time.perf_counter() > end:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(once(name, models[name], inputs_of[name]))
    return times


def once(name: str, model: nn.Module, inputs: object) -> float:
    cuda = device_of(model).type == "cuda"
    start = time.perf_counter()
    try:
        call(model, inputs)
        if cuda:
            torch.cuda.synchronize(device_of(model))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"The model {name} does not run on the example {describe(inputs)}: {first_line(error)}. "
            f"Give an example of the model's own inputs."
        ) from error
    return (time.perf_counter() - start) * 1000


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest values in order."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
