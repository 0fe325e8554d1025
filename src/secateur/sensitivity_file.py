"""A sensitivity on disk: one safetensors file, checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import Unreadable
from .folders import write_atomic
from .reductions import parts_of
from .sensitivity import Sensitivity
from .sure import Stability
from .tree import Scores

VERSION = 2


def write_sensitivity(path: str | Path, sensitivity: Sensitivity) -> None:
    """One safetensors file, whole or not at all. Raises BadInput where it cannot be written."""
    write_atomic(path, to_bytes(sensitivity))


def to_bytes(sensitivity: Sensitivity) -> bytes:
    """The file's content."""
    parts = {"global": sensitivity.global_, "local": sensitivity.local, "spread": sensitivity.spread, "error": sensitivity.error or {}}
    parts |= {f"key{index}": scores for index, scores in enumerate(sensitivity.keys.values())}
    tensors = {f"{part}/{name}": value.cpu().contiguous().clone() for part, scores in parts.items() for name, value in scores.items()}
    told = {name: getattr(sensitivity, name) for name in ("criterion", "contexts", "count", "samples", "local_by")}
    told |= {"version": VERSION, "keys": list(sensitivity.keys), "groups": list(sensitivity.global_)}
    told |= {"stability": asdict(sensitivity.stability) if sensitivity.stability else None, "error": sensitivity.error is not None}
    told["model"] = sensitivity.digest
    told["digest"] = digest(tensors, told)
    content: bytes = save(tensors, metadata={"secateur": json.dumps(told)})
    return content


def read_sensitivity(path: str | Path) -> Sensitivity:
    """What `write_sensitivity` wrote. Raises Unreadable where it is missing, damaged or of another version."""
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {})["secateur"])
            if told["version"] != VERSION:
                raise Unreadable(f"{path} is of version {told['version']}, but this Secateur reads {VERSION}. Measure again.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        if told.pop("digest") != digest(tensors, told):
            raise ValueError("it does not hold what was written")
        stored = parts_of(tensors)
        part: Callable[[str], Scores] = lambda which: {name: stored(which)[name] for name in told["groups"]}
        return Sensitivity(
            global_=part("global"),
            local=part("local"),
            spread=part("spread"),
            keys={key: part(f"key{index}") for index, key in enumerate(told["keys"])},
            criterion=str(told["criterion"]),
            contexts=str(told["contexts"]),
            count=int(told["count"]),
            samples=int(told["samples"]),
            local_by="max" if told["local_by"] == "max" else float(told["local_by"]),
            error=part("error") if told["error"] else None,
            stability=Stability(**{name: float(value) for name, value in told["stability"].items()}) if told["stability"] else None,
            digest=str(told["model"]),
        )
    except FileNotFoundError as error:
        raise Unreadable(f"{path} does not exist. Make it with secateur measure ... --out {path}, or name another file.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path} is damaged or was not written by Secateur ({str(error).splitlines()[0]}). Measure again.") from error


def digest(tensors: Mapping[str, Tensor], told: Mapping[str, object]) -> str:
    """SHA-256 over names, shapes and values, and what is told of them."""
    result = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        result.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        result.update(tensors[name].contiguous().numpy().data)
    return result.hexdigest()
