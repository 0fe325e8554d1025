"""criteria/scales.py: which parameters scale is seen, whatever the layer is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv
from secateur.criteria.scales import bn_scale, scales
from secateur.errors import BadInput
from secateur.structure import channels
from secateur.task import Task


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class ByHand(nn.Module):
    """A norm of root mean squares as users write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.linspace(-1, 1, width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * x.square().mean(-1, keepdim=True).rsqrt()) + 0.5 * self.shift * 2


NORMS = {
    "batch norm": (lambda: nn.Sequential(conv(2, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 3)), (2, 4, 4), {"1.weight"}),
    "group norm": (lambda: nn.Sequential(conv(2, 6), nn.GroupNorm(6, 6), nn.PReLU(6), conv(6, 3)), (2, 4, 4), {"1.weight"}),
    "instance norm": (lambda: nn.Sequential(conv(2, 6), nn.InstanceNorm2d(6, affine=True), conv(6, 3)), (2, 4, 4), {"1.weight"}),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,), {"1.weight"}),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3)), (4,), {"1.weight"}),
    "by hand": (lambda: nn.Sequential(nn.Linear(4, 6), ByHand(6), nn.Linear(6, 3)), (4,), {"1.gain"}),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_every_norm_is_found(name: str) -> None:
    build, shape, expected = NORMS[name]
    model, x = build(), torch.randn(2, *shape)
    task = Task(model, [(x, x)], F.mse_loss)
    assert scales(task, x) == expected
    with torch.no_grad():
        model.get_parameter(next(iter(expected))).copy_(torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0, -4.0]))
    (scores,) = bn_scale(task, channels(model, x))
    torch.testing.assert_close(next(iter(scores.values())), torch.tensor([3.0, 1.0, 0.5, 0.0, 2.0, 4.0]))


def test_a_unit_of_several_norms_has_their_mean_and_one_without_has_the_largest_of_all() -> None:
    model = Net(
        lambda n, x: n.d(n.c((n.n1(n.a(x)) + n.n2(n.b(x))).relu()).relu()),
        a=conv(2, 3), b=conv(2, 3), n1=nn.BatchNorm2d(3), n2=nn.BatchNorm2d(3), c=conv(3, 4), d=conv(4, 2),
    )  # fmt: skip
    with torch.no_grad():
        model.n1.weight.copy_(torch.tensor([1.0, 2.0, -3.0]))
        model.n2.weight.copy_(torch.tensor([3.0, -2.0, 6.0]))
    x = torch.randn(2, 2, 4, 4)
    (scores,) = bn_scale(Task(model, [(x, x)], F.mse_loss), channels(model, x))
    torch.testing.assert_close(scores, {"a": torch.tensor([2.0, 2.0, 4.5]), "c": torch.full((4,), 4.5)})


def test_a_model_without_norms_is_told_what_to_choose() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)), torch.randn(2, 4)
    with pytest.raises(BadInput, match=r"no unit here has one. Choose magnitude or taylor"):
        list(bn_scale(Task(model, [(x, x)], F.mse_loss), channels(model, x)))
