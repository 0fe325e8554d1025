"""A plan as JSON, and back: index ranges instead of masks, and nothing believed before it is checked.

`plan.schema.json` describes the same format. A file may be hostile, so every number is compared with the shapes of the tensors that
are really stored before anything of that size is made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .plan import Kept, Plan
from .structure.kinds import NAMED, SIZED, at_old_size, is_kind
from .structure.tiles import Block, blocks_along, summed

FORMAT = "secateur-plan"
VERSION = 1
LEAST = 1 - (1 << 62)  # of the numbers that a graph gives to its operators
SPARE = 1 << 20  # indices and units that any plan may have, however small its weights
Shapes = dict[str, tuple[int, ...]]
Ranges = list[tuple[int, int]]


class Damage(Exception):
    """What is wrong with a plan's JSON."""


def schema() -> dict[str, object]:
    """The JSON schema (draft 2020-12) of plan.json."""
    return json.loads(Path(__file__).with_name("plan.schema.json").read_text(encoding="utf-8"))


def encode(plan: Plan, sha256: str) -> str:
    """The plan as JSON, with the SHA-256 of the file of its weights. The marker comes first: it tells our folders from others."""
    zeros = at_old_size(plan.structure)
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "structure": plan.structure,
        "sha256": sha256,
        "digest": plan.digest,
        "cost": plan.cost,
        "made": plan.made,
        "sizes": plan.sizes,
        "shapes": plan.shapes,
        "kept": {name: [None if kept is None else ranges_of(kept) for kept in dims] for name, dims in plan.kept.items()},
        "keep": {
            # the mask of a connection is whether its stored weight is non-zero, of a block whether one of its weights is
            name: {"size": mask.numel(), **({"count": int(mask.sum())} if zeros else {"kept": ranges_of(mask.nonzero().flatten())})}
            for name, mask in plan.keep.items()
        },
        "approximate": plan.approximate,
        "frozen": plan.frozen,
        "divided": plan.divided,
        "skipped": plan.skipped,
        **({"blocks": plan.blocks} if plan.blocks else {}),
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}" for key, value in raw.items()) + "\n}\n"


def plain(value: object) -> object:
    """JSON's own types; what has no place in JSON (infinity, a function) becomes text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(getattr(value, "__qualname__", value))


def ranges_of(indices: Tensor) -> Ranges:
    """Sorted indices as [start, stop) ranges: 0 1 2 5 -> [0, 3), [5, 6)."""
    if not indices.numel():
        return []
    gap = indices.diff() != 1
    edge = torch.ones(1, dtype=torch.bool, device=indices.device)
    starts, lasts = indices[torch.cat([edge, gap])], indices[torch.cat([gap, edge])]
    return list(zip(starts.tolist(), (lasts + 1).tolist()))


def indices_of(ranges: Ranges) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in ranges]) if ranges else torch.zeros(0, dtype=torch.long)


def decode(text: bytes, stored: Shapes, room: int, sha256: str, nonzero: Callable[[str], Tensor]) -> Plan:
    """The plan. Raises Damage.

    stored: shapes of the tensors in the file beside the plan. room: its bytes, by which the size of what the plan describes is bounded.
    sha256: of that file. nonzero: where a stored tensor is not zero.
    """
    raw = parse(text)
    if hexadecimal(raw, "sha256") != sha256:
        raise Damage("the weights beside it are not the ones it was written with (their SHA-256 differs)")
    structure = raw.get("structure")
    if not isinstance(structure, str) or not is_kind(structure):
        raise Damage(f"its structure is {structure!r}, not one of {', '.join(NAMED)}, or {SIZED}")
    shapes = {name: shape_of(value, f"the shape of {name!r}") for name, value in mapping(raw, "shapes").items()}
    ranges = {name: dimensions(name, value, shapes) for name, value in mapping(raw, "kept").items()}
    check_stored(shapes, ranges, stored)
    if ranges and at_old_size(structure):
        raise Damage(f"it is of {structure}, where all tensors keep their size, but it has kept indices of {next(iter(ranges))!r}")
    groups = {name: group_of(name, value, structure) for name, value in mapping(raw, "keep").items()}
    blocks = {name: block_in(name, value, shapes) for name, value in mapping(raw, "blocks").items()} if "blocks" in raw else {}
    asked = sum(length(dim) for dims in ranges.values() for dim in dims if dim is not None) + sum(size for size, _ in groups.values())
    if asked > SPARE + 8 * room:
        raise Damage(f"it describes {asked} indices and units, more than its weights have room for")
    kept: Kept = {name: tuple(None if dim is None else indices_of(dim) for dim in dims) for name, dims in ranges.items()}
    return Plan(
        structure=structure,
        keep={name: mask_of(name, size, units, stored, blocks.get(name, ()), nonzero) for name, (size, units) in groups.items()},
        kept=kept,
        sizes={name: size_of(name, value) for name, value in mapping(raw, "sizes").items()},
        shapes=shapes,
        digest=hexadecimal(raw, "digest"),
        cost={name: cost_of(name, value) for name, value in mapping(raw, "cost").items()},
        made=mapping(raw, "made"),
        approximate=reasons(raw, "approximate"),
        frozen=reasons(raw, "frozen"),
        divided=tuple(divided_of(pair, shapes) for pair in listed(raw, "divided")),
        skipped=tuple(skipped_of(path, shapes, stored) for path in listed(raw, "skipped")),
        blocks=blocks,
    )


def parse(text: bytes) -> dict[str, object]:
    try:
        raw = json.loads(text.decode("utf-8"), parse_constant=not_a_number, parse_float=finite)
        json.dumps(raw, ensure_ascii=False).encode("utf-8")  # a lone surrogate would fail later, where it is printed
    except (ValueError, RecursionError) as error:
        raise Damage(f"it is not JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise Damage(f'it is not a plan (its "format" is not "{FORMAT}")')
    version = raw.get("version")
    if type(version) is not int or version < 1:
        raise Damage(f"its version is {version!r}, not a number from 1 on")
    if version > VERSION:
        raise Damage(f"its version is {version}, and this secateur reads versions up to {VERSION}: a newer secateur wrote it")
    return raw


def not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else not_a_number(text)


def mapping(raw: Mapping[str, object], key: str) -> dict[str, object]:
    value = raw.get(key)
    if not isinstance(value, dict):
        raise Damage(f'its "{key}" is missing or is not an object')
    return value


def listed(raw: Mapping[str, object], key: str) -> list[object]:
    value = raw.get(key, [])
    if not isinstance(value, list):
        raise Damage(f'its "{key}" is not a list')
    return value


def divided_of(pair: object, shapes: Shapes) -> tuple[str, int]:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in shapes or whole(pair[1], "a dimension") >= len(shapes[pair[0]]):
        raise Damage(f'in its "divided", {pair!r} is not a parameter and one of its dimensions')
    return pair[0], pair[1]


def skipped_of(path: object, shapes: Shapes, stored: Shapes) -> str:
    if not isinstance(path, str) or not any(name.startswith(f"{path}.") for name in shapes):
        raise Damage(f'in its "skipped", {path!r} is no module with parameters')
    if kept := next((name for name in stored if name.startswith(f"{path}.")), None):
        raise Damage(f"it skips {path}, but {kept!r} is among the weights")
    return path


def reasons(raw: Mapping[str, object], key: str) -> dict[str, str]:
    values = mapping(raw, key)
    for name, value in values.items():
        if not isinstance(value, str):
            raise Damage(f'in its "{key}", {name!r} is not text')
    return {name: str(value) for name, value in values.items()}


def hexadecimal(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise Damage(f'its "{key}" is not a SHA-256 in hexadecimal')
    return value


def whole(value: object, what: str, low: int = 0) -> int:
    if type(value) is not int or not low <= value < 1 << 62:
        raise Damage(f"{what} is not a whole number from {low} on")
    return value


def shape_of(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise Damage(f"{what} is not a list")
    return tuple(whole(size, what) for size in value)


def size_of(name: str, value: object) -> int | tuple[int, ...]:
    """A size, or a list of arguments in which a -1 may stand for a size that is left open, or for the last dimension."""
    what = f"the size {name!r}"
    return tuple(whole(item, what, LEAST) for item in value) if isinstance(value, list) else whole(value, what)


def cost_of(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) in (int, float) and 0 <= item <= 1e300 for item in value):
        raise Damage(f"the cost {name!r} is not two numbers from 0 on")
    return value[0], value[1]


def ranges_in(value: object, size: int, what: str) -> Ranges:
    """[start, stop) ranges, sorted and disjoint, within 0..size."""
    if not isinstance(value, list):
        raise Damage(f"{what} are not a list of ranges")
    ranges, end = [], 0
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Damage(f"{what} are not a list of [start, stop] ranges")
        start, stop = (whole(edge, f"an edge of {what}") for edge in pair)
        if not end <= start < stop <= size:
            raise Damage(f"{what} have the range [{start}, {stop}], which is out of order or beyond 0..{size}")
        ranges.append((start, stop))
        end = stop
    return ranges


def dimensions(name: str, value: object, shapes: Shapes) -> list[Ranges | None]:
    """Kept ranges of every dimension of one tensor; None where all of it is kept."""
    if name not in shapes:
        raise Damage(f"it keeps indices of {name!r}, of which it has no shape")
    if not isinstance(value, list) or len(value) != len(shapes[name]):
        raise Damage(f"the kept indices of {name!r} are not a list of {len(shapes[name])} dimensions")
    dims = [None if dim is None else ranges_in(dim, size, f"the kept indices of {name!r}") for dim, size in zip(value, shapes[name])]
    if [] in dims:
        raise Damage(f"no index of a dimension of {name!r} is kept")
    return dims


def length(ranges: Ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def check_stored(shapes: Shapes, ranges: Mapping[str, list[Ranges | None]], stored: Shapes) -> None:
    """Raises Damage unless what is kept of each shape is the shape that is stored."""
    for name, shape in stored.items():
        if name not in shapes:
            raise Damage(f"it does not know {name!r}, which is among the weights")
        dims = ranges.get(name, [None] * len(shapes[name]))
        small = tuple(size if dim is None else length(dim) for dim, size in zip(dims, shapes[name]))
        if small != shape:
            raise Damage(f"it keeps {small} of {name!r}, whose weights are {shape}")


def group_of(name: str, value: object, structure: str) -> tuple[int, Ranges | int]:
    """A group's size, and its kept ranges, or for connections and blocks how many are kept."""
    if not isinstance(value, dict):
        raise Damage(f"the group {name!r} is not an object")
    size = whole(value.get("size"), f"the size of the group {name!r}")
    if at_old_size(structure):
        return size, whole(value.get("count"), f"the count of the group {name!r}")
    return size, ranges_in(value.get("kept"), size, f"the kept units of the group {name!r}")


def block_in(name: str, value: object, shapes: Shapes) -> Block:
    """The size of a block along every dimension of a tensor that it fits in."""
    block, shape = shape_of(value, f"the block of {name!r}"), shapes.get(name, ())
    if len(block) != len(shape) or not all(0 < step <= size for step, size in zip(block, shape)):
        raise Damage(f"its block of {name!r} is {block}, which does not fit into {shape}")
    return block


def mask_of(name: str, size: int, units: Ranges | int, stored: Shapes, block: Block, nonzero: Callable[[str], Tensor]) -> Tensor:
    if not isinstance(units, int):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[indices_of(units)] = True
        return mask
    if name not in stored or math.prod(blocks_along(stored[name], block)) != size:
        raise Damage(f"it has {size} connections of {name!r}, which the weights do not have")
    mask = summed(nonzero(name).int(), block) > 0 if block else nonzero(name)
    if units > size or int(mask.sum()) > units:  # a kept weight may be zero by chance, a removed one is never anything else
        raise Damage(f"it keeps {units} connections of {name!r}, whose weights have {int(mask.sum())} non-zeros among {size}")
    return mask
