"""How well milliseconds are told: predictions of the table of operators beside measurements of whole models.

python benchmarks/latency.py               ResNet-20 at batch 1 and 16, 16 plans each, into docs/latency.md
python benchmarks/latency.py --plans 4 --seconds 0.3 --out /tmp/latency.json     the raw figures only, there
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import results
import secateur as sc
from nets import resnet
from secateur.latency import Latency, check
from secateur.structure import all_kept

BATCHES = (1, 16)
AMOUNTS = (0.1, 0.8)  # of the units of every group, from the first plan to the last; each group's own share is drawn around it


def plans(structure: sc.Structure, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random plans from nearly whole to nearly empty; every group loses a share of its own."""
    chance = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        amount = AMOUNTS[0] + (AMOUNTS[1] - AMOUNTS[0]) * number / max(1, count - 1)
        shares = {name: min(0.95, max(0.0, amount + 0.3 * (float(torch.rand((), generator=chance)) - 0.5))) for name in structure.groups}
        scores = {name: torch.rand(group.size, generator=chance) for name, group in structure.groups.items()}
        made.append(sc.select_each(scores, structure, shares).keep)
    return made


def measured(depth: int, batch: int, count: int, seconds: float, seed: int, device: str) -> results.Row:
    model = resnet(depth).to(device)
    example = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(device)
    structure = sc.channels(resnet(depth), example.cpu())
    latency, keeps = Latency(model, example, seconds=seconds), plans(structure, count, seed)
    start = time.perf_counter()
    latency(structure, all_kept(structure))
    first = time.perf_counter() - start
    for keep in keeps:
        latency(structure, keep)
    filled = time.perf_counter() - start
    start = time.perf_counter()
    for keep in keeps:
        latency(structure, keep)
    again = (time.perf_counter() - start) / len(keeps)
    rows = [
        {"predicted": row.predicted, "measured": row.measured, "macs": sc.cost(structure, keep, "macs")}
        for row, keep in zip(check(latency, structure, keeps, seconds), [all_kept(structure), *keeps])
    ]
    return {
        "net": f"ResNet-{depth}", "batch": batch, "rows": rows, "operators": len(latency.measured), "line": latency.line, "first": first,
        "filled": filled, "again": again, "device": device,
    }  # fmt: skip


def errors(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of all plans but the dense one, relative to its measured time: median and largest, also of times told from MACs alone."""
    dense, *small = rows
    told = [abs(row["predicted"] / row["measured"] - 1) for row in small]
    ratio = [abs(row["predicted"] / dense["predicted"] * dense["measured"] / row["measured"] - 1) for row in small]
    macs = [abs(dense["measured"] * row["macs"] / dense["macs"] / row["measured"] - 1) for row in small]
    ranks = [[sorted(row[kind] for row in small).index(row[kind]) for row in small] for kind in ("predicted", "measured")]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks))
    return {
        "median": statistics.median(told), "largest": max(told), "ratio": statistics.median(ratio), "macs": statistics.median(macs),
        "macs, largest": max(macs),
        "rank": 1 - 6 * apart / (len(small) * (len(small) ** 2 - 1)) if len(small) > 1 else 1.0,
    }  # fmt: skip


def page(found: results.Row) -> str:
    heads = (
        "net", "batch", "ms, dense", "ms, smallest", "median error", "largest", "of the share", "rank order", "by MACs, median",
        "by MACs, largest",
    )  # fmt: skip
    lines, plan_lines = [], []
    for run in found["runs"]:  # type: ignore[attr-defined]
        rows, off = run["rows"], errors(run["rows"])
        where = f"{run['net']}, {run['device']}"
        lines.append([
            where, run["batch"], f"{rows[0]['measured']:.2f}", f"{min(row['measured'] for row in rows):.2f}",
            *(f"{100 * off[name]:.1f} %" for name in ("median", "largest", "ratio")), f"{off['rank']:.3f}",
            *(f"{100 * off[name]:.1f} %" for name in ("macs", "macs, largest")),
        ])  # fmt: skip
        plan_lines += [
            [
                where, run["batch"], f"{100 * row['macs'] / rows[0]['macs']:.1f}", f"{row['predicted']:.3f}", f"{row['measured']:.3f}",
                f"{100 * (row['predicted'] / row['measured'] - 1):+.1f} %",
            ]
            for row in rows
        ]  # fmt: skip
    spent = [
        f"{run['net']}, batch {run['batch']}, {run['device']}: {run['operators']} measurements of an operator in {run['filled']:.1f} s; "
        f"a plan whose sizes are all known takes {1000 * run['again']:.0f} ms"
        for run in found["runs"]  # type: ignore[attr-defined]
    ]
    parts = [
        "# How well milliseconds are told",
        "Written by `python benchmarks/latency.py`; the raw times are in `benchmarks/results/latency.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads, "
        f"with a load of {found['load']:.1f} beside this at the end.",
        "`secateur.Latency` tells the time of a plan from a table of measured operators (their sizes on a grid of eighths, linear in "
        "between), scaled by two whole models, the dense one and one with half of every group. Here are its errors on random plans, every "
        "group of which loses a share of its own, against measurements of the whole smaller model, all of them in turns. \"Of the "
        "share\" is the median error of the time relative to the dense model's, which what else the machine does (at another moment than "
        "when the table was made) moves less. Beside it: the time of the dense model times the share of MACs that is left.",
        results.table(heads, lines),
        "What the table took: " + "; ".join(spent) + ".",
        "## Every plan\n\nThe first line of a block is the dense model.",
        results.table(("net", "batch", "MACs left, %", "ms, told", "ms, measured", "error"), plan_lines),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = results.options(__doc__, depth=20, plans=16, threads=1, seed=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="for every whole model")
    parser.add_argument("--devices", nargs="*", default=["cpu"])
    parser.add_argument("--out", type=Path, help="for the raw figures, in place of docs and results")
    parser.add_argument("--read", type=Path, help="write the page of figures that --out wrote elsewhere")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.read:
        found = json.loads(given.read.read_text())
    else:
        runs = [measured(given.depth, n, given.plans, given.seconds, given.seed, where) for where in given.devices for n in BATCHES]
        found = {
            "runs": runs, "seed": given.seed, "threads": given.threads, "load": max(0.0, os.getloadavg()[0] - given.threads),
            **results.origin(),
        }  # fmt: skip
    if given.out:
        results.write_text(given.out, json.dumps(found, indent=1) + "\n")
        return 0
    results.write_text(results.RESULTS / "latency.json", json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "latency.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
