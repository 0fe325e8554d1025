"""How large a model is: parameters, non-zeros, multiply-accumulates, bytes in a file, bytes in a compressed file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .errors import BadInput
from .task import call, describe, device_of, evaluating, to

BIG = 1 << 30  # bytes; beyond, the file is written to disk to be weighed, and not compressed


def footprint(model: nn.Module, example: object = None) -> dict[str, float]:
    """What `model` takes, each figure measured; one that was not measured is absent.

    parameters, nonzeros: numbers of them, tied ones once. macs: per sample of `example`. bytes: of the model's safetensors file;
    compressed: of that file after zlib at level 6, for files up to 1 GB.
    """
    values = [value.detach() for value in model.parameters()]
    sizes: dict[str, float] = {
        "parameters": sum(value.numel() for value in values),
        "nonzeros": sum(int(value.count_nonzero()) for value in values),
    }
    if example is not None:
        sizes["macs"] = macs(model, example)
    return sizes | weight_of(model)


def macs(model: nn.Module, example: object) -> float:
    """Multiply-accumulates per sample, by torch's own counter: half the floating-point operations of products and convolutions.

    Fused kernels (oneDNN's LSTM, attention) are unknown to that counter, so the run is made without them.
    """
    example = to(example, device_of(model))
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(cuda_of(model)), plain_kernels(), counter:
            call(model, example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"The model does not run on the example {describe(example)}: {first_line(error)}. Give an example of the model's own inputs."
        ) from error
    return counter.get_total_flops() / 2 / samples(example)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Products one by one, none fused with others."""
    attention, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch's stub takes the descriptor for its value
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        torch.backends.mkldnn.enabled = onednn


def weight_of(model: nn.Module) -> dict[str, float]:
    """Bytes of the model's file, plain and compressed."""
    tensors = unique(model)
    if sum(value.numel() * value.element_size() for value in tensors.values()) > BIG:
        with tempfile.TemporaryDirectory() as folder:
            safetensors.torch.save_file(tensors, Path(folder) / "model.safetensors")
            return {"bytes": (Path(folder) / "model.safetensors").stat().st_size}
    file = safetensors.torch.save(tensors)
    return {"bytes": len(file), "compressed": len(zlib.compress(file, 6))}


def unique(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, tied ones once, each contiguous and on the CPU."""
    seen: set[int] = set()
    tensors = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            # a clone of its own: safetensors refuses tensors that share memory
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def samples(example: object) -> int:
    """The batch size of an example: the length of its first tensor."""
    first = next((value for value in tensors_in(example) if value.dim()), None)
    if first is None or not len(first):
        raise BadInput(f"The example {describe(example)} has no tensor with a batch dimension. Give one batch of the model's inputs.")
    return len(first)


def repeat(example: object, size: int) -> object:
    """The example's first sample, `size` times, in every tensor that has a batch dimension."""
    batch = samples(example)

    def sized(value: object) -> object:
        if isinstance(value, Tensor):
            return value[:1].repeat(size, *[1] * (value.dim() - 1)) if value.dim() and len(value) == batch else value
        if isinstance(value, dict):
            return {key: sized(item) for key, item in value.items()}
        if isinstance(value, list):
            return [sized(item) for item in value]
        if isinstance(value, tuple):
            return getattr(value, "_make", tuple)(sized(item) for item in value)
        return value

    return sized(example)


def cuda_of(model: nn.Module) -> list[torch.device]:
    """The devices besides the CPU whose random state a run of the model can touch."""
    device = device_of(model)
    return [device] if device.type == "cuda" else []


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
