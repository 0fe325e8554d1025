"""A model as an exported graph whose integers are attributes: a size that is written in the model's code can then follow, too.

The graph runs operator by operator. It has the parameters and buffers of the model under their own names; where an operator takes
integers, they are the tuple `sizes_<operator>` of the graph, so that everything that is known about attributes holds for them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from ..errors import BadInput
from ..task import arguments, call, each, evaluating
from .cut import twin
from .rules import flat, name_of

REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # a part of the graph under a switch: (switches ..., graph, arguments ...)
SWITCHED = {"aten::batch_norm": 5, "aten::dropout": 2, "aten::dropout_": 2, "aten::feature_dropout": 2, "aten::alpha_dropout": 2}
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
LENIENT = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}  # strides may differ from those of the run that was exported
UNCUT = 2**63 - 1  # the end of a slice that has none


@dataclass(frozen=True)
class Value:
    """An argument that an earlier node made."""

    name: str


@dataclass(frozen=True)
class Size:
    """An argument that is the i-th of the node's integers."""

    at: int


@dataclass(frozen=True)
class Sum:
    """An argument that is calculated from others: a product of sizes. Every node has its own, so that its numbers can change alone."""

    op: Callable[..., object]
    args: tuple[object, ...]


@dataclass(frozen=True)
class State:
    """An argument that is a parameter, a buffer or a constant."""

    path: str


@dataclass(frozen=True)
class Training:
    """An argument that says whether the model is being trained."""


@dataclass(frozen=True)
class Device:
    """An argument that is the device that the model is on."""


@dataclass(frozen=True)
class Node:
    """One operator: what it is given, the user's line, and whose values nobody needs afterwards."""

    name: str
    op: Callable[..., object]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    place: str
    last: tuple[str, ...] = ()


class Graph(nn.Module):
    """Runs nodes. Made by `as_graph`; its parameters carry the names of the model that it was made of."""

    def __init__(self, inputs: tuple[str, ...], nodes: tuple[Node, ...], result: object, specs: tuple[Any, Any]) -> None:
        super().__init__()
        self._inputs, self._nodes, self._result, self._specs = inputs, nodes, result, specs
        self._shapes: tuple[tuple[int, ...] | None, ...] = (None,) * len(inputs)  # of the inputs; -1: free

    def forward(self, *args: object, **kwargs: object) -> object:
        values: dict[str, object] = dict(zip(self._inputs, fx_pytree.tree_flatten_spec((args, kwargs), self._specs[0])))
        for x, shape in zip(values.values(), self._shapes):
            if shape is not None and isinstance(x, Tensor) and not _fits(tuple(x.shape), shape):
                raise BadInput(
                    f"The graph was exported for inputs of shape {shape} (-1: any), but this one is {tuple(x.shape)}, for which its "
                    "code might do something else. Export it with an example of this shape; for any batch size, write x.shape[0] where "
                    "the code says len(x)."
                )
        for node in self._nodes:
            given, named = self._given(node, values)
            values[node.name] = node.op(*given, **named)
            for name in node.last:
                del values[name]
        return pytree.tree_unflatten([_put(leaf, values, (), self) for leaf in self._result], self._specs[1])  # type: ignore[attr-defined]

    def _given(self, node: Node, values: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
        sizes = self.__dict__.get(f"sizes_{node.name}", ())
        return tuple(_put(arg, values, sizes, self) for arg in node.args), {k: _put(v, values, sizes, self) for k, v in node.kwargs.items()}

    def __deepcopy__(self, memo: dict[int, object]) -> Graph:
        """Nodes are shared: nothing changes them."""
        new = Graph(self._inputs, self._nodes, self._result, self._specs)
        memo[id(self)] = new
        shared = ("_inputs", "_nodes", "_result", "_specs")
        new.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items() if key not in shared})
        return new


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(size in (-1, n) for n, size in zip(shape, expected))


def _put(arg: object, values: dict[str, object], sizes: tuple[int, ...], graph: nn.Module) -> object:
    """An argument with its references followed."""
    kind = type(arg)
    if kind is Value:
        return values[arg.name]  # type: ignore[attr-defined]
    if kind is Size:
        return sizes[arg.at]  # type: ignore[attr-defined]
    if kind is State:
        return _state(graph, arg.path)  # type: ignore[attr-defined]
    if kind is Sum:
        return arg.op(*(_put(item, values, sizes, graph) for item in arg.args))  # type: ignore[attr-defined]
    if kind is list:
        return [_put(item, values, sizes, graph) for item in arg]  # type: ignore[attr-defined]
    if kind is tuple:
        return tuple(_put(item, values, sizes, graph) for item in arg)  # type: ignore[attr-defined]
    if kind is Device:
        return next(graph.parameters(), next(graph.buffers(), torch.empty(0))).device
    return graph.training if kind is Training else arg


def _leaves(arg: object) -> Iterator[object]:
    if isinstance(arg, Sum):
        arg = arg.args
    for item in arg.values() if isinstance(arg, Mapping) else arg if isinstance(arg, (tuple, list)) else ():
        yield from _leaves(item)
    if not isinstance(arg, (tuple, list, Mapping)):
        yield arg


def _state(graph: nn.Module, path: str) -> object:
    for part in path.split("."):
        graph = getattr(graph, part)
    return graph


def as_graph(model: nn.Module, example: object) -> Graph:
    """The same function as an exported graph, in which every size follows what is removed.

    example: a tensor, a tuple of arguments or a dict of keyword arguments. The first dimension of its tensors stays free where the
    model allows it; other sizes of the inputs are fixed to those of the example. Batch norms and dropouts follow `.train()` and `.eval()`.
    Raises BadInput where `torch.export` cannot capture the model, or the graph computes something else.
    """
    model = twin(model, lambda _, value: value.clone())
    training = model.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about attributes that the run sets, which are the copy's
            expected = call(model, example)
            for kind in dataclasses_in((expected, example)):
                torch.export.register_dataclass(kind)
            program = exported(model, example)
            graph = graph_of(program.module(check_guards=False)).eval()
            leaves = fx_pytree.tree_flatten_spec(arguments(example), graph._specs[0])
            shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in leaves]
            graph._shapes = tuple((-1, *shape[1:]) if shape else shape for shape in shapes)
            same = _agree(expected, call(graph, example))
            if not _agree_on_part(model, graph, example):
                graph._shapes = tuple(shapes)  # a number that is calculated from it is baked in
    except Exception as error:  # whatever the exporter or the user's code raises
        way = "take the part that branches on values out of its forward"
        if any(isinstance(module, nn.Transformer) for module in model.modules()):
            way += " (nn.Transformer compares a mask's values, unless it is told tgt_is_causal=True)"
        raise BadInput(
            f"The model cannot be exported as a graph: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}. "
            f"Prune it in its own class (as_graph=False), or {way}."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not same:
        raise BadInput("The exported graph computes something else than the model on the example. Prune the model in its own class.")
    return graph.train(training)


def dataclasses_in(value: object) -> Iterator[type]:
    """The dataclasses among nested outputs that torch cannot take apart yet."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            yield type(value)
        yield from dataclasses_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from dataclasses_in(item)
    elif isinstance(value, Mapping):
        yield from dataclasses_in(list(value.values()))


def exported(model: nn.Module, example: object) -> Any:
    """torch.export, with a free first dimension where it can be: an example of one is doubled, since 1 counts as a constant."""
    tensors = [leaf for leaf in flat(example) if isinstance(leaf, Tensor)]
    if tensors and all(x.dim() and x.shape[0] == 1 for x in tensors):
        trials = [(each(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, example), True), (example, False)]
    else:
        trials = [(example, True), (example, False)]
    for given, free in trials:
        args, kwargs = arguments(given)
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for x in {id(x): x for x in flat(given) if isinstance(x, Tensor) and x.dim() and x.shape[0] > 1}.values():
            shapes[x] = {0: torch.export.Dim.AUTO}
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where it fails, it prints the graph that it has so far
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes if free else None, strict=False)
        except Exception:
            if not free:
                raise
    raise AssertionError("the last trial returns or raises")


def graph_of(source: torch.fx.GraphModule) -> Graph:
    """Our own graph from one of torch.fx."""
    inputs = tuple(node.name for node in source.graph.nodes if node.op == "placeholder")
    made: dict[str, tuple[Node, tuple[int, ...]]] = {}
    names: dict[torch.fx.Node, object] = {}
    result = _inline(source, {}, names, made, "")
    leaves = [*_leaves(result)]
    nodes = [node for node, _ in made.values()]
    needed = {leaf.name for leaf in leaves if isinstance(leaf, Value)}
    kept = []
    for node in reversed(nodes):
        read = dict.fromkeys(leaf.name for leaf in _leaves((node.args, node.kwargs)) if isinstance(leaf, Value))
        last = tuple(name for name in (*read, node.name) if name not in needed and name not in inputs)
        needed.update(read)
        kept.append(Node(node.name, node.op, node.args, node.kwargs, node.place, last))
    graph = Graph(inputs, tuple(reversed(kept)), leaves, (source._in_spec, source._out_spec))
    for name, (_, sizes) in made.items():
        if sizes:
            setattr(graph, f"sizes_{name}", sizes)
    _take_state(graph, source)
    return graph


def _inline(
    source: torch.fx.GraphModule, given: dict[str, object], names: dict[torch.fx.Node, object], made: dict[str, Any], prefix: str
) -> object:
    """Turn the nodes of `source` into ours, those of parts under a switch in their place; returns what it returns."""
    result: object = None
    known = {memory(value): name for name, value in [*source.named_buffers(), *source.named_parameters()]}  # some models use them unseen
    for node in source.graph.nodes:
        name = prefix + node.name
        if node.op == "placeholder":
            names[node] = given.get(node.name, Value(name))
        elif node.op == "get_attr":
            value = _state(source, node.target)
            names[node] = value if isinstance(value, torch.fx.GraphModule) else State(known.get(memory(value), node.target))
        elif node.op == "output":
            result = _mapped(node.args[0], names, None)
        elif node.op == "call_function" and getattr(node.target, "__name__", "") in REGIONS:
            args = [_mapped(arg, names, None) for arg in node.args]
            at = next(i for i, arg in enumerate(args) if isinstance(arg, torch.fx.GraphModule))
            part: Any = args[at]
            slots = [inner.name for inner in part.graph.nodes if inner.op == "placeholder"]
            names[node] = _inline(part, dict(zip(slots, args[at + 1 :])), names, made, f"{name}_")
        elif node.op == "call_function" and node.target is operator.getitem and isinstance(names[node.args[0]], (tuple, list)):
            names[node] = names[node.args[0]][node.args[1]]  # type: ignore[index]
        elif node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator" and node.target is not operator.getitem:
            names[node] = Sum(node.target, tuple(_mapped(arg, names, None) for arg in node.args))
        elif node.op == "call_function":
            sizes: list[int] = []
            switched = SWITCHED.get(name_of(node.target)) if not isinstance(node.target, str) else None
            literal = sizes if node.target is not operator.getitem else None
            args = [Training() if at == switched and arg is False else _mapped(arg, names, literal) for at, arg in enumerate(node.args)]
            kwargs = {key: _mapped(arg, names, literal) for key, arg in node.kwargs.items()}
            if node.target is ATTENTION and kwargs.get("scale") is None:
                kwargs["scale"] = node.args[0].meta["val"].shape[-1] ** -0.5  # as it was: it must not change with a head's size
            made[name] = Node(name, LENIENT.get(node.target, node.target), tuple(args), kwargs, _line(node)), tuple(sizes)
            names[node] = Value(name)
        else:
            raise ValueError(f"a node of kind {node.op} ({node.target})")
    return result


def memory(value: object) -> object:
    """Equal for tensors that are the same memory."""
    if isinstance(value, Tensor) and not value.is_meta and value.numel():
        return value.data_ptr(), value.shape, value.stride()
    return id(value)


def _mapped(arg: object, names: Mapping[torch.fx.Node, object], sizes: list[int] | None) -> object:
    """An argument of a node of torch.fx as one of ours; integers go to `sizes`."""
    if isinstance(arg, torch.fx.Node):
        return names[arg] if sizes is None else _mapped(names[arg], names, sizes) if isinstance(names[arg], Sum) else names[arg]
    if isinstance(arg, Sum):
        return Sum(arg.op, tuple(_mapped(item, names, sizes) for item in arg.args))
    if isinstance(arg, (tuple, list)):
        items = [_mapped(item, names, sizes) for item in arg]
        return items if isinstance(arg, list) else tuple(items)
    if type(arg) is int and sizes is not None and abs(arg) < UNCUT:
        sizes.append(arg)
        return Size(len(sizes) - 1)
    return Device() if isinstance(arg, torch.device) else arg


def _line(node: torch.fx.Node) -> str:
    """The user's line that made the node (the innermost one outside PyTorch), and the module that was at work."""
    module = next((path for path, _ in reversed([*(node.meta.get("nn_module_stack") or {}).values()]) if path), "")
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")]
    for line in reversed(lines):
        path, _, rest = line.removeprefix('File "').partition('", line ')
        if "/torch/" not in path:
            line = f"{path.rsplit('/', 1)[-1]}:{rest.split(',')[0]}"
            return f"{line} ({module})" if module else line
    return module or "the model itself"


def _take_state(graph: Graph, source: nn.Module) -> None:
    """Parameters, buffers and constants under their own names; what is shared stays shared."""
    for name, parameter in source.named_parameters(remove_duplicate=False):
        module, last = _module(graph, name)
        module.register_parameter(last, parameter)
    persistent = set(source.state_dict(keep_vars=True))
    for name, buffer in source.named_buffers(remove_duplicate=False):
        module, last = _module(graph, name)
        module.register_buffer(last, buffer, persistent=name in persistent)
    for node in graph._nodes:
        for leaf in _leaves((node.args, node.kwargs)):
            if isinstance(leaf, State):
                module, last = _module(graph, leaf.path)
                if not hasattr(module, last):
                    value = _state(source, leaf.path)
                    if isinstance(value, Tensor):
                        module.register_buffer(last, value, persistent=False)
                    else:
                        setattr(module, last, value)


def _module(graph: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(graph, part):
            graph.add_module(part, nn.Module())
        graph = graph.get_submodule(part)
    return graph, last


def _agree_on_part(model: nn.Module, graph: Graph, example: object) -> bool:
    """Whether both make the same of one sample; so where the model itself refuses it."""
    part = each(lambda x: x[:1] if isinstance(x, Tensor) and x.dim() else x, example)
    try:
        expected = call(model, part)
    except Exception:  # the user's code, whatever it raises
        return True
    try:
        return _agree(expected, call(graph, part))
    except Exception:  # sizes that do not fit
        return False


def _agree(a: object, b: object) -> bool:
    pairs = list(zip(_tensors(a), _tensors(b), strict=True))
    return all(x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-4, equal_nan=True) for x, y in pairs)


def _tensors(value: object) -> Iterator[Tensor]:
    return (leaf for leaf in flat(value) if isinstance(leaf, Tensor))
