"""A measurement that was stopped goes on behind what it had seen: its state in one file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import torch
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .contexts import leaves
from .errors import Unreadable
from .folders import write_atomic
from .sensitivity import Collector
from .stream import Position
from .task import describe

FORMAT = "secateur measurement 2"
EVERY = 30.0  # seconds between two writes
DEEPEST = 6  # what is within each other is looked into so far: a function may hold itself


@dataclass
class Checkpoint:
    """The file of a measurement of these settings (JSON values), written now and then, and gone when it is finished.

    device: where the scores are. data: what is told of the first batch, when it has come; then: what the file told of it.
    """

    path: Path
    settings: Mapping[str, object]
    device: str = "cpu"
    last: float = field(default_factory=time.monotonic)
    data: str = ""
    then: str = ""

    @property
    def due(self) -> bool:
        return time.monotonic() - self.last >= EVERY

    def write(self, collector: Collector, place: Position) -> None:
        told, tensors = collector.state()
        facts = json.dumps({"settings": self.settings, "data": self.data, "place": place, "state": told})
        held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        held = {name: value.clone() if value._base is not None else value for name, value in held.items()}
        write_atomic(self.path, save(held, {"format": FORMAT, "facts": facts}))
        self.last = time.monotonic()

    def read(self, empty: Collector) -> tuple[Collector, Position] | None:
        """What had been seen, and where to go on; None where nothing was begun. Raises Unreadable for a damaged or foreign file."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise Unreadable(f"{self.path} is not a checkpoint of this version ({FORMAT}). Remove it, or give another file.")
                facts = json.loads(header["facts"])
                tensors = {name: file.get_tensor(name).to(self.device) for name in file.keys()}  # noqa: SIM118 - not a dict
            for name, value in json.loads(json.dumps(self.settings)).items():
                self.compare(name, facts["settings"].get(name), value)
            self.then = facts["data"]
            return empty.restored((facts["state"], tensors)), Position(*(int(number) for number in facts["place"]))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(
                f"{self.path} is damaged ({type(error).__name__}: {error}). Remove it to begin the measurement again."
            ) from error

    def begun(self, batch: object) -> None:
        """The first batch has come. Raises Unreadable where it is not the one that the measurement began with."""
        if not self.data:
            self.data = batch_told(batch)
            if self.then:
                self.compare("first batch", self.then, self.data)

    def compare(self, name: str, then: object, now: object) -> None:
        """Raises Unreadable where another measurement was another one in this."""
        if then != now:
            raise Unreadable(
                f"{self.path} belongs to another measurement: its {name} is {short(then)}, now it is {short(now)}. "
                "Give the same model, loss, settings and data (in the same batches and order), or another file."
            )

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def batch_told(batch: object) -> str:
    """A digest of a batch's shapes and values, and the shapes in words."""
    parts = leaves(batch)
    return f"{digest(parts)} ({', '.join(describe(part) for part in parts)})"


def loss_told(loss: object) -> str:
    """The name of a loss, and a digest of its code and of the numbers, texts and tensors that it was made with."""
    function = getattr(loss, "func", loss)  # functools.partial(F.cross_entropy, label_smoothing=0.1)
    return f"{getattr(function, '__name__', type(function).__name__)} ({digest(loss)})"


def digest(value: object) -> str:
    result = hashlib.blake2b(digest_size=4)
    for part in told(value):
        result.update(part + b"|")
    return result.hexdigest()


def told(value: object, depth: int = 0) -> Iterator[bytes]:
    """What makes a value that value in every process: no addresses, no order of what has none, nothing that counts along."""
    if value is None or isinstance(value, (str, int, float, complex, bytes)):
        yield repr(value).encode()
    elif isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, frozenset):
        yield from sorted(b"|".join(told(item, depth + 1)) for item in value)
    elif depth < DEEPEST:
        yield type(value).__name__.encode()
        yield from (part for item in inside(value) for part in told(item, depth + 1))


def inside(value: object) -> Iterator[object]:
    """What a value is made of."""
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, ndarray):
        yield from (value.dtype.str, value.tolist())
    elif isinstance(value, partial):
        yield from (value.func, value.args, *value.keywords.items())
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, MethodType):
        yield value.__func__
    elif isinstance(value, FunctionType):
        yield from (value.__qualname__, value.__code__, value.__defaults__, *(value.__kwdefaults__ or {}).items())
        with suppress(ValueError):  # a cell that nothing is in yet
            yield from (cell.cell_contents for cell in value.__closure__ or ())
    elif isinstance(value, nn.Module):
        yield from (item for item in vars(value).items() if isinstance(item[1], (str, int, float)) and item[0] != "training")
        yield from value.buffers(recurse=False)
    else:
        yield getattr(value, "__name__", None)
