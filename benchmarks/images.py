"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) from lossless sheets of 5,000 images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHEETS = {"train": 10, "test": 2}
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]


def cifar10(data: Path, split: str, sheets: int | None = None) -> tuple[Tensor, Tensor]:
    """The images of the split (of its first sheets), normalised, `(n, 3, 32, 32)`, and their classes."""
    folder = data / "cifar10"
    images = np.concatenate([sheet(folder / f"{split}_{number}.webp") for number in range(sheets or SHEETS[split])])
    labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)[: len(images)]
    return normalised(images), torch.from_numpy(labels).long()


def normalised(images: np.ndarray) -> Tensor:
    """uint8 `(n, 32, 32, 3)` -> float32 `(n, 3, 32, 32)`, as the networks were trained."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def sheet(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).reshape(100, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def sample(labels: Tensor, numbers: tuple[int, ...], seed: int) -> list[Tensor]:
    """Disjoint random samples of that many images each, indices into the split; the same for every seed and machine."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return list(order[: sum(numbers)].split(list(numbers)))
