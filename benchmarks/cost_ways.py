"""What is timed: nets with their data, the ways to measure them, and what others do for the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from images import cifar10, sample
from nets import resnet
from secateur import tree

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Way:
    """A measurement over a whole pass of the data. most: times plain forward and backward."""

    what: str
    structure: str  # "connections" or "units"
    criterion: str
    contexts: str
    most: float


WAYS = (
    Way("gradient of every connection", "connections", "gradient", "batch", 1.1),
    Way("Taylor of every connection", "connections", "taylor", "batch", 1.1),
    Way("Taylor of every unit", "units", "taylor", "batch", 1.1),
    Way("Fisher of every unit, per sample", "units", "fisher_sample", "batch", 1.3),
    Way("Taylor of every unit, per sample", "units", "taylor_sample", "batch", 1.3),
    Way("Fisher of every connection, per sample", "connections", "fisher_diagonal", "batch", 1.5),
    Way("Taylor of every connection, by class", "connections", "taylor", "class", 1.5),
    Way("Hessian diagonal of every connection, one probe", "connections", "hessian", "batch", 3.5),
)


@dataclass(frozen=True)
class Net:
    """A model, its batches, and both structures."""

    name: str
    about: str
    model: nn.Module
    data: Batches
    structures: dict[str, sc.Structure]

    @property
    def samples(self) -> int:
        return sum(len(targets) for _, targets in self.data)

    def ways(self) -> dict[str, Callable[[], object]]:
        task = sc.Task(self.model, self.data, F.cross_entropy)
        found: dict[str, Callable[[], object]] = {"plain": lambda: plain(self.model, self.data)}
        for way in WAYS:
            found[way.what] = lambda way=way: sc.measure(task, self.structures[way.structure], way.criterion, way.contexts)  # type: ignore[misc]
        return found


def net_of(name: str, about: str, model: nn.Module, data: Batches) -> Net:
    structures: dict[str, sc.Structure] = {"connections": sc.weights(model), "units": sc.channels(model, data[0][0][:2])}
    return Net(name, about, model, data, structures)


def residual(data: Path, images: int, batch: int, seed: int) -> Net:
    pixels, labels = cifar10(data, "train")
    index = sample(labels, (images,), seed)[0]
    batches = list(zip(pixels[index].split(batch), labels[index].split(batch)))
    return net_of("ResNet-56", f"trained on CIFAR-10, {images} images in batches of {batch}", resnet(56, data), batches)


class Layer(nn.Module):
    """Attention and a perceptron, a layer norm behind each sum."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (part(x).view(n, length, self.heads, self.dim).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = (q @ k.transpose(2, 3) * 32**-0.5).softmax(-1) @ v
        x = self.norm1(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Transformer(nn.Module):
    """Six layers of width 384 with 12 heads, as MiniLM has them."""

    def __init__(self, length: int, words: int = 1000, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, 12, 4 * width) for _ in range(layers)))
        self.head = nn.Linear(width, 10)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.norm(self.words(words) + self.places)).mean(1))


def transformer(samples: int, batch: int, length: int, seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(length).eval()
        words, labels = torch.randint(0, 1000, (samples, length)), torch.randint(0, 10, (samples,))
    about = f"six layers of width 384, random weights, {samples} sequences of {length} in batches of {batch}"
    return net_of("Transformer", about, model, list(zip(words.split(batch), labels.split(batch))))


def plain(model: nn.Module, data: Batches) -> None:
    """Forward and backward as anyone writes it, in evaluation mode."""
    model.eval()
    for inputs, targets in data:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()


# what others do for the Fisher diagonal of every connection, per sample -------------------------------------------------------------------


def loop(model: nn.Module, data: Batches, names: list[str]) -> dict[str, Tensor]:
    """One backward pass a sample."""
    weights = [dict(model.named_parameters())[name] for name in names]
    total = {name: torch.zeros_like(weight) for name, weight in zip(names, weights)}
    for inputs, targets in data:
        for x, y in zip(inputs.split(1), targets.split(1)):
            for value, gradient in zip(total.values(), torch.autograd.grad(F.cross_entropy(model(x), y), weights)):
                value += gradient.square()
    return total


def vmapped(model: nn.Module, data: Batches, names: list[str]) -> dict[str, Tensor]:
    """torch.func.vmap(grad), 16 samples at a time."""
    values = {name: value.detach() for name, value in model.named_parameters()}
    chosen, rest = {name: values[name] for name in names}, {name: value for name, value in values.items() if name not in names}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {**weights, **rest}, (x[None],)), y[None])

    total = tree.apply(torch.zeros_like, chosen)
    for inputs, targets in data:
        for x, y in zip(inputs.split(16), targets.split(16)):
            gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(chosen, x, y)
            total = tree.add(total, tree.apply(lambda value: value.square().sum(0), gradients))
    return total


def backpacked(model: nn.Module, data: Batches, names: list[str]) -> dict[str, Tensor]:
    """BackPACK's SumGradSquared, of the weights of linear layers and convolutions."""
    import copy

    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            extend(module)
    loss = extend(nn.CrossEntropyLoss())
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters() if name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inputs, targets in data:
            with backpack(SumGradSquared()):
                loss(model(inputs), targets).backward()
            for name, value in model.named_parameters():
                if name in total:
                    total[name] += value.sum_grad_squared * len(targets) ** 2  # type: ignore[operator]
    return total


OTHERS = {"a loop of one backward a sample": loop, "torch.func.vmap(grad)": vmapped, "BackPACK, SumGradSquared": backpacked}
