"""Weights from a file: safetensors, or a state dict as torch writes it. Nothing in a file can run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import BadInput, Unreadable

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "ema", "state_dict_ema", "model_ema")
PREFIXES = ("module.", "_orig_mod.")  # of a model in DataParallel, or compiled


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor, from .safetensors or from a state dict that torch.save wrote (.pt, .pth, .th, .bin), on the CPU.

    A state dict inside a checkpoint is found; prefixes that DataParallel or compilation put before all names are gone. Raises Unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise Unreadable(f"There is no file {path}. Give the file of the model's weights.")
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else state_dict_in(read_torch(path), path)
    return {bare: tensors[name] for name, bare in bare_names(tensors).items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise Unreadable(f"{path} is not a whole safetensors file: {error}. Save or download it again.") from error


def read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file fails in the unpickler in any way
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise Unreadable(
                f"{path} holds more than tensors (a whole pickled model, say), and reading that could run code, so it is not read. "
                f"Where it came from, save only the weights: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
            ) from error
        fact = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise Unreadable(f"{path} is not a whole file of weights: {fact}. Save or download it again.") from error


def state_dict_in(value: object, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint."""
    while isinstance(value, Mapping):
        nested = next((value[key] for key in NESTS if isinstance(value.get(key), Mapping)), None)
        if nested is None:
            break
        value = nested
    if isinstance(value, Mapping):
        tensors = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
        if tensors:
            return tensors
    has = f"a dict of {', '.join(map(str, list(value)[:5]))}" if isinstance(value, Mapping) and value else f"a {type(value).__name__}"
    raise Unreadable(f"{path} holds {has}, in which there is no state dict. Save model.state_dict() alone.")


def bare_names(names: Mapping[str, object]) -> dict[str, str]:
    """Each name without the prefixes that all of them have."""
    bare = {name: name for name in names}
    while prefix := next((p for p in PREFIXES if bare and all(name.startswith(p) for name in bare.values())), None):
        bare = {name: short.removeprefix(prefix) for name, short in bare.items()}
    return bare


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model`, in place and in its own types, with the weights in the file.

    Every parameter must be in the file, with its shape, and nothing else may be; buffers that are not there keep their values, and one
    name of tied weights is enough. Raises BadInput, naming the first misfit, before anything is changed.
    """
    read = read_weights(path)
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    bare = bare_names(state)
    named = {bare[name]: value for name, value in state.items()}
    prefix = next((name.removesuffix(short) for name, short in bare.items()), "")
    outside = {name.removeprefix(prefix) for name, _ in model.named_buffers()}  # older files hold buffers that are no longer saved
    found = {id(value): read[name] for name, value in named.items() if name in read}
    missing = [name for name, value in named.items() if id(value) not in found and isinstance(value, nn.Parameter)]
    unexpected = [name for name in read if name not in named and name not in outside]
    misfits = [
        *(
            f"{name} is {tuple(read[name].shape)} there, but {tuple(named[name].shape)} in the model"
            for name in read
            if misfit(name, read, named)
        ),
        *(f"{name} is missing there" for name in missing),
        *(f"{name} is there, but not in the model" for name in unexpected),
        *(f"{name} differs there from what the model ties it to" for name in read if untied(name, read, named, found)),
    ]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise BadInput(f"The weights in {path} do not fit the model: {misfits[0]}{more}. Give the weights of this architecture.")
    with torch.no_grad():
        for value in named.values():
            if id(value) in found:
                value.copy_(found[id(value)])


def misfit(name: str, read: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> bool:
    return name in named and read[name].shape != named[name].shape


def untied(name: str, read: Mapping[str, Tensor], named: Mapping[str, Tensor], found: Mapping[int, Tensor]) -> bool:
    """Whether the file has another tensor under another name of the same parameter."""
    other = found[id(named[name])] if name in named else read[name]
    return read[name] is not other and not torch.equal(read[name], other)
