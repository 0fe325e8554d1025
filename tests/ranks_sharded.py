"""What the processes of tests/test_shards.py do: a model that FSDP2 has put in shards."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from secateur.errors import BadInput
from secateur.measure import measure
from secateur.shards import kept_shards, masked_shards
from secateur.structure import Weights, weights
from secateur.task import Task
from toy import batches, mlp

CRITERIA = ("gradient", "taylor", "fisher", "l1", "l2")
WAYS = [("batch", "max"), ("class", "max"), ("batch", 0.7)]
AMOUNTS = (0.0, 0.01, 0.5, 0.9)
DATA = batches(5, 8, 6, 3)


def whole() -> nn.Sequential:
    """Five units to a layer, which two processes cannot share evenly; some of the first layer's connections are zero."""
    model = mlp(6, 5, 5, 3)
    with torch.no_grad():
        model[0].weight[1:4] = 0
    return model


def sharded() -> tuple[nn.Sequential, Weights]:
    model = whole()
    structure = weights(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, structure


def everything(folder: str) -> None:
    """Into a file each: the scores of this process's shards for all criteria and ways, and the masked shards for all amounts."""
    model, structure = sharded()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    rank, found, task = dist.get_rank(), {}, Task(model, DATA, F.cross_entropy)
    for criterion in CRITERIA:
        for contexts, by in WAYS:
            measured = measure(task, structure, criterion, contexts, by)
            parts = {"global": measured.global_, "local": measured.local, "spread": measured.spread, "error": measured.error or {}}
            parts |= {f"key {key}": scores for key, scores in measured.keys.items()}
            found |= {f"{criterion}/{contexts}/{by}/{part}/{name}": v for part, scores in parts.items() for name, v in scores.items()}
    scores = measure(task, structure).global_
    for amount in AMOUNTS:
        masked = masked_shards(model, kept_shards(scores, amount))
        found |= {f"masked/{amount}/{name}": value.to_local().contiguous() for name, value in masked.items()}
    model.load_state_dict(masked_shards(model, kept_shards(scores, 0.5)), strict=False)
    found["output"] = model(DATA[0][0]).detach()
    save_file({name: value.contiguous().clone() for name, value in found.items()}, Path(folder) / f"{rank}")
    assert model.training and torch.equal(model[0].weight.grad.to_local(), torch.ones_like(model[0].weight.to_local()))
    assert model[2].weight.grad is None
    refusals()


def refusals() -> None:
    """A line each."""
    model, structure = sharded()
    task = Task(model, DATA, F.cross_entropy)
    for way in (
        lambda: weights(model),
        lambda: measure(task, structure, "hessian"),
        lambda: measure(task, structure, enough=0.9),
        lambda: measure(task, structure, checkpoint="x"),
        lambda: kept_shards(measure(task, structure).global_, 1.0),
        lambda: masked_shards(model, {"0.weight": torch.ones(9, 9)}),
        lambda: masked_shards(whole(), {"0.weight": torch.ones(5, 6)}),
    ):
        try:
            way()
        except BadInput as error:
            print(error)


def read(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / str(rank)) for rank in range(2)]
