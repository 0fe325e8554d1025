"""Along which dimension of a weight tensor its outputs lie, and along which its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Axes:
    """outputs, inputs: dimensions of the tensor. groups: the inputs lie in so many equal parts, each read by outputs of its own."""

    outputs: int = 0
    inputs: int = 1
    groups: int = 1


ROWS = Axes()  # linear layers and convolutions


def turned(groups: int = 1) -> Axes:
    """Inputs first: transposed convolutions, and matrices that an activation is multiplied by from the left."""
    return Axes(1, 0, groups)


def axes_of(model: nn.Module) -> dict[str, Axes]:
    """Of the weights whose inputs come first, as far as PyTorch's own layers tell it. (A run tells more: `Trace.axes`.)"""
    return {
        f"{path}.weight" if path else "weight": turned(module.groups)
        for path, module in model.named_modules()
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    }
