"""Powers of every sample's gradient, beside a loop of one backward pass a sample."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.flows import sums, ways
from secateur.flows.axes import Axis
from secateur.flows.ways import CONVOLUTIONS, Place, of_convolution
from secateur.task import Task

SIZES = (9, 8, 7)  # of images, with so many of their dimensions
KINDS = {
    "plain": {}, "stride": {"stride": 2}, "padding": {"padding": 1}, "dilation": {"dilation": 2}, "pointwise": {"kernel_size": 1},
    "pointwise in strides": {"kernel_size": 1, "stride": 3}, "pointwise in padding": {"kernel_size": 1, "padding": 2},
    "groups": {"groups": 2}, "all": {"stride": 2, "padding": 2, "dilation": 2}, "wide": {"kernel_size": 5, "padding": 2},
}  # fmt: skip
LAYERS = {
    **{("Conv", dims): getattr(nn, f"Conv{dims}d") for dims in (1, 2, 3)},
    **{("ConvTranspose", dims): getattr(nn, f"ConvTranspose{dims}d") for dims in (1, 2, 3)},
}


def loop(layer: nn.Module, x: Tensor, g: Tensor, power: int) -> Tensor:
    total = torch.zeros_like(layer.weight)
    for sample, gradient in zip(x, g):
        (found,) = torch.autograd.grad(layer(sample[None]), layer.weight, gradient[None])
        total += found.abs() ** power
    return total


@pytest.mark.parametrize("chunk", (1, 1 << 21))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "dims"), LAYERS)
def test_convolutions(name: str, dims: int, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "CHUNK", chunk)
    torch.manual_seed(0)
    layer = LAYERS[name, dims](4, 6, **{"kernel_size": 3, **KINDS[kind]}).double()
    x = torch.randn(3, 4, *SIZES[:dims], dtype=torch.float64)
    g = torch.randn_like(layer(x))
    output = {"output_padding": 0} if name == "ConvTranspose" else {}
    how = CONVOLUTIONS[f"conv{'_transpose' * (name == 'ConvTranspose')}{dims}d"](
        x, layer.weight, None, layer.stride, layer.padding, **output, groups=layer.groups, dilation=layer.dilation
    )
    first = Axis(0, "whole")
    for power in (1, 2):
        found = of_convolution(x, g, layer.weight, how, Place(3, first, first), power)
        torch.testing.assert_close(found, loop(layer, x, g, power), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ("outer", "inner"))
def test_several_images_a_sample(how: str) -> None:
    """Frames of a clip, say, put behind one another: the gradient of a sample is that of all its images."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    x, g = torch.randn(3, 4, 2, 5, 6, dtype=torch.float64), torch.randn(3, 4, 3, 5, 6, dtype=torch.float64)
    total = torch.zeros_like(layer.weight)
    for images, gradients in zip(x, g):
        total += torch.autograd.grad(layer(images), layer.weight, gradients)[0] ** 2
    merged = [(v if how == "outer" else v.transpose(0, 1)).flatten(0, 1) for v in (x, g)]
    geometry, place = CONVOLUTIONS["conv2d"](x, layer.weight, None, 1, 1), Place(3, Axis(0, how), Axis(0, how))
    torch.testing.assert_close(of_convolution(*merged, layer.weight, geometry, place, 2), total)


def test_a_kernel_of_one_that_makes_more_positions_than_it_reads() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 1, output_padding=1, dilation=2).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    g, first = torch.randn_like(layer(x)), Axis(0, "whole")
    how = CONVOLUTIONS["conv_transpose2d"](x, layer.weight, None, output_padding=1, dilation=2)
    torch.testing.assert_close(of_convolution(x, g, layer.weight, how, Place(3, first, first), 2), loop(layer, x, g, 2))


@pytest.mark.parametrize("build", [
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)),
    lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.Flatten(), nn.LayerNorm(54), nn.Linear(54, 2)),
    lambda: nn.Sequential(nn.Flatten(2), nn.Linear(25, 6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_in_half_precision_do_not_underflow(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """A loss so small that the squares of its gradients have no place in half precision."""
    torch.manual_seed(0)
    model = build().eval().to(dtype)
    x, y = torch.randn(8, 3, 5, 5, dtype=dtype), torch.arange(8) % 2
    exact = copy.deepcopy(model).double()
    task = Task(model, [(x, y)], lambda z, t: F.cross_entropy(z.float(), t) * 1e-3)
    other = Task(exact, [(x.double(), y)], lambda z, t: F.cross_entropy(z, t) * 1e-3)
    names = {name for name, _ in model.named_parameters()}
    (found,), (expected,) = list(sums(task, names)), list(sums(other, names))
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert float(value.sum()) == pytest.approx(float(expected[name].sum()), rel=0.1)
