"""Where a weight has its inputs, as its layer says it, and as a run does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import Net
from secateur.structure.axes import ROWS, Axes, axes_of, turned
from secateur.structure.weights import seen


def by_hand() -> nn.Module:
    net = Net(lambda n, x: torch.addmm(n.bias, x @ n.left, n.right) @ n.rows.t(), a=nn.Linear(1, 1))
    net.left, net.right, net.rows = (nn.Parameter(torch.randn(sizes)) for sizes in ((4, 6), (6, 8), (5, 8)))
    net.bias = nn.Parameter(torch.randn(8))
    return net


UP = nn.ConvTranspose2d(8, 6, 3, groups=2)
CASES: dict[str, tuple[nn.Module, Tensor, dict[str, Axes], dict[str, Axes]]] = {
    "linear and convolution": (nn.Sequential(nn.Conv1d(3, 4, 2), nn.Linear(5, 2)), torch.randn(1, 3, 6), {}, {}),
    "a transposed convolution": (nn.Sequential(UP), torch.randn(1, 8, 4, 4), {"0.weight": turned(2)}, {"0.weight": turned(2)}),
    "itself": (UP, torch.randn(1, 8, 4, 4), {"weight": turned(2)}, {"weight": turned(2)}),
    "matrices by hand": (by_hand(), torch.randn(3, 4), {}, {"left": turned(), "right": turned()}),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs_come_first_where_they_do(case: str) -> None:
    model, example, told, run = CASES[case]
    assert axes_of(model) == told and seen(model, example)[1] == run


def test_a_graph_tells_it_by_its_run() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 2, groups=2), nn.Conv1d(6, 4, 1))
    example = torch.randn(2, 4, 5)
    graph = sc.as_graph(model, example)
    assert axes_of(graph) == {} and seen(graph, example)[1] == {"0.weight": turned(2)}
    assert (ROWS.outputs, ROWS.inputs, ROWS.groups) == (0, 1, 1)
