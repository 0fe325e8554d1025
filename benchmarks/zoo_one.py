"""One model of the zoo: trace, check, halve, count, run and compare it, with Secateur and with Torch-Pruning."""

from __future__ import annotations

import contextlib
import copy
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import zoo_table
from results import Row
from secateur.structure import as_graph, channels
from secateur.structure.cut import cut, twin
from secateur.structure.rules import flat
from secateur.structure.watch import differentiate, like_the_trace
from secateur.surgery import verify
from secateur.task import call
from secateur.tree import Keep

PATIENCE = 60  # seconds of the processor for Torch-Pruning
CLASSES = 1000
NO_REASON = ("an output of the model", "it has one unit", "is no unit that was asked for")  # there is nothing to gain


def lively(model: nn.Module) -> nn.Module:
    """Values as after training: where a scale is 0 or 1e-6, a bias 0 or a mean 0 in all its elements, many a wrong cut would not show."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    for value in model.parameters():
        if (value == value.flatten()[0]).all():
            value.data += 0.1 * torch.randn_like(value)
    return model


class Multiplications(TorchDispatchMode):
    """Counts what PyTorch has a formula for; apart, those of products of activations (attention)."""

    total = products = 0

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            macs = formula(*args, **(kwargs or {}), out_val=out) // 2
            self.total, self.products = self.total + macs, self.products + macs * ("bmm" in str(func))
        return out


def macs(*models: nn.Module, image: Tensor) -> list[Multiplications]:
    """Of every model, on `meta` if all can run there, else on numbers."""
    for device in ("meta", "cpu"):
        counts = []
        try:
            for model in models:
                model = twin(model, lambda _, value: torch.empty_like(value, device="meta")) if device == "meta" else model
                with like_the_trace(model), torch.no_grad(), Multiplications() as count:
                    call(model, image.to(device))
                counts.append(count)
        except Exception:  # whatever the user's code raises where there are no values
            if device == "cpu":
                raise
            continue
        return counts
    raise AssertionError("the last trial returns or raises")


def fails(model: nn.Module, dense: nn.Module, image: Tensor) -> str:
    """Why it does not run forward and backward on numbers with outputs of the dense model's shapes; "" where it does."""
    try:
        made = call(model, image)
        differentiate(model, made)
    except Exception as error:  # the user's code
        return brief(error)
    with torch.no_grad():
        shapes = [[value.shape for value in flat(outputs) if isinstance(value, Tensor)] for outputs in (made, call(dense, image))]
    return "" if shapes[0] == shapes[1] else "the outputs have other shapes"


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def half(groups: Any, uneven: bool = False) -> Keep:
    """A random half of every group; uneven: one more or fewer in some, since sizes that agree by chance prove nothing."""
    generator, keep = torch.Generator().manual_seed(0), {}
    for number, (name, group) in enumerate(groups.items()):
        kept = (group.size + 1) // 2 + (number % 3 - 1 if uneven and group.size > 4 else 0)
        keep[name] = torch.randperm(group.size, generator=generator) < kept + -kept % group.multiple
    return keep


@contextlib.contextmanager
def timed(row: Row, name: str) -> Iterator[None]:
    """Seconds of the processor: what else the machine does is on nobody's bill."""
    start = time.process_time()
    yield
    row[name] = round(time.process_time() - start, 3)


def secateur(model: nn.Module, example: Tensor) -> Row:
    """Trace, check, cut, count, run, compare."""
    row: Row = {}
    with timed(row, "trace"):
        structure = channels(model, example)
    with timed(row, "check"):
        structure, caught = proved(model, structure, example[:1])
    with timed(row, "shrink"):
        keep = half(structure.groups)
        small = cut(model, structure.kept(keep), structure.sizes(keep))
    before, after = macs(model, small, image=example[:1])
    row |= {"ratio": round(after.total / before.total, 4), "products": round(after.products / after.total, 4)}
    row |= {"groups": len(structure.groups), "units": sum(group.size for group in structure.groups.values())}
    row |= {"approximate": sum(bool(group.approximate) for group in structure.groups.values()), "caught": caught}
    row |= {"frozen": frozen(structure), "fails": fails(small, model, example[:1])}
    return row


def proved(model: nn.Module, structure: Any, image: Tensor) -> tuple[Any, dict[str, str]]:
    """The structure that is left, and the groups that the comparison on numbers caught, with the reason."""
    left = verify.proved(model, structure, image)
    return left, {name: left.frozen[name].frozen for name in structure.groups if name not in left.groups}


def frozen(structure: Any) -> dict[str, list[int]]:
    """Reason, without the layer it was met in -> groups, units."""
    found: dict[str, list[int]] = {}
    for group in structure.frozen.values():
        if not any(told in group.frozen for told in NO_REASON):
            number = found.setdefault(re.sub(r" \([\w.]+\)$", "", group.frozen), [0, 0])
            number[0], number[1] = number[0] + 1, number[1] + group.size
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def equality(model: nn.Module, example: Tensor) -> Row:
    """How far shrunk and masked are apart where all units are exact; in float64 if the model can."""
    image = example[:1]
    structure = channels(model, example, exact=True)
    structure, caught = proved(model, structure, image)
    double = verify.runs(model, image, verify.DOUBLE[0])
    convert, tolerance = verify.DOUBLE if double else verify.OWN
    numbers = twin(model, lambda _, value: convert(value))
    apart = verify.difference(numbers, structure, half(structure.groups, uneven=True), verify.converted(image, convert))
    return {"apart": apart, "tolerance": tolerance, "caught exact": caught, "units exact": sum(g.size for g in structure.groups.values())}


class Unfinished(BaseException):
    """No `except Exception` on the way may swallow it."""


def torch_pruning(model: nn.Module, image: Tensor) -> Row:
    """The same job done by Torch-Pruning, as its README does it; it changes the model that it is given."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"skipped": "torch-pruning is not installed"}
    row: Row = {}
    dense = copy.deepcopy(model)
    last = [layer for layer in model.modules() if CLASSES in (getattr(layer, "out_features", 0), getattr(layer, "out_channels", 0))]

    def stop(*_: object) -> None:
        raise Unfinished

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        with timed(row, "seconds"):
            importance = tp.importance.MagnitudeImportance(p=2)
            tp.pruner.BasePruner(model, image, importance=importance, pruning_ratio=0.5, ignored_layers=last).step()
    except Unfinished:
        return {"fails": f"unfinished after {PATIENCE} s"}
    except Exception as error:
        return {"fails": brief(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row["fails"] = fails(model, dense, image)
    if not row["fails"]:
        before, after = macs(dense, model, image=image)
        row["ratio"] = round(after.total / before.total, 4)
    return row


def measured(build: Callable[[], nn.Module], size: list[int]) -> Iterator[Row]:
    """The row of one model, piece by piece, so that a limit that is met leaves what was found before."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).eval()
    small = torch.randn(2, 3, 6, 6)
    tiny(small)
    secateur(tiny, small)  # what is imported at the first use is on nobody's bill
    torch_pruning(tiny, small)
    model, example = lively(build()), torch.randn(2, *size)
    for way in ("own", "graph"):
        row: Row = {}
        try:
            with timed(row, "export"):
                given = as_graph(model, example) if way == "graph" else model
            row |= secateur(given, example)
            yield {way: row}
            row |= equality(given, example)
        except Exception as error:
            row["error"] = brief(error)
        yield {way: row}
        if zoo_table.is_small(row) and zoo_table.runs(row) and zoo_table.is_equal(row):
            break
    del given
    yield {"torch-pruning": torch_pruning(model, example[:1])}
