"""What the processes of tests/test_sharded.py do: a model that FSDP2 has put in shards."""

from __future__ import annotations

import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from secateur.measure import measure
from secateur.structure import weights
from secateur.task import Task
from toy import batches, mlp


def first():
    model = mlp(6, 5, 4, 3)
    data = batches(4, 8, 6, 3)
    structure = weights(model)
    expected = measure(Task(mlp(6,5,4,3), data, F.cross_entropy), structure, split=False)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    print({n: (type(p).__name__, p.placements, p.to_local().shape) for n, p in model.named_parameters()})
    for c in ("taylor","gradient","fisher","l1","l2"):
        found = measure(Task(model, data, F.cross_entropy), structure, c)
        print({n: v.shape for n, v in found.global_.items()})
