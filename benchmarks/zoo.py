"""How far structured pruning reaches: all torchvision classifiers and the smallest model of every timm module, half of all units, no hint.

python benchmarks/zoo.py                   whatever is missing, the model with the fewest parameters first, into docs/reach.md
python benchmarks/zoo.py --only resnet18 halonet_h1
python benchmarks/zoo.py --chain --llama --memory      does the time grow with the size, and what does a large model take
python benchmarks/zoo.py --table           rewrite docs/reach.md from the rows that are there
python benchmarks/zoo.py --list            compute benchmarks/results/zoo_models.json anew

Every model has a process of its own with one thread and a time limit. Torch-Pruning does the same job beside it, where it is installed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import results
import secateur as sc
import zoo_table
from secateur.memory import STEADY
from secateur.structure import channels
from secateur.structure.cut import cut
from zoo_one import half, measured, timed

MODELS, ROWS = results.RESULTS / "zoo_models.json", results.RESULTS / "reach.json"


# the models -----------------------------------------------------------------------------------------------------------------------------


def need_torchvision() -> None:
    """As the tests import it: without its compiled operators, where they do not fit this torch."""
    spec = importlib.util.spec_from_file_location("torchvision_of_the_tests", results.ROOT / "tests" / "zoo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.need_torchvision()


def built(where: str, name: str) -> nn.Module:
    need_torchvision()
    if where == "torchvision":
        from torchvision.models import get_model

        return get_model(name).eval()
    import timm

    return timm.create_model(name).eval()


def entry(where: str, name: str, module: str) -> results.Row:
    """Name, parameters, size of an image; built without values where it can be."""
    try:
        with torch.device("meta"):
            model = built(where, name)
    except NotImplementedError:  # it computes with its first weights
        model = built(where, name)
    config = getattr(model, "default_cfg", {"input_size": (3, 299, 299) if "inception" in name else (3, 224, 224)})
    free = config.get("fixed_input_size") is False and config["input_size"][1] > 256
    size = (3, 224, 224) if free else config["input_size"]
    count = sum(value.numel() for value in model.parameters())
    return {"where": where, "name": name, "module": module, "parameters": count, "size": list(size)}


def listed() -> Iterator[results.Row]:
    """All of torchvision, and the model with the fewest parameters of every timm module."""
    need_torchvision()
    import timm
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        yield entry("torchvision", name, "")
    for module in timm.list_modules():
        yield min((entry("timm", name, module) for name in timm.list_models(module=module)), key=lambda row: int(str(row["parameters"])))


# what it costs ----------------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norms[1](self.b(torch.relu(self.norms[0](self.a(x))))))


def halved(model: nn.Module, example: object) -> Iterator[results.Row]:
    """Seconds to trace and to shrink, and what the process took at its peak."""
    row: results.Row = {"peak before": peak()}
    with timed(row, "trace"):
        structure = channels(model, example)
    with timed(row, "shrink"):
        keep = half(structure.groups)
        small = cut(model, structure.kept(keep), structure.sizes(keep))
    before, after = (sum(value.numel() for value in each.parameters()) for each in (model, small))
    yield {**row, "peak": peak(), "parameters": before, "parameters after": after, "groups": len(structure.groups)}


def peak(field: str = "VmHWM") -> int:
    """Resident bytes of this process: at the peak, or (VmRSS) now."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def chain(blocks: str) -> Iterator[results.Row]:
    model, example = nn.Sequential(*(Block() for _ in range(int(blocks)))).eval(), torch.randn(2, 16, 8, 8)
    channels(model[:1], example)  # what is imported at the first use does not grow with the model
    yield from halved(model, example)


def llama(_: str) -> Iterator[results.Row]:
    """7 billion parameters, no bytes."""
    need_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)  # without one transformers reads values of the positions
        example = {"input_ids": torch.zeros(2, 16, dtype=torch.long), "attention_mask": mask, "use_cache": False}
    yield from halved(model, example)


def planned(model: nn.Module, example: Tensor) -> sc.Plan:
    structure = sc.channels(model, example)
    return sc.select({name: torch.rand(group.size) for name, group in structure.groups.items()}, structure, 0.5)


def memory(name: str) -> Iterator[results.Row]:
    """What the resident memory of the process grows by while `secateur.shrink` runs, beside the bytes of the two models."""
    tiny = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sc.shrink(tiny, planned(tiny, torch.randn(1, 4)))  # what is imported at the first use is not counted
    model = built("torchvision", name)
    plan = planned(model, torch.randn(1, 3, 224, 224))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is taken again, and not seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = peak("VmRSS")
    small = sc.shrink(model, plan)
    grown = peak() - before
    old, new = (sum(value.nbytes for value in each.state_dict().values()) for each in (model, small))
    yield {"grown": grown, "old": old, "new": new, "over": round((old + grown) / (old + new) - 1, 4)}


COSTS = {"chain": (chain, ("50", "100", "200", "400")), "llama": (llama, ("7B",)), "memory": (memory, ("resnet50",))}


# all models ------------------------------------------------------------------------------------------------------------------------------


def child(words: list[str], limit: float) -> results.Row:
    """What a fresh process finds out, and why it did not end well."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *words]
    settled = STEADY if words[0] == "memory" else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env={**os.environ, **settled})
        out, why = done.stdout, (done.stderr.strip().splitlines() or ["no word"])[-1][:300] if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        out, why = (error.stdout or b"").decode(), f"unfinished after {limit:g} s"
    row: results.Row = {}
    for line in out.splitlines():
        row |= json.loads(line)
    return {**row, "error": why} if why else row


def fill(wanted: list[results.Row], path: Path, limit: float, fresh: bool = False) -> None:
    commit, machine = results.commit(), results.machine()
    for number, case in enumerate(wanted, 1):
        rows = results.read(path)
        old = [row for row in rows if results.same(row, {"where": case["where"], "name": case["name"]})]
        if any(not fresh or row["commit"] == commit for row in old):
            continue
        start = time.perf_counter()
        found = child([str(case["where"]), str(case["name"]), json.dumps(case.get("size"))], limit)
        seconds = round(time.perf_counter() - start, 1)
        row: results.Row = {**case, **found, "seconds": seconds, "seed": 0, "commit": commit, "machine": machine}
        results.write(path, [*(row for row in results.read(path) if row not in old), row])
        print(f"{number}/{len(wanted)} {zoo_table.line(row)} ({seconds} s)", flush=True)


def main() -> int:
    parser = results.options(__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these models")
    parser.add_argument("--fresh", action="store_true", help="measure rows of an earlier commit again")
    parser.add_argument("--table", action="store_true", help="only rewrite docs/reach.md")
    parser.add_argument("--list", action="store_true", help="compute the list of models anew")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for each model")
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="PATH", help="where the rows are kept")
    for name in COSTS:
        parser.add_argument(f"--{name}", action="append_const", dest="costs", const=name, help="only this measurement")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        where, name, size = given.child
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(sys.stderr):
            for row in COSTS[where][0](name) if where in COSTS else measured(lambda: built(where, name), json.loads(size)):
                print(json.dumps(row), file=sys.__stdout__, flush=True)
        return 0
    if not given.table and (absent := [name for name in ("torchvision", "timm") if importlib.util.find_spec(name) is None]):
        print(f"{' and '.join(absent)} cannot be imported. Install the models: pip install 'secateur[zoo]'.", file=sys.stderr)
        return 2
    if given.list:
        results.write(MODELS, sorted(listed(), key=lambda row: int(str(row["parameters"]))))
        return 0
    models = results.read(MODELS)
    wanted: list[results.Row] = [{"where": where, "name": name} for where in given.costs or COSTS for name in COSTS[where][1]]
    wanted = (wanted if given.costs or not given.only else []) + [
        row for row in models if not given.costs and (not given.only or row["name"] in given.only)
    ]
    try:
        if not given.table:
            fill(wanted, given.rows, given.limit, given.fresh)
    except KeyboardInterrupt:
        print(f"Stopped. Finished rows are in {given.rows}; the same command goes on from there.")
        return 130
    rows = results.read(given.rows)
    if given.rows == ROWS:
        results.write_text(results.DOCS / "reach.md", zoo_table.page(rows, len(models)))
    print(zoo_table.totals(rows, len(models)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
