"""What a run has fitted so far, a small file for every weight, so that a run which was killed goes on behind the last one.

    target/secateur.json        what is asked, of which weights and data; in the end what came of it
    target/parts/00007.safetensors    the seventh weight, its bias: written beside its place and renamed, so it is whole or not there
    target/model*.safetensors   the result, copied from the source with the parts in their places, when all are there
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import BadInput, Unreadable
from ..folders import write_atomic, write_text_atomic
from .stored import FACTS, Place, Stored, copied, places_in, read

FORMAT, PARTS = "secateur shards 1", "parts"
Told = dict[str, float]


class Parts:
    """The files of one run.

    done: what is told of every weight that is fitted. left: the weights that stay whole, and why, once the run is finished.
    """

    def __init__(self, target: str | Path, source: Stored, settings: Mapping[str, object]) -> None:
        self.folder = Path(target).expanduser().resolve()
        self.source, self.settings = source, json.loads(json.dumps({"format": FORMAT, **settings}))
        self.done: dict[str, Told] = {}
        self.left: dict[str, str] | None = None
        self.files: list[Path] = []
        self.places: dict[str, Place] = {}
        self.claim()
        for path in sorted((self.folder / PARTS).glob("*.safetensors")):
            self.take(path)

    def claim(self) -> None:
        """Begin, or go on. Raises BadInput where the folder is not this run's."""
        if self.folder == self.source.folder.resolve():
            raise BadInput(f"{self.folder} holds the weights that are read. Name another folder for the result.")
        path = self.folder / FACTS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(not entry.name.startswith(f".{FACTS}.") for entry in self.folder.iterdir()):  # but what a kill left
                    raise BadInput(f"{self.folder} is not empty, and no result of prune_shards. Name another folder for the result.")
                self.own(path)
            facts = json.loads(path.read_text(encoding="utf-8"))
            (self.folder / PARTS).mkdir(exist_ok=True)
        except (OSError, json.JSONDecodeError) as error:
            raise BadInput(f"{self.folder} cannot be used: {error}. Name another folder for the result.") from error
        begun = "left" in facts or any((self.folder / PARTS).iterdir())
        if facts.get("format") == FORMAT and not begun and facts != self.settings:
            self.own(path)  # that run was refused, or stopped before its first weight
            return
        for name, now in self.settings.items():
            if facts.get(name) != now:
                raise BadInput(
                    f"{self.folder} belongs to another run: its {name} is {facts.get(name)!r}, now it is {now!r}. "
                    "Give the same call to go on with it, or another folder."
                )
        if "left" in facts:
            self.done, self.left = facts["weights"], facts["left"]
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)  # a kill may have come before that

    def own(self, path: Path) -> None:
        write_text_atomic(path, json.dumps(self.settings, indent=1) + "\n")

    def take(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
            self.done[facts["weight"]] = json.loads(facts["told"])
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise Unreadable(f"{path} is damaged ({type(error).__name__}: {error}). Remove it: that weight is fitted again.") from error
        self.files.append(path)
        self.places |= places_in(path)

    def read(self, name: str) -> Tensor:
        """A tensor as it is now: fitted, or of the source."""
        return read(self.places[name].file, name) if name in self.places else self.source.read(name)

    def add(self, number: int, weight: str, values: Mapping[str, Tensor], told: Told) -> None:
        """The weight, the number-th, is fitted; `values` by the names that the source has."""
        path = self.folder / PARTS / f"{number:05d}.safetensors"
        write_atomic(path, save({name: value.contiguous() for name, value in values.items()}, {"weight": weight, "told": json.dumps(told)}))
        self.take(path)

    def finish(self, left: dict[str, str]) -> None:
        """Make the result of the parts. It may be killed and called again."""
        copied(self.source, self.folder, self.files)
        self.left = left
        facts = {**self.settings, "weights": self.done, "left": left}
        write_text_atomic(self.folder / FACTS, json.dumps(facts, indent=1) + "\n")
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
