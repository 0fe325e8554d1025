"""Choosing the k smallest of very many scores: time, whether it grows in line with their number, and peak memory of a fresh process.

python benchmarks/smallest.py              1e6, 1e7 and 1e8 scores, into docs/scale.md (the part "selection")
python benchmarks/smallest.py --sizes 1000000 --repeats 1
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
from pathlib import Path

import torch
from torch import nn

import results
import secateur as sc
from secateur.smallest import threshold

SIZES = (10**6, 10**7, 10**8)
SECONDS, MEMORY = 10.0, 1.2  # the most for 1e8 scores: seconds, and memory as a multiple of the scores'
NAMES = {
    "threshold": "the k-th smallest: `smallest.threshold`",
    "select": "the whole plan: `secateur.select`",
    "sort": "`torch.sort`, for comparison",
}
TITLE = "## selection"


def child(way: str, size: int, seed: int) -> None:
    """In a process of its own: make the scores, choose, and print seconds and by how much the peak grew, scores included."""
    torch.randn(10).sort()  # torch's own code is touched before anything is counted
    threshold(torch.randn(10), 3)
    before = resident("VmRSS")
    scores = torch.empty(size)
    chance = torch.Generator().manual_seed(seed)
    for part in torch.split(scores, 1 << 20):
        part.normal_(generator=chance)
    if way == "select":  # a layer of a Transformer's width, as often as it takes
        width = max(1, int((size / 10) ** 0.5))
        layers = {f"{n}.weight": (width, width) for n in range(size // width**2)}
        structure = sc.weights(Shapes(layers))
        named = {name: part.view(width, width) for name, part in zip(layers, torch.split(scores[: len(layers) * width**2], width**2))}
    start = time.perf_counter()
    if way == "threshold":
        threshold(scores, size // 2)
    elif way == "select":
        sc.select(named, structure, 0.5)
    else:
        scores.sort()
    print(json.dumps([time.perf_counter() - start, (resident("VmHWM") - before) / (4 * size)]))


class Shapes(nn.Module):
    """Parameters of these shapes, without values."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            module = nn.Module()
            module.weight = nn.Parameter(torch.empty(shape, device="meta"))
            self.add_module(name.partition(".")[0], module)


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])


def measured(way: str, size: int, seed: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--child", way, str(size), str(seed)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = json.loads(answer.stdout.splitlines()[-1])
    return seconds, memory


def page(found: results.Row) -> str:
    rows: list[results.Row] = found["rows"]  # type: ignore[assignment]
    lines = []
    for row in rows:
        seconds, size = statistics.median(row["seconds"]), float(row["size"])  # type: ignore[arg-type]
        lines.append([NAMES[str(row["way"])], f"{size:,.0f}", f"{seconds:.3f}", f"{1e9 * seconds / size:.1f}", f"{max(row['memory']):.3f}"])  # type: ignore[arg-type]
    at = {(row["way"], row["size"]): row for row in rows}
    largest = at.get(("threshold", max(SIZES)))
    met = (
        ""
        if largest is None
        else (
            f"Asked for: 1e8 scores in under {SECONDS:g} s and {MEMORY:g}x their memory. Measured: "
            f"{statistics.median(largest['seconds']):.2f} s and {max(largest['memory']):.3f}x."  # type: ignore[arg-type]
        )
    )
    return "\n\n".join([
        TITLE,
        "Written by `python benchmarks/smallest.py`; the raw figures are in `benchmarks/results/smallest.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads.",
        "float32 scores, half of them chosen; each figure from fresh processes. Seconds are medians; memory is the largest peak of the "
        "process beyond what it had before it made the scores, as a multiple of the scores' own (so 1 is the scores alone). A plan holds "
        "a bool a connection, which is another quarter.",
        results.table(("what", "scores", "seconds", "ns a score", "memory"), lines),
        met,
    ]).rstrip() + "\n"  # fmt: skip


def written(text: str, part: str) -> str:
    """The page with this part in the place of the one that has its title, or at the end."""
    head, title, rest = text.partition(TITLE)
    if not title:
        return (text.rstrip() or "# Scale") + "\n\n" + part
    _, mark, after = rest.partition("\n## ")
    return head + part + (f"\n## {after}" if mark else "")


def main() -> int:
    parser = results.options(__doc__, repeats=3, seed=0)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--child", nargs=3, metavar=("WAY", "SIZE", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], int(given.child[1]), int(given.child[2]))
        return 0
    rows: list[results.Row] = []
    for way in NAMES:
        for size in given.sizes:
            figures = [measured(way, size, given.seed) for _ in range(given.repeats)]
            rows.append({"way": way, "size": size, "seconds": [each[0] for each in figures], "memory": [each[1] for each in figures]})
            print(rows[-1], flush=True)
    found: results.Row = {
        "rows": rows, "seed": given.seed, "threads": torch.get_num_threads(), **results.origin()
    }  # fmt: skip
    results.write_text(results.RESULTS / "smallest.json", json.dumps(found, indent=1) + "\n")
    place = results.DOCS / "scale.md"
    results.write_text(place, written(place.read_text(encoding="utf-8") if place.exists() else "", page(found)))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
