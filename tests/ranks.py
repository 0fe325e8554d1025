"""Functions that run in several processes at once: each is called with its rank, in a gloo process group on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parent


def ranks(function: str, *words: str, count: int = 2, timeout: float = 120) -> list[str]:
    """What `function`, "module:name" in this folder, prints in each of `count` processes; it is called with the words, as text.

    Raises AssertionError with all that was said where a process ends with another code than 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        command = [sys.executable, str(TESTS / "ranks.py"), function, str(Path(folder) / "store"), str(count)]
        running = [
            subprocess.Popen([*command, str(rank), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        said = [process.communicate(timeout=timeout) for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(err for _, err in said)
    return [out for out, _ in said]


def main(function: str, store: str, count: str, rank: str, *words: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(count))
    module, _, name = function.partition(":")
    try:
        getattr(__import__(module), name)(*words)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
