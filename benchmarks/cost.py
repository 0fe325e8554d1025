"""What measuring costs: time beside plain forward and backward, peak memory against the number of images, time to import.

python benchmarks/cost.py                  everything, into docs/cost.md
python benchmarks/cost.py --repeats 9 --images 1024
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import results
import secateur as sc
from images import cifar10, normalised, sample, sheet
from nets import resnet
from secateur.memory import STEADY

BATCH = 128
FEW, MANY = 256, 2048
TIMED = {"batch": 1.2, "class": 2.0}  # contexts -> the most it may take, in plain forward + backward
MEMORY, IMPORT = 1.05, 0.3  # of the peak for few images; seconds
FILLED = {"batch": BATCH, "class": 16}  # batch sizes of the memory test: of 256 images in ten classes, each class fills a batch of 16
CRITERION = "taylor"

Batches = list[tuple[Tensor, Tensor]]


def plain(model: nn.Module, data: Batches) -> None:
    """Forward and backward as anyone writes it, in evaluation mode."""
    model.eval()
    for inputs, targets in data:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()


def times(model: nn.Module, data: Batches, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each way over the same batches, in turns, so that what else the machine does meets them all."""
    structure, task = sc.weights(model), sc.Task(model, data, F.cross_entropy)
    ways: dict[str, Callable[[], object]] = {"plain": lambda: plain(model, data)}
    ways |= {contexts: lambda contexts=contexts: sc.measure(task, structure, CRITERION, contexts) for contexts in TIMED}  # type: ignore[misc]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    plain(model, data[:2])
    for number in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            taken[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
            print(f"{number + 1}/{repeats} {name}: {taken[name][-1]['wall']:.2f} s, {taken[name][-1]['cpu']:.2f} s of CPU", flush=True)
    return taken


class FromDisk:
    """The first images of a sheet, each batch made when it is asked for, as a data set's loader does it."""

    def __init__(self, data: Path, count: int, size: int) -> None:
        self.images, self.count, self.size = sheet(data / "cifar10" / "train_0.webp"), count, size
        self.labels = torch.arange(len(self.images)) % 10

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.count, self.size):
            yield normalised(self.images[start : start + self.size]), self.labels[start : start + self.size]


def child(data: Path, contexts: str, count: int) -> None:
    """In a process of its own: measure, then print the peak of resident bytes."""
    model = resnet(56, data)
    sc.measure(sc.Task(model, FromDisk(data, count, FILLED[contexts]), F.cross_entropy), sc.weights(model), CRITERION, contexts)
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.partition("VmHWM:")[2].split()[0]))


def fresh(*words: str, **environment: str) -> float:
    """The number that a fresh Python process prints last."""
    known = {**os.environ, **environment}
    answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=results.ROOT, env=known)
    return float(answer.stdout.split()[-1])


def peaks(data: Path) -> dict[str, dict[str, float]]:
    """Contexts -> number of images -> peak bytes of a fresh process."""
    words = (str(Path(__file__).resolve()), "--data", str(data.resolve()), "--child")
    return {contexts: {str(count): fresh(*words, contexts, str(count), **STEADY) for count in (FEW, MANY)} for contexts in TIMED}


def imports(repeats: int) -> dict[str, list[float]]:
    """Seconds, each in a fresh process: `import torch`, and `import secateur` where torch is there already (of the clock, and of CPU)."""
    timed = "import time; {before}; start = time.{clock}(); import {what}; print(time.{clock}() - start)"
    wanted = {
        "torch": timed.format(before="pass", what="torch", clock="perf_counter"),
        "secateur": timed.format(before="import torch", what="secateur", clock="perf_counter"),
        "secateur, CPU": timed.format(before="import torch", what="secateur", clock="process_time"),
    }
    taken: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(repeats):
        for name, code in wanted.items():
            taken[name].append(round(fresh("-c", code), 4))
    return taken


def page(found: results.Row) -> str:
    """docs/cost.md from the raw results."""
    taken: dict[str, list[dict[str, float]]] = found["times"]  # type: ignore[assignment]
    memory: dict[str, dict[str, float]] = found["peaks"]  # type: ignore[assignment]
    loaded: dict[str, list[float]] = found["imports"]  # type: ignore[assignment]
    middle = {name: {kind: statistics.median(row[kind] for row in rows) for kind in ("wall", "cpu")} for name, rows in taken.items()}
    ratios = {name: statistics.median(a["wall"] / b["wall"] for a, b in zip(taken[name], taken["plain"])) for name in TIMED}
    time_lines = [["plain forward + backward", f"{middle['plain']['wall']:.2f}", f"{middle['plain']['cpu']:.2f}", "1", "1", ""]]
    time_lines += [
        [
            f"measure, contexts by {name}", f"{middle[name]['wall']:.2f}", f"{middle[name]['cpu']:.2f}", f"{ratios[name]:.2f}",
            f"{middle[name]['cpu'] / middle['plain']['cpu']:.2f}", f"≤ {most:g}",
        ]
        for name, most in TIMED.items()
    ]  # fmt: skip
    memory_lines = []
    for name, peak in memory.items():
        few, many = peak[str(FEW)], peak[str(MANY)]
        memory_lines.append(
            [f"contexts by {name}", f"{few / 2**20:,.0f} MiB", f"{many / 2**20:,.0f} MiB", f"{many / few:.3f}", f"≤ {MEMORY:g}"]
        )
    import_lines = [
        ["torch", f"{statistics.median(loaded['torch']):.2f}", ""],
        ["secateur, beyond torch", f"{statistics.median(loaded['secateur']):.2f}", f"≤ {IMPORT:g}"],
        ["secateur, beyond torch, seconds of CPU", f"{statistics.median(loaded['secateur, CPU']):.2f}", ""],
    ]
    parts = [
        "# What measuring costs",
        "Written by `python benchmarks/cost.py`; the raw times are in `benchmarks/results/cost.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads.",
        f"## Time\n\n`secateur.measure`, criterion {CRITERION}, for every connection of ResNet-56 on {found['images']} CIFAR-10 images in "
        f"batches of {BATCH}, beside plain forward and backward (evaluation mode) over the same batches: in turns, {len(taken['plain'])} "
        "times. Seconds are medians; the ratio is the median of the ratios of neighbours.",
        results.table(("what", "seconds", "seconds of CPU", "ratio", "ratio of CPU", "target"), time_lines),
        f"## Memory\n\nPeak resident memory of a fresh process that measures the same on {FEW} and on {MANY:,} images, each batch made "
        f"when it is asked for. Batches of {FILLED['batch']}; by class, where samples wait until their class fills a batch, of "
        f"{FILLED['class']}, so that {FEW} images fill them. The C library is told to give back at once "
        "what is freed (as `secateur.compare` does it).",
        results.table(("what", f"{FEW} images", f"{MANY:,} images", "ratio", "target"), memory_lines),
        f"## Import\n\nSeconds, the median of {len(loaded['torch'])} fresh processes.",
        results.table(("import", "seconds", "target"), import_lines),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=results.DATA, help="the folder of cifar10 and cifar10_resnet")
    parser.add_argument("--images", type=int, default=MANY)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("CONTEXTS", "IMAGES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if why := results.missing(given.data):
        print(why, file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    if given.child:
        child(given.data, given.child[0], int(given.child[1]))
        return 0
    found: results.Row = {
        "imports": imports(given.repeats), "peaks": peaks(given.data), "images": given.images, "seed": given.seed,
        "threads": given.threads, "commit": results.commit(), "machine": results.machine(),
    }  # fmt: skip
    pixels, labels = cifar10(given.data, "train")
    index = sample(labels, (given.images,), given.seed)[0]
    data = list(zip(pixels[index].split(BATCH), labels[index].split(BATCH)))
    del pixels
    found["times"] = times(resnet(56, given.data), data, given.repeats)
    results.write_text(results.RESULTS / "cost.json", json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "cost.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
