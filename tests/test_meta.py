"""What is told at once is what PyTorch itself computes on meta: shapes, types, strides; where it cannot be known, nothing is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.structure.meta import ALIKE, KNOWN, Quick, quick
from secateur.structure.rules import flat

ATEN = torch.ops.aten
FLOAT, DOUBLE, HALF, LONG, BOOL, COMPLEX = torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64


def meta(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def last(x: Tensor) -> Tensor:
    """Channels last in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


OPERANDS = {
    "a number": meta(),
    "one": meta(1),
    "a row": meta(5),
    "a matrix": meta(4, 5),
    "three": meta(2, 4, 5),
    "an image": meta(2, 3, 4, 5),
    "an image of one channel": meta(2, 1, 4, 5),
    "an image, channels last": last(meta(2, 3, 4, 5)),
    "a pixel": meta(2, 3, 1, 1),
    "a channel": meta(3, 1, 1),
    "transposed": meta(5, 4).t(),
    "sliced": meta(4, 10)[:, ::2],
    "expanded": meta(4, 1).expand(4, 5),
    "none": meta(0, 5),
    "a column": meta(4, 1),
    "double": meta(4, 5, dtype=DOUBLE),
    "a double": meta(dtype=DOUBLE),
    "half": meta(4, 5, dtype=HALF),
    "long": meta(4, 5, dtype=LONG),
    "bool": meta(4, 5, dtype=BOOL),
    "complex": meta(4, 5, dtype=COMPLEX),
    "on another device": torch.zeros(4, 5),
}
NUMBERS: dict[str, tuple[object, ...]] = {"number": (2, 0.5, 1j), "float": (0.5,), "int": (1,), "bool": (False,), "str": ("none",)}


def overloads(name: str) -> Iterator[Any]:
    """The forms of an operator that begin with a tensor, make one and need no argument by name."""
    packet = getattr(ATEN, name)
    for op in (getattr(packet, overload) for overload in packet.overloads()):
        given = op._schema.arguments
        tensors = str(given[0].type) == "Tensor" and str(op._schema.returns[0].type) == "Tensor"
        if tensors and not any(argument.is_out or (argument.kwarg_only and not argument.has_default_value()) for argument in given):
            yield op


def calls(op: Any) -> Iterator[tuple[Any, ...]]:
    """Every pair of operands (of one shape in a backward pass), all arguments in their places, numbers of each kind."""
    choices: list[list[object]] = []
    for argument in op._schema.arguments:
        kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
        if argument.kwarg_only:
            break
        if kind == "Tensor":
            choices.append([*OPERANDS.values()] if len(choices) < 2 else [OPERANDS["a matrix"], OPERANDS["a row"]])
        else:
            choices.append([*NUMBERS[kind]])
    for args in itertools.product(*choices):
        tensors = [x for x in args if isinstance(x, Tensor)]
        if "_backward" not in str(op) or all(x.shape == tensors[0].shape for x in tensors):
            yield args


def asked(op: Any, args: tuple[Any, ...]) -> Any:
    """What PyTorch makes of it; an error as its text."""
    try:
        return op(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def told(op: Any, args: tuple[Any, ...], made: Any) -> list[object]:
    """What counts of it. Strides of dimensions of one index say nothing; nobody sees gradients that were not asked for. What a norm notes
    for its own backward pass may be of another type, and in evaluation a batch norm notes nothing elsewhere than on `meta`."""
    values = flat(made)
    if "norm_backward" in str(op):
        values = [value for value, wanted in zip(values, args[-1]) if wanted]
    elif "batch_norm" in str(op) and not (len(args) == 8 and args[5]):
        values = values[:1]
    elif "layer_norm" in str(op):
        values = [values[0], *(tuple(value.shape) for value in values[1:])] if isinstance(made, tuple) else values
    return [
        (tuple(x.shape), x.dtype, x.device.type, tuple(s for s, n in zip(x.stride(), x.shape) if n > 1) if x.numel() else ())
        if isinstance(x, Tensor)
        else x
        for x in values
    ]


def agree(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether anything was told; if so, it was right."""
    made = quick(op, args)
    if made is None:
        return False
    right = asked(op, args)
    assert type(made) is type(right) and told(op, args, made) == told(op, args, right), f"{op} on {args}: {made}, but PyTorch: {right}"
    return True


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_what_is_told_of_an_operator_that_works_element_by_element_is_right(name: str):
    for op in overloads(name):
        assert sum(agree(op, args) for args in calls(op)), f"nothing is ever told of {op}"


@pytest.mark.parametrize("name", sorted(name for name in ALIKE if hasattr(ATEN, f"{name}_")))
def test_in_place_an_operator_returns_what_it_was_given(name: str):
    for op in overloads(f"{name}_"):
        told_of = 0
        for args in calls(op):
            if (made := quick(op, args)) is not None:
                told_of += 1
                x = args[0].clone()
                assert made is args[0] and asked(op, (x, *args[1:])) is x and x.shape == made.shape, args
        assert told_of, f"nothing is ever told of {op}"


# operators with weights -----------------------------------------------------------------------------------------------------------------

IMAGES = [
    meta(2, 6, 5, 4), last(meta(2, 6, 5, 4)), meta(2, 6, 1, 1), meta(2, 1, 5, 4), meta(1, 6, 5, 4), meta(0, 6, 5, 4), meta(2, 6, 5),
    meta(2, 6),
    meta(2, 6, 3, 4, 5), meta(6, 5, 4), meta(2, 6, 8, 4)[:, :, ::2], meta(2, 1, 1, 1).expand(2, 6, 5, 4), meta(2, 6, 4, 5).transpose(2, 3),
    meta(2, 6, 5, 4, dtype=HALF), meta(2, 6, 5, 4, dtype=DOUBLE), meta(2, 4, 5, 4), torch.zeros(2, 6, 5, 4),
]  # fmt: skip
SIX: list[Tensor | None] = [meta(6), None, meta(6, dtype=HALF)]


def convolutions() -> Iterator[tuple[Any, ...]]:
    weights = [
        meta(8, 6, 3, 3), meta(8, 6, 1, 1), last(meta(8, 6, 3, 3)), meta(8, 3, 3, 3), meta(6, 1, 3, 3), meta(8, 6, 3), meta(8, 6, 2, 2, 2),
        meta(7, 3, 3, 3), meta(8, 6, 3, 3, dtype=HALF), meta(8, 6, 9, 9),
    ]  # fmt: skip
    for x, w in itertools.product(IMAGES, weights):
        n = w.dim() - 2
        for stride, padding, dilation in ((1, 0, 1), (2, 1, 1), (3, 2, 2), (1, 4, 2)):
            for transposed, groups, b in ((False, 1, None), (False, 1, meta(8)), (False, 2, meta(8)), (False, 6, meta(6)), (True, 1, None)):
                yield x, w, b, [stride] * n, [padding] * n, [dilation] * n, transposed, [0] * n, groups
        yield x, w, None, [1], [1], [1], False, [0], 1
        yield x, w, meta(5), [1] * n, [0] * n, [1] * n, False, [0] * n, 1
        yield x, w, None, [1, 2, 3][:n], [2, 1, 0][:n], [1, 2, 1][:n], False, [0] * n, 1


def dense(x: Tensor) -> bool:
    return x.untyped_storage().nbytes() == x.numel() * x.element_size()


def batch_norms(*rest: object, training: tuple[bool, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of what fits together, in every type."""
    for x, w, b in itertools.product(IMAGES, SIX, SIX):
        if x.dim() > 1 and x.shape[1] == 6:
            for mean in SIX if training else [meta(6), meta(6, dtype=HALF)]:
                for mode in training or (None,):
                    yield (x, w, b, mean, mean, *(() if mode is None else (mode,)), *rest)


def batch_norms_backward() -> Iterator[tuple[Any, ...]]:
    """As the forward pass leaves them behind."""
    for x, w in itertools.product(IMAGES, [True, False]):
        if x.dim() > 1 and x.shape[1] == 6 and dense(x) and x.numel():
            six = meta(6, dtype=x.dtype)
            for saved, mask in itertools.product((six, six[:0]), ([True, w, w], [True, False, False], [False, w, w])):
                yield torch.empty_like(x), x, six if w else None, six, six, saved, saved, False, 1e-5, mask


def layer_norms() -> Iterator[tuple[Any, ...]]:
    tensors = [
        meta(2, 5, 6), meta(6), meta(2, 6, 5).transpose(1, 2), meta(2, 1, 6).expand(2, 5, 6), meta(0, 6), meta(2, 5, 6, dtype=HALF),
        meta(2, 5, 6, dtype=DOUBLE), meta(2, 5, 4), meta(2, 10, 6)[:, ::2], torch.zeros(2, 5, 6),
    ]  # fmt: skip
    wrong: list[Tensor | None] = [meta(4), None, meta(6, dtype=HALF)]
    for x, w, b in itertools.product(tensors, [*SIX, *wrong, meta(5, 6)], [*SIX, *wrong, meta(5, 6)]):
        for shape in ([6], [5, 6]):
            yield x, shape, w, b, 1e-5


def layer_norms_backward() -> Iterator[tuple[Any, ...]]:
    """Of contiguous memory: of other orders the CPU's kernel makes contiguous gradients, as is told, and the one on `meta` does not."""
    for x, shape, w, b, _ in layer_norms():
        fits = x.is_contiguous() and x.shape[-len(shape) :] == tuple(shape)
        if fits and all(v is None or (v.shape, v.dtype) == (tuple(shape), x.dtype) for v in (w, b)):
            kept, wb = meta(*x.shape[: -len(shape)], *(1 for _ in shape), dtype=x.dtype), [w is not None, b is not None]
            for mask in ([True, *wb], [True, False, False], [False, *wb]):
                yield torch.empty_like(x), x, shape, kept, kept, w, b, mask


def linears() -> Iterator[tuple[Any, ...]]:
    inputs = [meta(2, 5, 6), meta(6), meta(2, 6, 5).mT, meta(0, 6), meta(6, 2, 5).permute(1, 2, 0), meta(4, 7), meta(), torch.zeros(2, 6)]
    weights = [meta(3, 6), meta(6, 3).t(), meta(1, 6), meta(6), meta(3, 4)]
    yield from itertools.product([*inputs, meta(2, 6, dtype=HALF)], weights, [None, meta(3), meta(1), meta(4)])


def attentions() -> Iterator[tuple[Any, ...]]:
    """Heads in front or behind in memory, no heads, fewer keys than queries, keys that are not as many as values."""
    queries = [meta(2, 4, 5, 6), meta(2, 5, 4, 6).transpose(1, 2), meta(4, 5, 6), meta(5, 6), meta(2, 4, 5, 3)]
    keys = [meta(2, 4, 7, 6), meta(2, 7, 4, 6).transpose(1, 2), meta(2, 2, 7, 6), meta(2, 1, 7, 6), meta(4, 7, 6), meta(7, 6)]
    yield from itertools.product(queries, keys, [*keys, meta(2, 4, 7, 3), meta(2, 4, 8, 6), meta(7, 3)])
    yield meta(2, 4, 5, 6), meta(2, 4, 7, 6), meta(2, 4, 7, 6), meta(5, 7)


def means() -> Iterator[tuple[Any, ...]]:
    tensors = [*OPERANDS.values(), *IMAGES]
    for x, dims in itertools.product(tensors, ([2, 3], [-1, -2], [1], [-1], [0], [], None, [7], [1, 1], [0, -1], [1, -1, -2])):
        for rest in ((), (False,), (True,)):
            yield x, dims, *rest


def products() -> Iterator[tuple[Any, ...]]:
    matrices = [meta(4, 5), meta(5, 4), meta(5, 4).t(), meta(4, 4), meta(0, 4), meta(5, 1), meta(5, 4, dtype=HALF), meta(4, 5, dtype=LONG)]
    yield from itertools.product(matrices, matrices)
    yield meta(4, 5), torch.zeros(5, 4)


def batched_products() -> Iterator[tuple[Any, ...]]:
    for (a, b), n, m in itertools.product(products(), (2, 0), (2, 1)):
        yield torch.empty_like(a)[None].expand(n, *a.shape), b[None].expand(m, *b.shape)
    yield meta(2, 4, 5).mT, meta(2, 4, 3)


def products_and_more() -> Iterator[tuple[Any, ...]]:
    for bias in (meta(4), meta(1), meta(5, 4), meta(), meta(4, dtype=HALF), meta(1, 4)):
        yield from ((bias, a, b) for a, b in products())


def concatenations() -> Iterator[tuple[Any, ...]]:
    tensors = [*OPERANDS.values()]
    for x, y in itertools.product(tensors, tensors):
        yield from (([x, y], *dim) for dim in ((), (0,), (1,), (-1,), (-2,), (3,), (-5,)))
    yield [meta(2, 3), meta(2, 4), meta(2, 1)], 1
    yield [meta(2, 3)], 1


ARGUMENTS: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "convolution": convolutions,
    "linear": linears,
    "scaled_dot_product_attention": attentions,
    "native_batch_norm": lambda: batch_norms(0.1, 1e-5, training=(False, True)),
    "_native_batch_norm_legit_no_training": lambda: batch_norms(0.1, 1e-5),
    "native_batch_norm_backward": batch_norms_backward,
    "native_layer_norm": layer_norms,
    "native_layer_norm_backward": layer_norms_backward,
    "mean": means,
    "mm": products,
    "bmm": batched_products,
    "addmm": products_and_more,
    "cat": concatenations,
}


@pytest.mark.parametrize("name", sorted([*KNOWN, "cat"]))
def test_what_is_told_of_an_operator_with_weights_is_right(name: str):
    op = ATEN.mean.dim if name == "mean" else getattr(ATEN, name).default
    assert sum(agree(op, args) for args in ARGUMENTS[name]()), f"nothing is ever told of {op}"


def test_a_batch_norm_of_what_has_gaps_in_memory_has_a_gradient():
    x, six = meta(2, 12, 4, 4)[:, ::2], meta(6)
    assert agree(ATEN.native_batch_norm_backward.default, (torch.empty_like(x), x, six, six, six, six, six, False, 1e-5, [True] * 3)) in (
        0,
        1,
    )


@pytest.mark.parametrize("at", range(1, 5))
def test_nothing_is_told_of_a_batch_norm_whose_tensors_do_not_fit(at: int):
    args: list[object] = [meta(2, 6, 4, 4), *(meta(4 if i == at else 6) for i in range(1, 5)), False, 0.1, 1e-5]
    assert quick(ATEN.native_batch_norm.default, tuple(args)) is None


@pytest.mark.parametrize(
    "op, args",
    [
        (ATEN.linear.default, (meta(2, 6, dtype=HALF), meta(3, 6, dtype=HALF), meta(3))),
        (ATEN.scaled_dot_product_attention.default, (meta(2, 4, 5, 6), meta(2, 4, 5, 6, dtype=HALF), meta(2, 4, 5, 6))),
    ],
)
def test_nothing_is_told_of_operands_of_several_types(op: Any, args: tuple[Any, ...]):
    assert quick(op, args) is None


def test_nothing_is_told_of_real_tensors_or_of_what_it_does_not_know():
    x = torch.zeros(2, 3)
    assert quick(ATEN.relu.default, (x,)) is None and quick(ATEN.add.Tensor, (x.to("meta"), x)) is None
    y = x.to("meta")
    for op, args in (
        (ATEN.matmul.default, (y, y.t())),
        (ATEN.relu.out, (y,)),
        (ATEN.zeros.default, ([2],)),
    ):
        assert quick(op, args) is None
    assert quick(ATEN.relu.default, (y,)).shape == y.shape and quick(ATEN.relu_.default, (y,)) is y


def test_a_backward_pass_gives_gradients_of_the_same_make_with_it_as_without():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(2), nn.LayerNorm(36), nn.Hardswish(), nn.Linear(36, 4), nn.SiLU(),
    )  # fmt: skip
    model = model.to("meta").eval()
    made = []
    for mode in (Quick, torch.no_grad):
        x = meta(2, 3, 8, 8).requires_grad_()
        total = model(x).sum()
        if mode is Quick:
            with Quick():
                total.backward()
        else:
            total.backward()
        made.append([(value.grad.shape, value.grad.stride(), value.grad.dtype) for value in [x, *model.parameters()]])
        model.zero_grad()
    assert made[0] == made[1]
