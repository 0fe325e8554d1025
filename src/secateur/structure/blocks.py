"""The structure in which blocks of connections leave together: sparse formats and kernels that work block by block can use the zeros."""

from __future__ import annotations

from torch import nn

from ..errors import BadInput
from .axes import Axes
from .structure import Group
from .tiles import blocks_along
from .weights import Weights, of_tensors


def blocks(model: nn.Module, shape: tuple[int, int] = (1, 4), example: object = None) -> Weights:
    """Blocks of `shape` = (outputs, inputs) of every weight tensor as units. With an example of the inputs, MACs can be counted, too.

    A block is that many consecutive outputs times that many consecutive inputs. Of a convolution inputs are its input channels (those of
    a group), at one place of the kernel: of a weight (o, i, h, w) the block (1, 4) is [o, i : i + 4, h, w], four neighbours in the order
    (h, w, i) in which kernels for channels-last run through the sum; those of `weight.flatten(1)` are i, h, w. Where a size does not
    divide, the last block is smaller. Which dimension is which is known of PyTorch's layers; of a matrix that is multiplied from the left
    (x @ w) with an example only. Tensors of more dimensions that are no kernels (experts in one tensor) count as outputs first.
    Raises BadInput for a shape that is none, NothingToPrune where no parameter has two dimensions.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) != 2 or not all(type(size) is int and 1 <= size < 10**6 for size in shape):
        raise BadInput(f"The shape of a block is two whole numbers, outputs and inputs, but it is {shape!r}. Try shape=(1, 4).")
    rows, columns = shape
    if rows == columns == 1:
        raise BadInput("A block of (1, 1) is a single connection. Choose weights(model), or a larger block: shape=(1, 4).")

    def group(name: str, sizes: tuple[int, ...], axes: Axes, used: bool) -> Group:
        asked = {axes.outputs: rows, axes.inputs: columns}
        block = tuple(min(size, asked.get(dim, 1)) for dim, size in enumerate(sizes))
        return Group(name, blocks_along(sizes, block), "block", ((name, 0),), block=block)

    return of_tensors(model, example, f"{rows}x{columns}", group)
