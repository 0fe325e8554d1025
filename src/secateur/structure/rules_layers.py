"""Rules of operators that have weights: convolutions, matrix products, norms, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .labels import HEAD, INNER, KERNEL, OUTER, WITHIN_HEAD, Dim, inert, merge
from .rules import Dims, broadcast, outer, rule
from .rules_shape import replaced

if TYPE_CHECKING:
    from .trace import Trace


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def convolution(
    t: Trace, out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: object,
    transposed: bool, output_padding: object, groups: int, *args: object,
) -> Dims:  # fmt: skip
    """x (n, groups * i, ...), w (groups * o, i, ...); transposed: w (groups * i, o, ...). Units: groups, and within them."""
    passed = [n == 1 and s == 1 and p == 0 for n, s, p in zip(w.shape[2:], every(stride, x), every(padding, x))]
    for dim, passes in zip(t[x][2:], passed):
        if not passes:
            t.freeze(dim, "convolved along")
    for dim in t[w][2:]:
        t.freeze(dim, KERNEL)
    group_in, within_in = t.split(t[x][1], groups, x.shape[1] // groups)
    group_weight, within_weight = t.split(t[w][0], groups, w.shape[0] // groups)
    t.unite(group_in, group_weight)
    t.size(group_weight, groups)
    if transposed:
        t.unite(within_in, within_weight)
        made = merge(group_weight, t[w][1])
    else:
        t.unite(within_in, t[w][1])
        made = t[w][0]
    if bias is not None:
        t.unite(t[bias][0], made)
    return (t[x][0], made, *(dim if passes else inert(size) for dim, passes, size in zip(t[x][2:], passed, out.shape[2:])))


def every(value: Sequence[int], x: Tensor) -> Sequence[int]:
    """One number for every spatial dimension, or the same for all."""
    return value if len(value) == x.dim() - 2 else [value[0]] * (x.dim() - 2)


@rule("mm")
def mm(t: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    t.unite(t[a][1], t[b][0])
    return (t[a][0], t[b][1])


@rule("matmul")
def matmul(t: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    """(..., n, k) times (..., k, m); vectors lack n or m."""
    left, right = t[a], t[b]
    t.unite(left[-1], right[-2] if len(right) > 1 else right[0])
    batch = outer(t, left[:-2], right[:-2])
    attends(t, a, b)
    return (*batch, *left[:-1][-1:], *(right[-1:] if len(right) > 1 else ()))


def attends(t: Trace, a: Tensor, b: Tensor) -> None:
    """In a product of two activations, pairs of a split are heads (they do not mix) and what is within them (it is summed over)."""
    if id(a) in t.origin or id(b) in t.origin:
        return
    for dim in (*t[a][:-2], *t[b][:-2]):
        t.labels.plays(dim, HEAD, [OUTER])
    for dim in (*t[a][-2:], *t[b][-2:]):
        t.labels.plays(dim, WITHIN_HEAD, [INNER])


@rule("scaled_dot_product_attention")
def attention(
    t: Trace, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, p: float = 0, causal: bool = False,
    *, attn_mask: Tensor | None = None, scale: float | None = None, enable_gqa: bool = False, **kwargs: object,
) -> Dims:  # fmt: skip
    """q (..., l, e), k (..., s, e), v (..., s, f). Without a scale of its own, the scale is computed from e."""
    query, key, value, mask = t[q], t[k], t[v], mask if attn_mask is None else attn_mask
    t.unite(query[-1], key[-1])
    t.unite(key[-2], value[-2])
    t.approximates(key[-2], "a softmax runs over it")
    if scale is None:
        t.freeze(query[-1], "the attention's scale is computed from its size")
    if enable_gqa:
        heads, keys = query[-3], key[-3]
        repeated = merge(keys, inert(heads.shape[1] // keys.shape[1]))
        t.unite(heads, repeated)
        key, value = (*key[:-3], heads, *key[-2:]), (*value[:-3], merge(value[-3], inert(heads.shape[1] // keys.shape[1])), *value[-2:])
    batch = outer(t, outer(t, query[:-2], key[:-2]), value[:-2])
    attends(t, q, k)
    attends(t, k, v)
    if mask is not None:
        outer(t, (*batch, query[-2], key[-2]), t[mask])
    if causal:
        t.freeze(query[-2], "a causal mask counts it")
        t.freeze(key[-2], "a causal mask counts it")
    return (*batch, query[-2], value[-1])


@rule("einsum")
def einsum(t: Trace, out: Tensor, equation: str, operands: Sequence[Tensor], **kwargs: object) -> Dims:
    """One dimension a letter: what shares a letter leaves together. A letter that is summed over loses its zeros only."""
    terms, result = letters_of(equation, operands)
    dims: dict[str, Dim] = {}
    for term, x in zip(terms, operands):
        for letter, dim in zip(term, t[x]):
            if letter not in dims or dims[letter].shape[1] == 1:
                dims[letter] = dim
            elif dim.shape[1] > 1:
                t.unite(dims[letter], dim)
    if len(operands) == 2 and not any(id(x) in t.origin for x in operands):
        for letter, dim in dims.items():
            t.labels.plays(dim, HEAD if letter in result and all(letter in term for term in terms) else WITHIN_HEAD, [OUTER, INNER])
    for letter in set(dims) - set(result):
        if sum(letter in term for term in terms) == 1:
            t.approximates(dims[letter], "a sum runs over it")
    return tuple(dims[letter] for letter in result)


def letters_of(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """Each operand's letters and the result's; dimensions under an ellipsis are digits, counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    under = [x.dim() - len(term.replace("...", "")) for term, x in zip(terms, operands)]
    terms = [term.replace("...", digits(n)) for term, n in zip(terms, under)]
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        right = "..." * ("..." in left) + "".join(once)
    return terms, right.replace("...", digits(max(under, default=0)))


def digits(n: int) -> str:
    return "".join(chr(0x100 + i) for i in range(n - 1, -1, -1))


def sizes_by_letter(equation: str, operands: Sequence[Tensor]) -> dict[str, int]:
    terms, _ = letters_of(equation, operands)
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands):
        for letter, size in zip(term, x.shape):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


@rule("_cdist_forward", "_euclidean_dist", "cdist")
def cdist(t: Trace, out: Tensor, a: Tensor, b: Tensor, *args: object) -> Dims:
    """Distances between rows: coordinates leave together, and lose nothing but their own difference."""
    t.unite(t[a][-1], t[b][-1])
    t.approximates(t[a][-1], "a distance runs over it")
    return (*outer(t, t[a][:-2], t[b][:-2]), t[a][-2], t[b][-2])


@rule("_trilinear")
def trilinear(
    t: Trace, out: Tensor, a: Tensor, b: Tensor, c: Tensor, add_a: Sequence[int], add_b: Sequence[int], add_c: Sequence[int],
    summed: Sequence[int], *args: object,
) -> Dims:  # fmt: skip
    """Three tensors with dimensions of one put in at given places, multiplied, and summed over some."""
    spread: list[Dims] = []
    for x, added in ((a, add_a), (b, add_b), (c, add_c)):
        line = list(t[x])
        for at in added:
            line.insert(at, inert(1))
        spread.append(tuple(line))
    dims = outer(t, outer(t, spread[0], spread[1]), spread[2])
    for d in summed:
        t.approximates(dims[d], "a sum runs over it") if sum(x[d].shape[1] > 1 for x in spread) < 2 else None
    return tuple(dim for d, dim in enumerate(dims) if d not in summed)


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def loss(t: Trace, out: Tensor, x: Tensor, y: Tensor, *args: object, **kwargs: object) -> Dims:
    dims = outer(t, t[x], t[y])
    if out.dim() == len(dims):
        return dims
    for dim in dims:
        t.approximates(dim, "a mean runs over it")
    return ()


@rule("mv")
def mv(t: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    t.unite(t[a][1], t[b][0])
    return (t[a][0],)


@rule("dot", "vdot")
def dot(t: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    t.unite(t[a][0], t[b][0])
    return ()


@rule("addmm")
def addmm(t: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: object) -> Dims:
    return added(t, out, bias, mm(t, out, a, b))


@rule("bmm")
def bmm(t: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    t.unite(t[a][0], t[b][0])
    t.unite(t[a][2], t[b][1])
    attends(t, a, b)
    return (t[a][0], t[a][1], t[b][2])


@rule("baddbmm")
def baddbmm(t: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: object) -> Dims:
    return added(t, out, bias, bmm(t, out, a, b))


@rule("linear")
def linear(t: Trace, out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Dims:
    t.unite(t[x][-1], t[w][1])
    dims = (*t[x][:-1], t[w][0])
    return dims if bias is None else added(t, out, bias, dims)


def added(t: Trace, out: Tensor, bias: Tensor, dims: Dims) -> Dims:
    for mine, size, dim in zip(t[bias][::-1], reversed(bias.shape), dims[::-1]):
        if size == dim.shape[1]:
            t.unite(mine, dim)
    return dims


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
    "batch_norm",
)
def batch_norm(t: Trace, out: Sequence[Tensor], x: Tensor, *args: object, **kwargs: object) -> tuple[Dims, ...]:
    """Statistics are each channel's own, so removing one changes nothing elsewhere; those of a batch run over the rest."""
    channel = t[x][1]
    training = args[4] if len(args) > 5 else "legit_no" not in t.op  # (weight, bias, mean, var, training, momentum, eps, ...)
    for d, dim in enumerate(t[x]):
        if d != 1 and training:
            t.approximates(dim, "a batch norm's statistic runs over it")
    for value in args[:4]:
        if isinstance(value, Tensor):
            t.unite(channel, t[value][0])
    return (t[x], *((channel,) if part.shape == (x.shape[1],) else tuple(inert(n) for n in part.shape) for part in out[1:]))


@rule("native_layer_norm", "layer_norm")
def layer_norm(
    t: Trace, out: Sequence[Tensor], x: Tensor, shape: Sequence[int], w: Tensor | None = None, b: Tensor | None = None, eps: float = 0
) -> tuple[Dims, ...]:
    dims = t[x]
    for at, dim in enumerate(dims[-len(shape) :]):
        t.approximates(dim, "a layer norm's statistic runs over it")
        t.size(dim)
        for value in (w, b):
            if value is not None:
                t.unite(dim, t[value][at])
    rest = dims[: -len(shape)] + tuple(inert(1) for _ in shape)
    return (dims, rest, rest)


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(
    t: Trace, out: object, x: Tensor, shape: Sequence[int] = (), w: Tensor | None = None, eps: float | None = None, **named: Any
) -> object:
    dims = layer_norm(t, (), x, named.get("normalized_shape", shape), named.get("weight", w))
    return dims[:2] if isinstance(out, (tuple, list)) else dims[0]


@rule("native_group_norm")
def group_norm(
    t: Trace, out: Sequence[Tensor], x: Tensor, w: Tensor | None, b: Tensor | None, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Dims, ...]:
    """A whole group can leave and change nothing elsewhere; a channel within a group takes part in its statistic."""
    for value in (w, b):
        if value is not None:
            t.unite(t[x][1], t[value][0])
    group, within = t.split(t[x][1], groups, c // groups)
    t.size(group, groups)
    for dim in (within, *t[x][2:]):
        t.approximates(dim, "a group norm's statistic runs over it")
    return (t[x], (t[x][0], group), (t[x][0], group))


@rule("embedding")
def embedding(t: Trace, out: Tensor, w: Tensor, index: Tensor, *args: object) -> Dims:
    t.picked(t[w][0], index, "looked up by number")
    return (*t[index], t[w][1])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(t: Trace, out: Sequence[Tensor], w: Tensor, *args: object, **kwargs: object) -> tuple[Dims, ...]:
    t.freeze(t[w][0], "looked up by number")
    first: tuple[Dim, ...] = (inert(out[0].shape[0]), t[w][1])
    return (first, *(tuple(inert(n) for n in part.shape) for part in out[1:]))


@rule("_grouped_mm")
def grouped_mm(t: Trace, out: Tensor, x: Tensor, w: Tensor, ends: Tensor | None = None, *args: object, **kwargs: object) -> Dims:
    """Rows of x (rows, k), group by group, times the group's own matrix of w (groups, k, m). Rows are a multiple of 16 bytes."""
    t.unite(t[x][-1], t[w][-2])
    for dim in (t[x][-1], t[w][-1]):
        t.comes_in(dim, 16 // x.element_size())
    for dim in t[w][:-2]:
        t.freeze(dim, "rows are sent to it by number")
    return (*t[x][:-1], t[w][-1])


@rule("_weight_norm_interface")
def weight_norm(t: Trace, out: Sequence[Tensor], v: Tensor, g: Tensor, dim: int = 0) -> tuple[Dims, ...]:
    """w = g v / |v|, row by row. A row leaves by its g: v zeroed would be divided by zero."""
    t.unite(t[v][dim], t[g][dim])
    for d, other in enumerate(t[v]):
        if d != dim:
            t.approximates(other, "a weight's norm runs over it")
    t.divided_by_norm(v, dim)
    return t[v], t[g]


@rule("_pack_padded_sequence")
def pack(t: Trace, out: Sequence[Tensor], x: Tensor, lengths: Tensor, batch_first: bool = False) -> tuple[Dims, ...]:
    for dim in t[x][:2]:
        t.freeze(dim, "packed")
    return (inert(out[0].shape[0]), *t[x][2:]), (inert(out[1].shape[0]),)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(t: Trace, out: Tensor, x: Tensor, dim: int, *args: object) -> Dims:
    t.approximates(t[x][dim], "a softmax runs over it")
    return t[x]


@rule("glu")
def glu(t: Trace, out: Tensor, x: Tensor, dim: int = -1) -> Dims:
    half = out.shape[dim]
    t.unite(t[x][dim][:, :half], t[x][dim][:, half:])
    return replaced(t[x], dim, t[x][dim][:, :half])


@rule("_prelu_kernel", "prelu")
def prelu(t: Trace, out: Tensor, x: Tensor, w: Tensor) -> Dims:
    if w.dim() == 1 and x.dim() > 1 and w.numel() > 1:
        t.unite(t[x][1], t[w][0])
        return t[x]
    return broadcast(t, out, [x, w])
