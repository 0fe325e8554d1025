"""How much memory a model takes at its peak, in a fresh process that does nothing else.

The model travels there without pickle, as a tape: the operators of one run in their order, and when each tensor died, as JSON, beside
the tensors that the run started from, as safetensors. The fresh process (the mother) imports torch once and forks a child per tape;
a child's peak starts at what it has when it is born, so what it grows by is the model's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import BadInput
from .footprint import cuda_of, first_line, repeat, tensors_in
from .task import call, describe, device_of, evaluating

STATUS = Path("/proc/self/status")
KINDS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
STEADY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0", "MALLOC_ARENA_MAX": "1"}  # glibc gives back what is freed, at once
PATIENCE = 120.0  # seconds for the mother


def peak_memory(model: nn.Module, example: object, batch: int | None = None) -> float | None:
    """Peak resident bytes that a fresh process takes for `model` on top of what torch takes; None where that cannot be measured."""
    return peak_memories({"model": model}, example, batch)[0]["model"]


def peak_memories(
    models: Mapping[str, nn.Module], example: object, batch: int | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Peak bytes by model, and by model the reason where there is none.

    `batch` repeats the example's first sample; without it the example is run as it is.
    """
    inputs = example if batch is None else repeat(example, batch)
    peaks: dict[str, float | None] = dict.fromkeys(models)
    reasons: dict[str, str] = {}
    if not STATUS.exists() or not hasattr(os, "fork"):
        return peaks, dict.fromkeys(models, "this system does not tell a process its peak memory (/proc/self/status)")
    with tempfile.TemporaryDirectory(prefix="secateur-memory-") as parent:
        folders = {}
        for number, (name, model) in enumerate(models.items()):
            try:
                folders[name] = write_tape(Path(parent) / str(number), model, inputs)
            except Untaped as error:
                reasons[name] = str(error)
        for name, answer in zip(folders, ask_mother(list(folders.values()))):
            if isinstance(answer, str):
                reasons[name] = answer
            else:
                peaks[name] = answer
    return peaks, reasons


class Untaped(Exception):
    """Why a run cannot be written down."""


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator that runs: [operator, arguments, keyword arguments, results], and [number] when a tensor dies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[list[object]] = []
        self.starts: dict[int, Tensor] = {}  # the tensors that no operator made
        self.numbers: dict[int, int] = {}  # id of a living tensor -> its number on the tape
        self.alive: dict[int, weakref.ref[Tensor]] = {}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        line: list[object] = [str(func), self.written(args), self.written(kwargs)]
        results = func(*args, **kwargs)
        line.append([self.number(value) for value in tree_leaves(results) if isinstance(value, Tensor)])
        self.lines.append(line)
        return results

    def number(self, tensor: Tensor) -> int:
        key = id(tensor)
        if key not in self.numbers:
            self.numbers[key] = number = self.count
            self.count += 1

            def died(_: object) -> None:
                self.numbers.pop(key, None)
                self.alive.pop(number, None)
                self.lines.append([number])

            self.alive[number] = weakref.ref(tensor, died)
        return self.numbers[key]

    def start(self, tensor: Tensor) -> int:
        if id(tensor) in self.numbers:
            return self.numbers[id(tensor)]
        living = [other for number, ref in self.alive.items() if number not in self.starts and (other := ref()) is not None]
        if any(other.untyped_storage()._cdata == tensor.untyped_storage()._cdata for other in living):
            raise Untaped("a tensor that one operator made reaches another as a new object, so its life cannot be followed")
        number = self.number(tensor)
        self.starts[number] = tensor  # held, so that it never dies on the tape
        return number

    def written(self, value: object) -> object:
        if isinstance(value, Tensor):
            return {"tensor": self.start(value)}
        if isinstance(value, dict):
            return {"dict": {str(key): self.written(item) for key, item in value.items()}}
        if isinstance(value, (tuple, list)):
            return [self.written(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.device):
            return {"device": str(value)}
        for kind, of in KINDS.items():
            if isinstance(value, of):
                return {kind: str(value).removeprefix("torch.")}
        raise Untaped(f"an operator has an argument {describe(value)}, which cannot be written down")


def write_tape(folder: Path, model: nn.Module, inputs: object) -> Path:
    """One run of `model`, written into `folder`. Raises Untaped where that cannot be."""
    if device_of(model).type != "cpu":
        raise Untaped("its weights are not in the memory that a process' peak counts")
    tape = Tape()
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(cuda_of(model)):
            # in inference mode a view is one object in Python and in the operators, so that its life can be followed
            with torch.inference_mode(), tape:
                outputs = call(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise BadInput(
            f"The model does not run on the example {describe(inputs)}: {first_line(error)}. Give an example of the model's own inputs."
        ) from error
    lines = tape.lines[:]
    results = [tape.numbers[id(value)] for value in tensors_in(outputs) if id(value) in tape.numbers]
    folder.mkdir()
    starts = {str(number): tensor.detach().clone(memory_format=torch.contiguous_format) for number, tensor in tape.starts.items()}
    safetensors.torch.save_file(starts, folder / "tensors.safetensors")
    (folder / "tape.json").write_text(json.dumps({"lines": lines, "results": results}))
    return folder


def play(folder: Path) -> list[Tensor]:
    """Run a tape; the tensors it ends with. Only operators of torch are looked up, by their names."""
    tape = json.loads((folder / "tape.json").read_text())
    living = {int(number): tensor for number, tensor in safetensors.torch.load_file(folder / "tensors.safetensors").items()}

    def read(value: object) -> object:
        if isinstance(value, list):
            return [read(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, said),) = value.items()
        if kind == "tensor":
            return living[said]
        if kind == "dict":
            return {key: read(item) for key, item in said.items()}
        return torch.device(said) if kind == "device" else constant(kind, said)

    with torch.inference_mode():
        for line in tape["lines"]:
            if len(line) == 1:
                living.pop(line[0], None)
                continue
            name, args, kwargs, numbers = line
            results = operator(name)(*cast(list[object], read(args)), **cast(dict[str, object], read(kwargs)))
            living |= dict(zip(numbers, (value for value in tree_leaves(results) if isinstance(value, Tensor))))
            del results
    return [living[number] for number in tape["results"]]


def ask_mother(folders: list[Path]) -> list[float | str]:
    """Per tape its peak in bytes, or why there is none."""
    if not folders:
        return []
    home = str(Path(__file__).resolve().parents[1])
    # a file of the caller's folder must not be taken for a module of the same name
    surroundings = {**os.environ, **STEADY, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", "from secateur.memory import mother; mother()", *map(str, folders)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except (subprocess.TimeoutExpired, OSError) as error:
        return [first_line(error)] * len(folders)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(folders):
        return [(done.stderr.strip().splitlines() or ["the process that measures it ended early"])[-1]] * len(folders)
    return [json.loads(line) for line in lines]


def mother() -> None:
    """In the fresh process: fork a child for every folder named on the command line, and print a line of JSON for each."""
    torch.set_num_threads(1)  # a process that runs threads cannot be forked
    for folder in sys.argv[1:]:
        read, write = os.pipe()
        if not (child := os.fork()):
            try:
                answer: float | str = grown(Path(folder))
            except BaseException as error:
                answer = first_line(error)
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        print(said or json.dumps("the process that measures it was ended, for want of memory perhaps"), flush=True)


def grown(folder: Path) -> float:
    """By how many bytes this process' peak grows when the tape is loaded and played."""
    warm()
    before = resident("VmRSS")
    play(folder)
    return resident("VmHWM") - before


def warm() -> None:
    """Touch the code that any network runs through, which is torch's and not the model's."""
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 1)]
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64)).eval()
    with torch.inference_mode():
        net(torch.zeros(2, 3, 8, 8))


def resident(field: str) -> float:
    """VmRSS, the memory this process has now, or VmHWM, the most it ever had; in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])


def operator(name: str) -> torch._ops.OpOverload:
    space, packet, overload = name.split(".")
    found = getattr(getattr(getattr(torch.ops, space), packet), overload)
    assert isinstance(found, torch._ops.OpOverload)
    return found


def constant(kind: str, name: str) -> object:
    found = getattr(torch, name)
    assert isinstance(found, KINDS[kind])
    return found
