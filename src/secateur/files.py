"""A smaller model on disk: a folder of `model.safetensors` (its weights) and `plan.json` (how to make the model that they fit).

Nothing in the folder is believed before it is checked, and nothing in it can run.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import BadInput, PlanMismatch, Unreadable
from .folders import present, replacing, settle, write_text_atomic
from .plan import Plan, check_fits
from .plan_json import FORMAT, Damage, Shapes, decode, encode, schema

WEIGHTS, PLAN = "model.safetensors", "plan.json"
LARGEST = 1 << 28  # bytes of a plan.json that is still read
__all__ = ["check_writable", "load", "read_plan", "save", "schema", "write_text_atomic"]


def save(folder: str | Path, model: nn.Module, plan: Plan, force: bool = False, extra: Mapping[str, bytes | str] | None = None) -> None:
    """Write the smaller (or masked) `model` and its plan, and `extra` files by name, as one folder that appears whole or not at all.

    Raises BadInput where the folder cannot be written or, without `force`, is not one of ours; PlanMismatch where `plan` is not `model`'s.
    """
    place = check_writable(folder, force)
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors_of(model).items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    room = sum(value.numel() * value.element_size() for value in tensors.values())
    try:  # nothing is written that could not be read
        decode(encode(plan, "0" * 64).encode(), shapes, room, "0" * 64, lambda name: tensors[name] != 0)
    except Damage as error:
        raise PlanMismatch(f"The plan is not the plan of this model: {error}. Save what shrink(...) made with it.") from error
    for name in extra or {}:
        if name in (WEIGHTS, PLAN, "", ".", "..") or Path(name).name != name:
            raise BadInput(f"The extra file {name!r} cannot lie in the folder. Give a plain file name, other than {WEIGHTS} and {PLAN}.")
    with replacing(place) as fresh:
        save_file(tensors, fresh / WEIGHTS, {"format": "pt"})
        files = {**(extra or {}), PLAN: encode(plan, sha256_of(fresh / WEIGHTS))}
        for name, content in files.items():
            (fresh / name).write_bytes(content.encode() if isinstance(content, str) else content)
        shutil.copymode(fresh / PLAN, fresh / WEIGHTS)  # safetensors makes files that only their owner can read


def load(folder: str | Path, build: Callable[[], nn.Module]) -> nn.Module:
    """The model in `folder`: the architecture that `build()` gives, made smaller by the plan without tracing, filled with the weights.

    Its output equals the saved model's bit for bit. It is in the mode that `build()` left it in.
    Raises Unreadable for a missing or damaged file, PlanMismatch where `build()` gives another architecture.
    """
    from .surgery import shrink

    with torch.random.fork_rng(devices=[]):
        model = build()
    if not isinstance(model, nn.Module):
        raise BadInput(f"build() returned a {type(model).__name__}, not a torch.nn.Module. Return the dense model from it.")
    with opened(folder) as (plan, read, stored):
        check_fits(plan.shapes, model)
        small = shrink(model, plan)
        fill(small, stored, read)
    return small


def read_plan(folder: str | Path) -> Plan:
    """The plan in `folder`, checked against the weights beside it. Raises Unreadable."""
    with opened(folder) as (plan, _, _):
        return plan


@contextmanager
def opened(folder: str | Path) -> Iterator[tuple[Plan, Callable[[str], Tensor], Shapes]]:
    """The plan of a folder, its tensors by name, and their shapes."""
    place = present(Path(folder))
    if not (place / PLAN).is_file():
        raise Unreadable(
            f"{folder} has no {PLAN}: it is not a folder that secateur wrote. Give the folder of a save(...) or of secateur prune --out."
        )
    remedy = "Save the model again, or take the folder from where it is whole"
    try:
        if (place / PLAN).stat().st_size > LARGEST:
            raise Damage(f"it has more than {LARGEST} bytes")
        text = (place / PLAN).read_bytes()
        with safe_open(place / WEIGHTS, "pt") as file:
            stored: Shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
            room = (place / WEIGHTS).stat().st_size
            plan = decode(text, stored, room, sha256_of(place / WEIGHTS), lambda name: file.get_tensor(name) != 0)
            yield plan, file.get_tensor, stored
    except Damage as error:
        raise Unreadable(f"{place / PLAN} cannot be used: {error}. {remedy}.") from error
    except SafetensorError as error:
        raise Unreadable(f"{place / WEIGHTS} is damaged: {error}. {remedy}.") from error
    except OSError as error:
        raise Unreadable(f"{place} cannot be read: {error}. {remedy}.") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers, tied ones once."""
    persistent = model.state_dict(keep_vars=True).keys()
    return {name: value for name, value in [*model.named_parameters(), *model.named_buffers()] if name in persistent}


def fill(model: nn.Module, stored: Shapes, read: Callable[[str], Tensor]) -> None:
    """Give `model` exactly the stored tensors, in their types. Raises PlanMismatch, naming the first that does not fit."""
    targets = tensors_of(model)
    for name in [*targets, *stored]:
        if name not in stored or name not in targets or tuple(targets[name].shape) != stored[name]:
            now = tuple(targets[name].shape) if name in targets else "absent"
            then = stored.get(name, "absent")
            raise PlanMismatch(f"In {WEIGHTS} {name} is {then}, but in the model made for it {now}. Build the same architecture.")
    before = {value.dtype for value in targets.values() if value.is_floating_point()}
    for name, value in targets.items():
        tensor = read(name)
        if (tensor.is_floating_point(), tensor.is_complex()) != (value.is_floating_point(), value.is_complex()):
            raise PlanMismatch(
                f"In {WEIGHTS} {name} is of {tensor.dtype}, but in the model made for it of {value.dtype}. Build the same architecture."
            )
        value.data = torch.empty_like(value, dtype=tensor.dtype).copy_(tensor)  # in the same order in memory, so that sums round alike
    after = {value.dtype for value in targets.values() if value.is_floating_point()}
    if len(before) == len(after) == 1:  # a model that was cast as a whole: its buffers outside the state dict, too
        (dtype,) = after
        for buffer in model.buffers():
            if buffer.dtype in before:
                buffer.data = buffer.data.to(dtype)


def check_writable(folder: str | Path, force: bool = False) -> Path:
    """The folder's full path. Raises BadInput if a result could not be saved there: call it before anything is computed."""
    place = Path(folder).expanduser().resolve()
    if any(own.is_relative_to(place) for own in (Path.cwd(), Path.home())):
        raise BadInput(
            f"{folder} is, or holds, the working or the home folder, and saving replaces the folder as a whole. Name one of its own."
        )
    try:
        settle(place)
        if place.exists() and not place.is_dir():
            raise BadInput(f"{folder} is a file, not a folder. Name another folder for the result.")
        if place.is_dir() and any(place.iterdir()) and not is_ours(place) and not force:
            raise BadInput(
                f"{folder} exists and was not written by secateur. Name another folder, or replace it, and all that is in it, with --force."
            )
        ground = next(parent for parent in place.parents if parent.exists())
        probe = ground / f".secateur-{uuid.uuid4().hex}"
        probe.mkdir()  # trying is surer than asking: permissions, read-only and full disks, quotas
        probe.rmdir()
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error}. Name a folder in a place that can.") from error
    return place


def is_ours(folder: Path) -> bool:
    """Whether secateur wrote it: even a damaged plan begins with its marker."""
    with suppress(OSError), open(folder / PLAN, "rb") as file:
        return FORMAT.encode() in file.read(100)
    return False


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
