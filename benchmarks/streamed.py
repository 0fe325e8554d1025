"""Pruning from disk, layer by layer: peak memory and time of a Transformer with 12 and with 48 layers, and by more sequences.

python benchmarks/streamed.py             all of it, into docs/streamed.md
python benchmarks/streamed.py --width 512 --sequences 128
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin halve the speed wherever another process runs

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import results
import secateur as sc
from secateur.memory import STATUS, STEADY

LAYERS = (12, 48)
MORE = 8  # times as many sequences
CLOSE = 1.1  # times the peak of the fewer layers
LENGTH, WORDS, BATCH = 64, 1000, 16  # tokens of a sequence, words there are, sequences of a batch
PER_LAYER = 6  # weights
HEADS = (
    "layers", "sequences", "activations", "weights", "before", "peak", "beyond before", "seconds a layer", "of CPU",
    "error of the fit / of the mask",
)  # fmt: skip


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = [part(self.norm1(x)).unflatten(-1, (-1, 64)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        x = x + self.o(nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.blocks(self.words(words)))


def write_shards(folder: Path, layers: int, width: int, seed: int) -> int:
    """Random weights, a block a shard, and their index; bytes in all."""
    torch.manual_seed(seed)
    tensors = Transformer(layers, width).state_dict()
    folder.mkdir()
    files = {name: f"{'-'.join(name.split('.')[:2]) if name.startswith('blocks') else 'ends'}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: value for name, value in tensors.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return sum(value.numel() * value.element_size() for value in tensors.values())


def resident(what: str) -> int:
    """Bytes: VmRSS, now; VmHWM, at the peak."""
    return 1024 * int(STATUS.read_text().partition(f"{what}:")[2].split()[0])


def child(folder: Path, layers: int, width: int, sequences: int, spilled: bool, seed: int) -> None:
    """In a process of its own: prune, then print what it took."""
    chance = torch.Generator().manual_seed(seed)
    data = [(torch.randint(0, WORDS, (BATCH, LENGTH), generator=chance), None) for _ in range(sequences // BATCH)]
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    found = sc.prune_shards(
        lambda: Transformer(layers, width), folder, f"{folder}-pruned", data, structure="2:4", keep=["head.weight"],
        spill=folder.parent if spilled else None,
    )  # fmt: skip
    seconds, cpu, weights = time.perf_counter() - start, time.process_time() - cpu, found.weights.values()
    ratio = sum(one["fitted"] / one["masked"] for one in weights) / len(weights)
    taken = {"before": before, "peak": resident("VmHWM"), "seconds": seconds, "cpu": cpu}
    print(json.dumps({**taken, "weights": len(weights), "error": ratio}))


def measured(layers: int, sequences: int, spilled: bool, given: argparse.Namespace) -> results.Row:
    with tempfile.TemporaryDirectory(prefix="secateur-streamed-") as parent:
        folder = Path(parent) / "dense"
        size = write_shards(folder, layers, given.width, given.seed)
        words = [str(Path(__file__).resolve()), "--child", str(folder), str(layers), "disk" if spilled else "memory"]
        words += [word for name in ("width", "threads", "seed") for word in (f"--{name}", str(getattr(given, name)))]
        words += ["--sequences", str(sequences)]
        answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, env={**os.environ, **STEADY})
    return {"layers": layers, "sequences": sequences, "spilled": spilled, "size": size, **json.loads(answer.stdout.splitlines()[-1])}


def page(found: results.Row) -> str:
    """docs/streamed.md from the raw results."""
    rows: list[dict[str, float]] = found["rows"]  # type: ignore[assignment]
    few, many, held, spilled = rows
    grown = [row["peak"] - row["before"] for row in (few, many)]
    lines = [
        [f"{row['layers']:.0f}", f"{row['sequences']:,.0f}", "on disk" if row["spilled"] else "in memory",
         mib(row["size"]), mib(row["before"]), mib(row["peak"]), mib(row["peak"] - row["before"]),
         f"{row['seconds'] / row['layers']:.1f}", f"{row['cpu'] / row['layers']:.1f}", f"{row['error']:.2f}"]
        for row in rows
    ]  # fmt: skip
    parts = [
        "# Pruning from disk",
        "Written by `python benchmarks/streamed.py`; the raw results are in `benchmarks/results/streamed.json`.\n\n"
        f"Commit of the library: {found['commit']}. Seed: {found['seed']}. Machine: {found['machine']}, {found['threads']} threads.",
        f"`secateur.prune_shards` makes 2:4 of a Transformer of width {found['width']} (random float32 weights, a shard a layer, "
        f"{PER_LAYER} weights each) by sequences of {LENGTH} tokens, {BATCH} a batch, in a fresh process. Peak: of resident memory; "
        "before: what it had with torch, the library and the data. The C library is told to give back at once what is freed.",
        results.table(HEADS, lines),
        f"The peak with {many['layers']:.0f} layers is {many['peak'] / few['peak']:.3f} times that with {few['layers']:.0f} "
        f"(target: at most {CLOSE:g}), what is beyond the start {grown[1] / grown[0]:.3f} times. By {MORE} times as many sequences it is "
        f"{mib(held['peak'] - few['peak'])} more with their activations in memory, and {mib(spilled['peak'] - few['peak'])} more with "
        f"those of all batches but one on disk (`spill=folder`), in {spilled['cpu'] / held['cpu']:.2f} times the processor time.",
        "What is held at a halt: the weight twice (dense and pruned); sums of inputs x inputs in float64, some copies of them while a mask "
        "is chosen, and up to 256 MiB of systems while the fit is solved; and the activations of both models for all sequences, or, with "
        "`spill=`, for one batch, as far as one layer needs them.",
        "The error is that of each weight's output, mean over all weights. These weights are random: what pruning costs a trained model is "
        "not in this table.",
    ]
    return "\n\n".join(parts) + "\n"


def mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def main() -> int:
    parser = results.options(__doc__, width=256, sequences=64, threads=1, seed=0)
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "LAYERS", "WHERE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        folder, layers, where = given.child
        child(Path(folder), int(layers), given.width, given.sequences, where == "disk", given.seed)
        return 0
    found: results.Row = {name: value for name, value in vars(given).items() if name != "child"} | results.origin()
    cases = [*((layers, 1, False) for layers in LAYERS), (LAYERS[0], MORE, False), (LAYERS[0], MORE, True)]
    found["rows"] = rows = [measured(layers, times * given.sequences, spilled, given) for layers, times, spilled in cases]
    results.write_text(results.RESULTS / "streamed.json", json.dumps(found, indent=1) + "\n")
    results.write_text(results.DOCS / "streamed.md", page(found))
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
