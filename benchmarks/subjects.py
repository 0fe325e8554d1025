"""What the criteria are compared on: a trained network, its structures, data to measure on and a metric on other data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minilm
import secateur as sc
from images import cifar10, sample
from nets import dscnn, resnet
from recipes import channels_of

SHEET = 5_000  # images in a file
SHEETS = 2  # of the training images: what is measured on is drawn from 10,000
CLIPS = 1_500  # of 4,890: what is measured on is drawn from these, the others are tested on

Batches = list[tuple[object, Tensor]]
images = cache(cifar10)  # two networks look at the same ones


@dataclass(frozen=True)
class Setting:
    """Where the data is, where the model runs, how many samples are measured on (pairs of sentences: at most), and how many tested on."""

    data: Path
    device: str = "cpu"
    images: int = 1024
    test: int = 5000
    batch: int = 128
    sentences: int = 256


@dataclass(frozen=True)
class Subject:
    """calibration: the batches to measure on, by a seed and a number of samples. test: how good a model is, 0..1."""

    name: str
    model: nn.Module
    structures: dict[str, sc.Structure]
    loss: sc.task.Loss
    calibration: Callable[[int, int], Batches]
    test: Callable[[nn.Module], float]
    images: int
    tested: int
    example: object = None

    @property
    def norms(self) -> bool:
        """Whether there is a batch norm to re-estimate."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules())


def cross_entropy(outputs: object, targets: object) -> Tensor:
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return F.cross_entropy(outputs, targets)


def squared_error(outputs: object, targets: object) -> Tensor:
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return F.mse_loss(outputs, targets)


def top1(test: Batches) -> Callable[[nn.Module], float]:
    def share(model: nn.Module) -> float:
        was = torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cudnn.allow_tf32 = True  # of a GPU: faster, and its rounding moves few images to another class
            with torch.inference_mode():
                right = torch.stack([(model(x).argmax(1) == y).sum() for x, y in test]).sum()
        finally:
            torch.backends.cudnn.allow_tf32 = was
        return float(right) / sum(len(y) for _, y in test)  # one wait for the device

    return share


def last(batches: Batches) -> Batches:
    """Channels last in memory: faster, and the same numbers."""
    return [(x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) else x, y) for x, y in batches]


def batched(x: Tensor, y: Tensor, size: int, device: str) -> Batches:
    return list(zip(x.to(device).split(size), y.to(device).split(size)))


def residual(name: str, depth: int, given: Setting) -> Subject:
    model, example = resnet(depth, given.data), torch.zeros(1, 3, 32, 32)
    pixels, labels = images(given.data, "train", SHEETS)
    test = [part[: given.test] for part in images(given.data, "test", -(-given.test // SHEET))]

    @cache
    def calibration(seed: int, number: int) -> Batches:
        index = sample(labels, (given.images,), seed)[0][:number]
        return batched(pixels[index], labels[index], given.batch, given.device)

    structures = {"channels": channels_of(model, example, inner=True), "connections": sc.weights(model, example)}
    held_out = top1(last(batched(test[0], test[1], 1000, given.device)))
    return Subject(name, model.to(given.device), structures, cross_entropy, calibration, held_out, given.images, len(test[1]), example)


def keywords(name: str, given: Setting) -> Subject:
    """There are test clips only: those measured on are drawn from them, and none of all that a seed may draw is tested on."""
    clips = np.load(given.data / "speech_commands" / "mfcc_49x10_mlperf.npz", allow_pickle=False)
    x, y = torch.from_numpy(clips["x"])[:, None], torch.from_numpy(clips["y"]).long()
    pool, test = sample(y, (CLIPS, len(y) - CLIPS), 0)
    number, test = min(given.images, CLIPS), test[: given.test]
    model = dscnn(given.data)

    @cache
    def calibration(seed: int, wanted: int) -> Batches:
        index = pool[sample(pool, (number,), seed)[0][:wanted]]
        return batched(x[index], y[index], given.batch, given.device)

    structures = {"channels": sc.channels(model, x[:1]), "connections": sc.weights(model, x[:1])}
    held_out = top1(last(batched(x[test], y[test], 1000, given.device)))
    return Subject(name, model.to(given.device), structures, cross_entropy, calibration, held_out, number, len(test), x[:1])


def sentences(name: str, given: Setting) -> Subject:
    """Whole heads, and the inner channels of the feed-forward parts; the width that all layers share stays (its norms run over it)."""
    number, tested, size = min(given.images, given.sentences), min(given.test, 1379), 32
    model, example = minilm.minilm(), minilm.batches(given.data, "train", 2, 2, 0)[0][0]
    test = minilm.batches(given.data, "test", tested, 50, 0)

    @cache
    def calibration(seed: int, wanted: int) -> Batches:
        found = minilm.batches(given.data, "train", min(number, wanted), size, seed)
        return [(tuple(part.to(given.device) for part in x), y.to(given.device)) for x, y in found]

    def likeness(model: nn.Module) -> float:
        with torch.inference_mode():
            made = [model(*(part.to(given.device) for part in x)) for x, _ in test]
        return minilm.spearman(torch.cat(made), torch.cat([y for _, y in test]))

    structures: dict[str, sc.Structure] = {
        "heads": sc.channels(model, example, exact=True, units=("head",)),
        "feed-forward": sc.channels(model, example, exact=True, units=("channel",)),
    }
    return Subject(name, model.to(given.device), structures, squared_error, calibration, likeness, number, tested, example)


SUBJECTS: dict[str, Callable[[Setting], Subject]] = {
    "resnet20": lambda given: residual("resnet20", 20, given),
    "resnet56": lambda given: residual("resnet56", 56, given),
    "dscnn": lambda given: keywords("dscnn", given),
    "minilm": lambda given: sentences("minilm", given),
}
FOLDERS = {
    "resnet20": ("cifar10", "cifar10_resnet"),
    "resnet56": ("cifar10", "cifar10_resnet"),
    "dscnn": ("speech_commands", "mlperf_tiny"),
    "minilm": ("stsb",),
}


def absent(name: str, data: Path) -> str | None:
    """Why the subject cannot be had, in a sentence; None where it can."""
    for folder in FOLDERS[name]:
        if not (data / folder).is_dir():
            return f"There is no folder {folder} in {data}. Give the folder that holds it with --data."
    return minilm.absent() if name == "minilm" else None
