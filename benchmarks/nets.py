"""The networks that are pruned, in evaluation mode, with trained weights where the folder of data is given.

resnet    the residual networks for CIFAR-10 of He et al., "Deep Residual Learning", 2015 (section 4.2), with shortcuts that have no weights
dscnn     the keyword spotter of MLPerf Tiny (Banbury et al., 2021): depthwise separable convolutions, batch norms folded in
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}  # Idelbayev, akamaster/pytorch_resnet_cifar10


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.more = (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more)) if self.more else x  # option A
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """Depth 6n + 2: three stages of n blocks at 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks)
        self.layer2 = stage(16, 32, blocks)
        self.layer3 = stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def stage(before: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(before, width, 1 if before == width else 2), *(Block(width, width, 1) for _ in range(blocks - 1)))


def resnet(depth: int, data: Path | None = None) -> ResNet:
    """The network, in evaluation mode, trained where the folder of data is given."""
    model = ResNet(depth).eval()
    if data is not None:
        checkpoint = torch.load(data / "cifar10_resnet" / FILES[depth], map_location="cpu", weights_only=True)
        model.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()})
    return model


class DSCNN(nn.Module):
    """A convolution, four pairs of a depthwise one and a 1x1, a mean over all positions, twelve words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 64, (10, 4), 2)
        self.dw = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1, groups=64) for _ in range(4))
        self.pw = nn.ModuleList(nn.Conv2d(64, 64, 1) for _ in range(4))
        self.fc = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.pad(x, (1, 1, 4, 5))))
        for depthwise, pointwise in zip(self.dw, self.pw):
            x = F.relu(pointwise(F.relu(depthwise(x))))
        return self.fc(x.mean((2, 3)))


def dscnn(data: Path | None = None) -> DSCNN:
    model = DSCNN().eval()
    if data is not None:
        model.load_state_dict(load_file(data / "mlperf_tiny" / "dscnn_kws_float.safetensors"))
    return model
