"""A measurement that was stopped goes on behind what it had seen: its state in one file, written whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import Unreadable
from .folders import write_atomic
from .sensitivity import Collector
from .stream import Position

FORMAT = "secateur measurement 1"
EVERY = 30.0  # seconds between two writes


@dataclass
class Checkpoint:
    """The file of a measurement of these settings (JSON values), written now and then, and gone when it is finished.

    device: where the scores are.
    """

    path: Path
    settings: Mapping[str, object]
    device: str = "cpu"
    last: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        return time.monotonic() - self.last >= EVERY

    def write(self, collector: Collector, place: Position) -> None:
        told, tensors = collector.state()
        facts = json.dumps({"settings": self.settings, "place": place, "state": told})
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
            self.compare(facts["settings"])
            return empty.restored((facts["state"], tensors)), Position(*(int(number) for number in facts["place"]))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(
                f"{self.path} is damaged ({type(error).__name__}: {error}). Remove it to begin the measurement again."
            ) from error

    def compare(self, then: Mapping[str, object]) -> None:
        """Raises Unreadable, naming the first setting in which another measurement was."""
        for name, value in json.loads(json.dumps(self.settings)).items():
            if then.get(name) != value:
                raise Unreadable(
                    f"{self.path} belongs to another measurement: its {name} is {short(then.get(name))}, now it is {short(value)}. "
                    "Give the same model, data and settings, or another file."
                )

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
