"""Several processes that measure together: what they tell each other. Everything goes by torch.distributed, and in the order of the ranks,
so that all processes end with the same numbers, bit for bit.

    torchrun --nproc-per-node=2 -m secateur measure ...      or the library within an initialised process group
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

from .errors import BadInput
from .sensitivity import Collector

TYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}


@dataclass(frozen=True)
class Processes:
    """This process's number among so many, and where tensors lie that are sent. One process alone sends nothing."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def summed(self, values: Sequence[int]) -> list[int]:
        """Whole numbers, each summed over all processes."""
        total = torch.tensor(list(values), device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    def text(self, source: int, text: str) -> str:
        """The text of the process `source`."""
        if self.size == 1:
            return text
        content = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8).to(self.device)
        length = torch.tensor([len(text.encode())], device=self.device)
        dist.broadcast(length, source)
        if self.rank != source:
            content = torch.empty(max(int(length), 1), dtype=torch.uint8, device=self.device)
        dist.broadcast(content, source)
        return bytes(content.tolist()[: int(length)]).decode()

    def merged(self, collector: Collector) -> Collector:
        """What the collectors of all processes have seen, merged in the order of their ranks; never more than two states in memory."""
        if self.size == 1:
            return collector
        whole = collector.empty()
        for source in range(self.size):
            whole = whole.merge(collector.empty().restored(self.state(source, collector)))
        return whole

    def state(self, source: int, collector: Collector) -> tuple[dict[str, object], dict[str, Tensor]]:
        """The state of the collector of the process `source`."""
        own = collector.state()
        device = next((value.device for value in own[1].values()), torch.device(self.device))
        told, tensors = own if self.rank == source else ({}, {})
        form = [(name, str(value.dtype), list(value.shape)) for name, value in tensors.items()]
        told, form = json.loads(self.text(source, json.dumps([told, form])))
        received = {}
        for name, dtype, shape in form:
            value = tensors[name] if name in tensors else torch.empty(shape, dtype=TYPES[dtype])
            value = value.to(self.device).contiguous()
            dist.broadcast(value, source)
            received[name] = value.to(device)
        return told, received

    def agree(self, settings: str) -> None:
        """Raises BadInput, in every process, where they do not all measure the same thing."""
        first = self.text(0, settings)
        if self.summed([first != settings])[0]:
            raise BadInput(
                "The processes do not measure the same thing: they differ in the model, its weights or the settings. "
                "Build the model from one seed or one file, and give all processes the same arguments."
            )

    def fail_together(self, error: Exception | None = None) -> None:
        """Raises BadInput where another process has an error: all must call this, so that none waits for one that has stopped."""
        if self.summed([error is not None])[0]:
            texts = [self.text(source, "" if error is None else f"{error or type(error).__name__}") for source in range(self.size)]
            if error is None:
                raise BadInput(next(f"In process {rank}: {text}" for rank, text in enumerate(texts) if text))


def processes() -> Processes:
    """Those of the default process group, where one is initialised; or else this one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    cuda = dist.get_backend() == "nccl"  # which sends nothing that lies on the CPU
    return Processes(dist.get_rank(), dist.get_world_size(), "cuda" if cuda else "cpu")


@contextmanager
def launched() -> Iterator[Processes]:
    """Within what torchrun starts, a process group for as long as this lasts: gloo, and nccl for what lies on a GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes()
    finally:
        dist.destroy_process_group()


def is_split(data: object) -> bool:
    """Whether a loader gives each process a part of its own already."""
    return isinstance(getattr(data, "sampler", None), DistributedSampler)
