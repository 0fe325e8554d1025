"""Where a fine-tuning run stands, on disk: one file, written whole or not at all. A run that was killed goes on from its last epoch.

`run.safetensors` holds the tensors (`model.<name>`, `best.<name>`, `optimizer.<parameter number>.<key>`); everything that is not a tensor
(epochs so far, the optimizer's numbers, the settings of the run) is JSON in its header. Nothing is pickled.
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
from .tree import Tree

NAME, FORMAT = "run.safetensors", "secateur-run-1"


@dataclass(frozen=True)
class Standing:
    """After an epoch: the model's tensors, the best ones so far, the optimizer, and what was measured."""

    model: Tree
    best: Tree
    optimizer: dict[str, object]  # of Optimizer.state_dict()'s form; of the groups, only the numbers
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
    numbers: dict[str, dict[str, object]] = {}
    for index, state in _states(now.optimizer).items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous().clone()
            else:
                numbers.setdefault(str(index), {})[key] = value
    groups = [{key: value for key, value in group.items() if _is_number(value)} for group in _groups(now.optimizer)]
    facts = {"settings": settings, "history": now.history, "scaler": now.scaler, "numbers": numbers, "groups": groups}
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
        parts: dict[str, Tree] = {"model": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        for part in ("model", "best"):
            _fits(path, parts[part], model)
        state: dict[int, dict[str, object]] = {int(index): dict(values) for index, values in facts["numbers"].items()}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = [{**group, **numbers} for group, numbers in zip(_groups(optimizer.state_dict()), facts["groups"], strict=True)]
        history = [{str(key): int(value) if key == "epoch" else float(value) for key, value in epoch.items()} for epoch in facts["history"]]
        return Standing(parts["model"], parts["best"], {"state": state, "param_groups": groups}, history, dict(facts["scaler"]))
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


def _states(optimizer: Mapping[str, object]) -> dict[int, dict[str, object]]:
    state = optimizer["state"]
    assert isinstance(state, dict)
    return state


def _groups(optimizer: Mapping[str, object]) -> list[dict[str, object]]:
    groups = optimizer["param_groups"]
    assert isinstance(groups, list)
    return groups


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
