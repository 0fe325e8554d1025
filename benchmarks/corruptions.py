"""Noise, blur and contrast in five levels: those of CIFAR-10-C (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness", 2019).

Images are pixels in 0..1, `(n, channels, height, width)`. They stay unrounded, where the paper's files are cut to whole bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS: dict[str, tuple[float, ...]] = {  # standard deviation; standard deviation in pixels; the share of the contrast that is left
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}


def noise(pixels: Tensor, level: float, seed: int = 0) -> Tensor:
    """x + level n,    n ~ N(0, 1) for every pixel and colour; the same n for every level of a seed."""
    normal = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (pixels + level * normal).clamp(0, 1)


def blur(pixels: Tensor, level: float, seed: int = 0) -> Tensor:
    """x * k * k^T,    k_i ~ exp(-i^2 / (2 level^2)), |i| <= 4 level; the border's pixels go on beyond it."""
    radius, colours = int(4 * level + 0.5), pixels.shape[1]
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=pixels.dtype).square() / (2 * level**2))
    rows = (kernel / kernel.sum()).expand(colours, 1, 1, -1)
    wide = F.pad(pixels, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, rows, groups=colours), rows.mT, groups=colours)


def contrast(pixels: Tensor, level: float, seed: int = 0) -> Tensor:
    """m + level (x - m),    m: the mean of each image's colour."""
    mean = pixels.mean((2, 3), keepdim=True)
    return mean + level * (pixels - mean)


CORRUPTIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {"noise": noise, "blur": blur, "contrast": contrast}
