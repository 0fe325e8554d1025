"""Where a fine-tuning run stands, on disk: one file, written whole or not at all. A run that was killed goes on from its last epoch.

`run.safetensors` holds the tensors (`model.<name>`, `best.<name>`, `optimizer.<parameter number>.<key>`, and `optimizer/<attribute>...` of
an optimizer that the optimizer holds); everything that is not a tensor (epochs so far, the optimizer's numbers, the settings of the run) is
JSON in its header. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import BadInput, Unreadable
from .folders import beside, write_atomic
from .optimizers import optimizers_in
from .tree import Tree

NAME, FORMAT = "run.safetensors", "secateur-run-2"


@dataclass(frozen=True)
class Standing:
    """After an epoch: the model's tensors, the best ones so far, the optimizer and those that it holds, and what was measured."""

    model: Tree
    best: Tree
    optimizers: dict[str, dict[str, object]]  # by `optimizers_in`, of Optimizer.state_dict()'s form; of the groups, only the numbers
    history: list[dict[str, float]]
    scaler: dict[str, object]


def tensors_of(model: nn.Module) -> Tree:
    """Copies of all parameters and buffers on the CPU, tied ones once."""
    return {name: value.detach().cpu().clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `tensors_of`."""
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            value.copy_(tensors[name])


def write(folder: Path, now: Standing, settings: Mapping[str, object]) -> None:
    """Atomic: whoever reads, at whatever moment the run is killed, finds the file before or the file after.

    Raises BadInput where it cannot be written.
    """
    tensors: Tree = {f"model.{name}": value for name, value in now.model.items()}
    tensors |= {f"best.{name}": value.clone() for name, value in now.best.items()}  # safetensors refuses shared memory
    states: dict[str, object] = {}
    for name, optimizer in now.optimizers.items():
        part = _part(name)
        states[part] = {str(index): _packed(state, f"{part}.{index}", tensors) for index, state in _states(optimizer).items()}
    groups = {
        _part(name): [{key: value for key, value in group.items() if _is_number(value)} for group in _groups(optimizer)]
        for name, optimizer in now.optimizers.items()
    }
    facts = {"settings": settings, "history": now.history, "scaler": now.scaler, "states": states, "groups": groups}
    content = save({name: value.contiguous() for name, value in tensors.items()}, {"format": FORMAT, "facts": json.dumps(facts)})
    claim(folder)
    write_atomic(folder / NAME, content)


def claim(folder: Path) -> None:
    """Raises BadInput where no checkpoint can be written to `folder`: before the training, not after its first epoch."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = beside(folder / NAME)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(
            f"The checkpoint cannot be written to {folder}: {error.strerror or error}. Give a folder that can be written."
        ) from error


def read(folder: Path, settings: Mapping[str, object], model: nn.Module, optimizer: Optimizer) -> Standing | None:
    """Where the run stands; None where it has not begun. Raises Unreadable for a damaged file, or one of another run."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise Unreadable(f"{path} is not a checkpoint of this version ({FORMAT}). Remove it, or give another folder.")
            facts = json.loads(header["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        _same(path, facts["settings"], json.loads(json.dumps(settings)))
        parts: dict[str, Tree] = {"model": {}, "best": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        for part in ("model", "best"):
            _fits(path, parts[part], model)
        optimizers: dict[str, dict[str, object]] = {}
        for name, one in optimizers_in(optimizer).items():
            states, numbers = facts["states"][_part(name)], facts["groups"][_part(name)]
            optimizers[name] = {
                "state": {int(index) if index.isdigit() else index: _unpacked(state, tensors) for index, state in states.items()},
                "param_groups": [{**group, **new} for group, new in zip(_groups(one.state_dict()), numbers, strict=True)],
            }
        history = [{str(key): int(value) if key == "epoch" else float(value) for key, value in epoch.items()} for epoch in facts["history"]]
        return Standing(parts["model"], parts["best"], optimizers, history, dict(facts["scaler"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path} is damaged ({type(error).__name__}: {error}). Remove it to begin the run again.") from error


def _same(path: Path, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    for key in now:
        if then.get(key) != now[key]:
            raise Unreadable(
                f"{path} belongs to another run: its {key} is {_short(then.get(key))}, now it is {_short(now[key])}. "
                f"Give the same model and settings, or another folder."
            )


def _fits(path: Path, tensors: Tree, model: nn.Module) -> None:
    shapes = {name: tuple(value.shape) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    if shapes != {name: tuple(value.shape) for name, value in tensors.items()}:
        raise Unreadable(f"{path} is damaged: its tensors are not the model's. Remove it to begin the run again.")


def _states(optimizer: Mapping[str, object]) -> dict[int | str, object]:
    state = optimizer["state"]
    assert isinstance(state, dict)
    return state


def _groups(optimizer: Mapping[str, object]) -> list[dict[str, object]]:
    groups = optimizer["param_groups"]
    assert isinstance(groups, list)
    return groups


def _part(name: str) -> str:
    return f"optimizer/{name}" if name else "optimizer"


def _packed(value: object, name: str, tensors: Tree) -> object:
    """As JSON: a number, a list, items by their keys, or for a tensor the name under which it goes to `tensors`. Raises BadInput."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        return [_packed(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"items": {key: _packed(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if not _is_number(value):
        raise BadInput(f"The optimizer keeps a {type(value).__name__} ({name}), which no checkpoint can hold. Leave checkpoint= out.")
    return value


def _unpacked(value: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, dict):
        return {key: _unpacked(item, tensors) for key, item in value["items"].items()} if "items" in value else tensors[value["tensor"]]
    return [_unpacked(item, tensors) for item in value] if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
