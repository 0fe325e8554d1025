"""A model, the data it is measured on and the loss: what a sensitivity is a sensitivity *of*."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .counted import no_loss, nothing_counts
from .errors import BadInput, BadLoss
from .tree import Tree

Inputs: TypeAlias = "Tensor | tuple[object, ...] | list[object] | dict[str, object]"
Loss = Callable[[object, object], Tensor]  # loss(outputs, targets) -> one number, or one per sample
Around = Callable[[Tree], AbstractContextManager[object]]


def no_labels(outputs: object, targets: object) -> Tensor:
    """The loss of what runs a model only."""
    raise AssertionError("nothing asks for a loss")


@dataclass(frozen=True)
class Task:
    """A model on data under a loss. Nothing in it changes the model: not its weights, mode, gradients or buffers.

    data: re-iterable batches, each `(inputs, targets)`, or a dict that is both the model's keyword arguments and the loss's targets.
    loss: `loss(outputs, targets)`, one number or one per sample (then the mean is taken). Where nothing of a batch counts in it (all its
        targets are ignored), its mean over none, NaN, is taken for 0 (`counted.py`).
    seed: what chance a criterion needs starts here.
    first, every: where the data is a part of more (the share of one process, what is left after a stop), the number of its first batch
    there, and how far apart the numbers are.
    """

    model: nn.Module
    data: Iterable[object]
    loss: Loss
    seed: int = 0
    first: int = 0
    every: int = 1

    def place(self, batch: int) -> int:
        """The number, in the whole of the data, of the batch that comes `batch`-th here."""
        return self.first + batch * self.every

    def chance(self, batch: int) -> torch.Generator:
        """Chance for the batch that comes `batch`-th: it goes by the batch's place in the whole, so parts of the data draw as the whole."""
        return torch.Generator().manual_seed(mixed(self.seed, self.place(batch)))

    def parameters(self) -> Tree:
        """The model's floating-point parameters, detached, each once however often it is tied."""
        return {name: value.detach() for name, value in self.model.named_parameters() if value.is_floating_point()}

    def batches(self) -> Iterator[tuple[object, object]]:
        """(inputs, targets) on the model's device. Raises BadInput where there is no data."""
        device = device_of(self.model)
        batch = None
        for batch in self.data:
            yield split_batch(to(batch, device))
        if batch is None:
            raise BadInput(
                "The data has no batch (an iterator that was used up has none, either): nothing can be measured on it. "
                "Give a list, a data set's loader or another re-iterable of at least one (inputs, targets)."
            )

    def losses(self, twice: bool = False) -> Iterator[tuple[Tensor, Tree]]:
        """Per batch, the loss with its graph and the leaves it was computed from (the parameters, sharing their storage).

        twice: only use kernels that can be differentiated a second time.
        """
        for number, (inputs, targets) in enumerate(self.batches()):
            yield self.loss_on(inputs, targets, self.place(number), twice)

    def loss_on(
        self, inputs: object, targets: object, batch: int = 0, twice: bool = False, around: Around = nullcontext
    ) -> tuple[Tensor, Tree]:  # fmt: skip
        """The loss of one batch, and the leaves of its graph. Raises BadInput or BadLoss, naming the batch.

        around: given the leaves, the context in which the model runs.
        """
        with torch.enable_grad(), evaluating(self.model), differentiable(self.model, twice):
            outputs, leaves = self.run_on(inputs, batch, around)
            return number_of(or_nothing(self.loss), outputs, targets, batch), leaves

    def run_on(self, inputs: object, batch: int = 0, around: Around = nullcontext) -> tuple[object, Tree]:
        """What the model makes of one batch in evaluation mode, and the leaves it was computed from."""
        leaves = {name: value.requires_grad_() for name, value in self.parameters().items()}
        state = {**leaves, **{name: value.clone() for name, value in self.model.named_buffers()}}  # some modules count in evaluation, too
        with evaluating(self.model), around(leaves), running_on(inputs, batch):
            return torch.func.functional_call(self.model, state, *arguments(inputs)), leaves

    def gradients(self) -> Iterator[Tree]:
        """Per batch, dL/dw of its mean loss, dense and in float32 at least; zero for a parameter that the loss does not depend on."""
        for number, (loss, leaves) in enumerate(self.losses()):
            with derived(number):
                gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            yield {name: plain(gradient) for name, gradient in zip(leaves, gradients)}


@contextmanager
def running_on(inputs: object, batch: int) -> Iterator[None]:
    """Raises BadInput, naming the batch, where the model that runs on these inputs within fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (IndexError, ValueError, RuntimeError, TypeError) as error:
        raise BadInput(
            f"In batch {batch} the model could not run on inputs {describe(inputs)}: {first_line(error)}. Make the data fit the model."
        ) from error


@contextmanager
def derived(batch: int) -> Iterator[None]:
    """Raises BadLoss, naming the batch, where torch cannot take a derivative that is asked for within."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # a NotImplementedError, too: an operation that has no second derivative
        raise BadLoss(
            f"In batch {batch} the loss has no derivative that torch can compute: {first_line(error)}. Leave the operation out that cannot "
            "be differentiated (or that changes in place what is needed again), or choose a criterion of fewer derivatives."
        ) from error


def plain(value: Tensor) -> Tensor:
    """Dense, and in float32 at least: squares of half-precision gradients would underflow."""
    value = value.detach()
    return (value.to_dense() if value.is_sparse else value).to(torch.promote_types(value.dtype, torch.float32))


def device_of(model: nn.Module) -> torch.device:
    return next((value.device for value in model.parameters()), torch.device("cpu"))


def each(function: Callable[[object], object], value: object, leaf: Callable[[object], bool] = lambda value: False) -> object:
    """`function` on every leaf of nested dicts, tuples and lists, the containers around them rebuilt. leaf: which of them are leaves."""
    if isinstance(value, Mapping) and not leaf(value):
        return {key: each(function, item, leaf) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not leaf(value):
        items = [each(function, item, leaf) for item in value]
        make: Callable[..., object] = type(value)
        return make(*items) if hasattr(value, "_fields") else make(items)
    return function(value)


def to(value: object, device: torch.device) -> object:
    """Tensors moved, the containers around them rebuilt."""
    return each(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def split_batch(batch: object) -> tuple[object, object]:
    """(inputs, targets) of a batch; a dict is both."""
    if isinstance(batch, Mapping):
        return batch, batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise BadInput(
        f"A batch must be (inputs, targets) or a dict, but this one is {describe(batch)}. Make the data yield pairs: "
        "(inputs, None) where there are no targets, and none are looked at."
    )


def arguments(inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """(args, kwargs) of the model's call: a tensor is the only argument, a tuple or list the arguments, a dict the keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def call(model: nn.Module, inputs: object) -> object:
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def without_collection() -> Iterator[None]:
    """Python's collector of cycles, which looks at every object of the process whenever many are new, does not run."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def differentiable(model: nn.Module, twice: bool) -> Iterator[None]:
    """Only kernels with the derivatives that are needed: cuDNN's recurrent ones have none in evaluation, fused attention has no second."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent and device_of(model).type == "cuda" else nullcontext():
        with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext(), BatchNorms() if twice else nullcontext():
            yield


class BatchNorms(TorchFunctionMode):
    """Batch norms in evaluation are taken as what they are, x scale + shift, whose second derivative takes far less time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        return (affine if func is F.batch_norm else func)(*args, **(kwargs or {}))


def affine(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`F.batch_norm`."""
    alike = {value.dtype for value in (input, running_mean, running_var, weight, bias) if value is not None}
    if training or running_mean is None or running_var is None or len(alike) > 1:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    over = (-1, *[1] * (input.dim() - 2))
    return torch.addcmul(shift.view(over), input, scale.view(over))


def mixed(*parts: object) -> int:
    """A number in 0..2^63 that looks drawn at random, and is always the same for the same parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Chance that starts at `seed`, and the caller's random state as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach devices that are not restored
        for each_device in devices:
            with torch.cuda.device(each_device):
                torch.cuda.manual_seed(seed)
        yield


def or_nothing(loss: Loss) -> Loss:
    """The loss; 0 for a batch of which nothing counts in it."""

    def counted(outputs: object, targets: object) -> Tensor:
        value, found = loss(outputs, targets), list[object]()
        each(found.append, outputs)
        made = [output for output in found if isinstance(output, Tensor)]
        return no_loss(made) if isinstance(value, Tensor) and nothing_counts(value, made) else value

    return counted


def number_of(loss: Loss, outputs: object, targets: object, batch: int) -> Tensor:
    """The loss as one finite, differentiable number. Raises BadInput or BadLoss, naming the batch."""
    try:
        value = loss(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise BadInput(
            f"In batch {batch} the loss could not be computed from outputs {describe(outputs)} and targets {describe(targets)}: "
            f"{first_line(error)}. Make the labels and the loss fit the model's outputs."
        ) from error
    if not isinstance(value, Tensor):
        raise BadLoss(f"In batch {batch} the loss is {describe(value)}, not a tensor. Return a differentiable torch tensor.")
    value = value.mean() if value.dim() else value
    if not torch.isfinite(value):
        none = " If it is a mean over the targets that count, and none does, let it divide by at least 1." if value.isnan() else ""
        where = f"In batch {batch} the loss is {value.item()}."
        raise BadLoss(f"{where} Look at the inputs and targets of that batch, and at the weights.{none}")
    if not value.requires_grad:
        raise BadLoss(
            f"In batch {batch} the loss does not depend on the weights by a derivative. Use a differentiable one (no argmax, no .detach())."
        )
    return value


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def describe(value: object) -> str:
    """A few words for an error message: type, shape, range."""
    if isinstance(value, Tensor):
        integers = not value.is_floating_point() and not value.is_complex() and value.numel() and value.dtype != torch.bool
        span = f" in {value.min().item()}..{value.max().item()}" if integers else ""
        return f"of shape {tuple(value.shape)}{span}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in list(value.items())[:4]) + "}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"
