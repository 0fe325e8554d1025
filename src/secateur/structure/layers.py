"""The structure in which whole layers are units: residual blocks and Transformer layers that can be skipped.

A module can be skipped if, with its parameters at zero, it is the identity: x + f(x) with f(x) = 0. That is looked at, not guessed: every
module whose output has its input's shape is run again, on its own input, with its parameters at zero. Blocks are found from the inside
out: one that holds others that can be skipped is no unit of its own.

Where a norm closes the block (norm(x + f(x)), as in BERT), zeroing it is not skipping it. Such blocks, if they stand in a row of their
kind, form a group that is marked approximate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..task import call, evaluating
from ..tree import Scores, Tree
from .cut import skip, twin
from .run import copy_of, first_line
from .structure import Group, digest_of, shapes_of
from .weights import uses

CLOSE = 1e-6  # of the largest input: the model may run in float32
NOT_THE_SAME = "what it does without its weights (a norm behind the sum) is left out, too"

ALONE = "it is the only layer that could be skipped{how}, and one has to stay"
HOW = {"layers": " exactly", "layers, approximate": " approximately"}  # where there are layers of either kind


@dataclass(frozen=True)
class Layers:
    """One group (or two: the second is approximate), whose units are modules. A parameter lies in the unit of its module, or in none."""

    groups: dict[str, Group]
    frozen: dict[str, Group]
    blocks: dict[str, tuple[str, ...]]  # group -> the paths of its modules
    numel: dict[str, int]
    itemsize: dict[str, int]
    uses: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    unit: dict[str, tuple[str, int]] = field(repr=False)  # parameter -> (group, unit)
    kind: str = "layers"
    divided: tuple[tuple[str, int], ...] = ()

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        some = next(iter(keep.values()))
        whole = torch.ones((), dtype=some.dtype, device=some.device)
        gates = {name: keep[self.unit[name][0]][self.unit[name][1]] if name in self.unit else whole for name in self.numel}
        return {name: gate.expand(self.shapes[name]) for name, gate in gates.items()}

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        first = next(iter(values.values()))
        sums = {name: torch.zeros(group.size, dtype=first.dtype, device=first.device) for name, group in self.groups.items()}
        for name, (group, unit) in self.unit.items():
            sums[group][unit] += values[name].sum()
        return sums

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inside: dict[str, list[list[str]]] = {name: [[] for _ in range(group.size)] for name, group in self.groups.items()}
        for name, (group, unit) in self.unit.items():
            inside[group][unit].append(name)
        for group, units in inside.items():
            if len({tuple(self.shapes[name] for name in names) for names in units}) > 1:
                raise BadInput(
                    f"The layers of the group {group} differ in the shapes of their weights and cannot be compared element by element. "
                    "Choose another criterion (taylor, fisher), or another structure."
                )
        return {
            group: torch.stack([torch.cat([values[name].reshape(-1) for name in names]) for names in units])
            for group, units in inside.items()
        }

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        """All indices of a dimension of every parameter of the layer; where several dimensions are given, the mean of their sums."""
        first = next(iter(lines.values()), torch.zeros(0))
        sums = {name: first.new_zeros(*first.shape[:-1], group.size) for name, group in self.groups.items()}
        given = Counter(name for name, _ in lines)
        for (name, _), line in lines.items():
            if name in self.unit:
                group, unit = self.unit[name]
                sums[group][..., unit] += line.sum(-1) / given[name]
        return sums

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        gone = {name for name, (group, unit) in self.unit.items() if not keep[group][unit]}
        return {name: 0 if name in gone else number for name, number in self.numel.items()}

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        return {}

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        return {}

    def skipped(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The paths of the modules that leave."""
        return tuple(path for name, paths in self.blocks.items() for path, stays in zip(paths, keep[name].tolist()) if not stays)

    def explain(self) -> str:
        """Which modules are units, and which are none, and why."""
        lines = []
        for name, group in self.groups.items():
            lines.append(f"{name}: {group.size} units (layer)" + (f", approximate: {group.approximate}" if group.approximate else ""))
            lines += [f"  {path}" for path in self.blocks[name]]
        return "\n".join([*lines, *(f"{name}: frozen: {group.frozen}" for name, group in self.frozen.items())])


def layers(model: nn.Module, example: object, exact: bool = False) -> Layers:
    """The modules of `model` that can be skipped whole, found by one run on `example`.

    exact: only those whose skipping equals the zeroing of their parameters.
    The model is not changed. Raises BadInput where the example does not fit it.
    """
    seen, order = observed(model, example)
    shared = parameters_in_several(model)
    found: list[str] = []
    rest: dict[str, str] = {}
    for path in sorted(seen, key=lambda path: -path.count(".")):  # from the inside out
        if any(other.startswith(path + ".") for other in found):
            continue
        module = model.get_submodule(path)
        if any(id(value) in shared[path] for value in module.parameters()):
            rest[path] = "it shares a parameter with other modules"
        elif all(identity(module, args, kwargs) for args, kwargs in seen[path]):
            found.append(path)
        else:
            rest[path] = "with its parameters at zero it is not the identity"
    chosen = {"layers": sorted(found, key=order.index), "layers, approximate": []}
    if not exact:
        rows = [path for path in rest if in_a_row(model, path, seen) and not any(nested(path, other) for other in found)]
        rows = [path for path in rows if follows(model.get_submodule(path), seen[path])]
        chosen["layers, approximate"] = sorted((p for p in rows if not any(p.startswith(o + ".") for o in rows)), key=order.index)
    blocks = {name: tuple(path for path in paths if runs_without(model, example, path)) for name, paths in chosen.items()}
    rest |= {path: "the model asks for parts of it" for path in chosen["layers"] + chosen["layers, approximate"]}
    alone = {
        paths[0]: ALONE.format(how=HOW[name] if all(blocks.values()) else "") for name, paths in blocks.items() if len(paths) == 1
    }  # fmt: skip
    rest |= alone
    blocks = {name: paths for name, paths in blocks.items() if len(paths) > 1}
    taken = {path for paths in blocks.values() for path in paths}
    kinds = {type(model.get_submodule(path)) for path in taken}
    frozen = {
        path: Group(path, (1,), "layer", frozen=why)
        for path, why in rest.items()
        if path not in taken and (looked_for(model.get_submodule(path), kinds) or path in alone)
    }
    inside = {path: [f"{path}.{p}" for p, _ in model.get_submodule(path).named_parameters()] for path in taken}
    members = {name: tuple((parameter, 0) for path in paths for parameter in inside[path]) for name, paths in blocks.items()}
    groups = {
        name: Group(name, (len(paths),), "layer", members[name], approximate=NOT_THE_SAME if "approximate" in name else "")
        for name, paths in blocks.items()
    }
    names = dict(model.named_parameters())
    return Layers(
        groups, frozen, blocks,
        numel={name: value.numel() for name, value in names.items()},
        itemsize={name: value.element_size() for name, value in names.items()},
        uses=uses(model, example), shapes=shapes_of(model), digest=digest_of(model),
        unit={parameter: (name, unit) for name in groups for unit, path in enumerate(blocks[name]) for parameter in inside[path]},
    )  # fmt: skip


def looked_for(module: nn.Module, kinds: set[type[nn.Module]]) -> bool:
    """Whether it is to be told why this is no unit: one of the units' kind is none, or where there are no units, what is made of parts."""
    return type(module) in kinds if kinds else any(True for _ in module.children())


Calls = list[tuple[tuple[object, ...], dict[str, object]]]


def observed(model: nn.Module, example: object) -> tuple[dict[str, Calls], list[str]]:
    """The calls of every module with parameters whose output has the shape of its first input, and the modules in the order they run."""
    copy = copy_of(model, lambda _, value: value)
    seen: dict[str, Calls] = {}
    unfit: set[str] = set()
    order: list[str] = []

    def after(path: str, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        order.append(path)
        x, y = first_of(args, kwargs), output
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype:
            seen.setdefault(path, []).append((args, kwargs))
        else:
            unfit.add(path)

    handles = [
        module.register_forward_hook(lambda _, args, kwargs, output, path=path: after(path, args, kwargs, output), with_kwargs=True)
        for path, module in copy.named_modules()
        if path and any(True for _ in module.parameters()) and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with evaluating(copy), torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(copy, example)
    except Exception as error:  # the user's code, whatever it raises
        raise BadInput(
            f"The model cannot run on the example: {type(error).__name__}: {first_line(error)}. "
            "Give an example with the shapes and types of its inputs."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {path: calls for path, calls in seen.items() if path not in unfit}, order


def first_of(args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    return args[0] if args else next(iter(kwargs.values()), None)


def identity(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether the module, with its parameters at zero, gives back its first input."""
    names = {name for name, _ in module.named_parameters()}
    zeroed = twin(module, lambda name, value: torch.zeros_like(value) if name in names else value.clone())
    try:
        with evaluating(zeroed), torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = zeroed(*args, **kwargs)
    except Exception:  # the user's code, whatever it raises about zeros
        return False
    x, y = first_of(args, kwargs), output
    assert isinstance(x, Tensor)
    return bool(x.numel()) and (y - x).abs().max().item() <= CLOSE * max(x.abs().max().item(), math.ulp(1.0))


def follows(module: nn.Module, calls: Calls) -> bool:
    """Whether the module, with its matrices at zero, still gives back the course of its first input: a residual stream under a norm."""
    zeroed = twin(module, lambda _, value: torch.zeros_like(value) if value.dim() > 1 else value.clone())
    try:
        with evaluating(zeroed), torch.no_grad(), torch.random.fork_rng(devices=[]):
            pairs = [(first_of(args, kwargs), zeroed(*args, **kwargs)) for args, kwargs in calls]
    except Exception:  # the user's code, whatever it raises about zeros
        return False
    return all(torch.nn.functional.cosine_similarity(centred(x), centred(y), dim=-1).mean() > 0.5 for x, y in pairs)


def centred(x: object) -> Tensor:
    assert isinstance(x, Tensor)
    return x.double() - x.double().mean(-1, keepdim=True)


def parameters_in_several(model: nn.Module) -> dict[str, set[int]]:
    """For each module the parameters that also lie elsewhere."""
    paths: dict[int, set[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(value), set()).add(name)
    tied = {key: names for key, names in paths.items() if len(names) > 1}
    return {
        path: {key for key, names in tied.items() if any(not name.startswith(path + ".") for name in names)}
        for path, _ in model.named_modules()
    }


def in_a_row(model: nn.Module, path: str, seen: Mapping[str, Calls]) -> bool:
    """Whether the module stands in a list beside another of its class that keeps shapes, too."""
    above, _, last = path.rpartition(".")
    module = model.get_submodule(path)
    if not last.isdigit() or all(value.dim() < 2 for value in module.parameters()):  # a norm computes nothing that skipping it would save
        return False
    kind = type(module)
    beside = model.get_submodule(above).named_children()
    return sum(type(module) is kind and f"{above}.{key}".lstrip(".") in seen for key, module in beside) > 1


def nested(a: str, b: str) -> bool:
    return a.startswith(b + ".") or b.startswith(a + ".")


def runs_without(model: nn.Module, example: object, path: str) -> bool:
    """Whether the model runs when the module is skipped: nobody asks it for a part of it."""
    try:
        small = skip(twin(model, lambda _, value: value), [path])
        with evaluating(small), torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(small, example)
    except Exception:  # the user's code, whatever it misses
        return False
    return True

