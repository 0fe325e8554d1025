"""What is saved comes back bit for bit; what is damaged, foreign or of another model is refused with a sentence."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur import files
from secateur.errors import BadInput, PlanMismatch, SecateurError, Unreadable
from secateur.plan import Plan
from secateur.structure.structure import digest_of, shapes_of
from secateur.surgery import masks, shrink


class Net(nn.Module):
    """Two convolutions with a norm between, a tied pair of linear layers, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, groups=2)
        self.head, self.tied = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("shift", torch.arange(8) / 8, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)
        return self.tied(self.head(self.second(x.relu()).mean((2, 3)))).softmax(1)


def plan_of(model: nn.Module) -> Plan:
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)  # the second convolution is grouped
    (indices,) = mask.nonzero(as_tuple=True)
    line = {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")} | {"first.bias", "scale", "shift"}
    kept: dict[str, tuple[Tensor | None, ...]] = {name: (indices,) for name in sorted(line)}
    kept |= {"first.weight": (indices, None, None, None), "second.weight": (None, torch.tensor([0, 1, 3]), None, None)}
    return Plan(
        structure="channels",
        keep={"first": mask},
        kept=kept,
        sizes={"norm.num_features": 6},
        shapes=shapes_of(model),
        digest=digest_of(model),
        cost={"units": (8, 6)},
        made={"criterion": "random", "seed": 0},
    )


def weights_plan_of(model: nn.Module) -> Plan:
    keep = {name: value.detach() > 0 for name, value in model.named_parameters() if value.dim() > 1}
    return Plan("weights", keep, {}, {}, shapes_of(model), digest_of(model), {"units": (1, 1)})


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    model = copy.deepcopy(model)
    for name, kept in masks(plan).items():
        dict(model.named_parameters())[name].data[~kept] = 0
    return model


PLANS = {"channels": (plan_of, shrink), "weights": (weights_plan_of, masked)}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, kind: str = "channels", **options: object) -> tuple[nn.Module, Plan]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().eval()
    of, do = PLANS[kind]
    plan = of(model)
    small = do(model, plan)
    for value in small.parameters():
        value.data[value.data != 0] += 0.1  # as after training: other values than the dense model's
    files.save(folder, small, plan, **options)  # type: ignore[arg-type]
    return small, plan


def build() -> nn.Module:
    return Net().eval()


@pytest.mark.parametrize("kind", PLANS)
def test_what_is_loaded_equals_what_was_saved_bit_for_bit(tmp_path: Path, kind: str):
    small, plan = saved(tmp_path / "out", kind)
    state = torch.get_rng_state()
    again = files.load(tmp_path / "out", build)
    assert torch.equal(again(X), small(X)) and not again.training
    assert torch.equal(state, torch.get_rng_state())
    assert again.tied.weight is again.head.weight
    read = files.read_plan(tmp_path / "out")
    assert read.made == plan.made and read.shapes == plan.shapes and read.digest == plan.digest
    assert all(torch.equal(read.keep[name], plan.keep[name]) for name in plan.keep)


def test_a_fresh_process_loads_it_bit_for_bit(tmp_path: Path):
    small, _ = saved(tmp_path / "out")
    code = "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_files as t; torch.save(t.files.load('out', t.build)(t.X), 'y')"
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert torch.equal(torch.load(tmp_path / "y", weights_only=True), small(X))


def test_tied_tensors_are_stored_once_and_passing_buffers_not_at_all(tmp_path: Path):
    saved(tmp_path / "out")
    names = load_file(tmp_path / "out" / files.WEIGHTS).keys()
    assert "head.weight" in names and "tied.weight" not in names and "scale" in names and "shift" not in names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_loaded_model_has_the_types_of_the_file(tmp_path: Path, dtype: torch.dtype):
    small, plan = saved(tmp_path / "out")
    files.save(tmp_path / "out", small.to(dtype), plan)
    again = files.load(tmp_path / "out", build)
    assert torch.equal(again(X.to(dtype)), small(X.to(dtype)))


def test_the_plan_on_disk_fits_the_schema(tmp_path: Path):
    for kind in PLANS:
        saved(tmp_path / kind, kind)
        jsonschema.validate(json.loads((tmp_path / kind / files.PLAN).read_text()), files.schema(), jsonschema.Draft202012Validator)


def test_our_folder_is_replaced_with_what_was_beside_the_weights(tmp_path: Path):
    saved(tmp_path / "out", extra={"split.json": "{}"})
    saved(tmp_path / "out", extra={"report.html": b"<p>"})
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors", "plan.json", "report.html"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_extra_file_stays_in_the_folder(tmp_path: Path):
    for name in ("../x", "plan.json", "a/b", ""):
        with pytest.raises(BadInput, match="Give a plain file name"):
            saved(tmp_path / "out", extra={name: ""})


def test_a_folder_of_others_is_refused_without_force(tmp_path: Path):
    (tmp_path / "out").mkdir()
    saved(tmp_path / "out")  # an empty one is nobody's
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(BadInput, match=r"was not written by secateur.*--force"):
        saved(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    saved(tmp_path / "out", force=True)
    assert files.read_plan(tmp_path / "out")


def test_the_working_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", tmp_path.parent, Path.home()):
        with pytest.raises(BadInput, match="the working or the home folder"):
            files.check_writable(folder, force=True)


def test_what_cannot_be_written_is_said_before_anything_is_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        files.check_writable(tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be written"):
        files.check_writable(tmp_path / "file" / "out")
    if Path("/proc/self").is_dir():
        with pytest.raises(BadInput, match="cannot be written"):
            files.check_writable("/proc/out")
    files.check_writable(tmp_path / "deep" / "er")
    assert os.listdir(tmp_path) == ["file"]


def test_a_result_left_aside_by_a_kill_is_found_and_put_back(tmp_path: Path):
    small, _ = saved(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    assert torch.equal(files.load(tmp_path / "out", build)(X), small(X))
    files.check_writable(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_plan_of_another_model_is_not_saved(tmp_path: Path):
    _, plan = saved(tmp_path / "out")
    with pytest.raises(PlanMismatch, match=r"'first\.weight'"):
        files.save(tmp_path / "other", Net(), plan)
    with pytest.raises(PlanMismatch, match="non-zeros"):
        files.save(tmp_path / "other", Net(), weights_plan_of(Net()))
    assert os.listdir(tmp_path) == ["out"]


def changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Net()
        change(model)
        return model

    return build


OTHERS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a wider layer": (
        lambda model: setattr(model, "first", nn.Conv2d(3, 9, 3)),
        r"first.weight is \(8, 3, 3, 3\), but this one's is \(9, 3, 3, 3\)",
    ),
    "a missing layer": (lambda model: setattr(model, "norm", nn.Identity()), "norm.weight"),
    "another layer": (lambda model: setattr(model, "more", nn.Linear(1, 1)), "more.weight"),
    "a buffer no longer saved": (lambda model: model._non_persistent_buffers_set.add("scale"), "scale is"),
    "a size of another name": (lambda model: delattr(model.norm, "num_features"), "norm.num_features"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_model_is_refused_by_its_first_mismatch(tmp_path: Path, case: str):
    saved(tmp_path / "out")
    change, said = OTHERS[case]
    with pytest.raises(PlanMismatch, match=said):
        files.load(tmp_path / "out", changed(change))


def test_a_plan_cannot_set_what_is_not_a_size(tmp_path: Path):
    saved(tmp_path / "out")
    path = tmp_path / "out" / files.PLAN
    raw = json.loads(path.read_text())
    for sizes in (
        {"forward": 1},
        {"norm.momentum": 1},
        {"first.weight": 1},
        {"training": 1},
        {"norm.num_features": 10**9},
        {"norm.__class__": 1},
    ):
        path.write_text(json.dumps({**raw, "sizes": sizes}))
        with pytest.raises(PlanMismatch, match="The plan sets"):
            files.load(tmp_path / "out", build)


def test_a_missing_file_is_named(tmp_path: Path):
    saved(tmp_path / "out")
    with pytest.raises(Unreadable, match="is not there"):
        files.load(tmp_path / "nowhere", build)
    os.remove(tmp_path / "out" / files.WEIGHTS)
    with pytest.raises(Unreadable, match=r"model\.safetensors"):
        files.load(tmp_path / "out", build)
    os.remove(tmp_path / "out" / files.PLAN)
    with pytest.raises(Unreadable, match=r"has no plan.json"):
        files.load(tmp_path / "out", build)


def test_a_builder_of_no_model_is_refused(tmp_path: Path):
    saved(tmp_path / "out")
    with pytest.raises(BadInput, match="returned a NoneType"):
        files.load(tmp_path / "out", lambda: None)  # type: ignore[arg-type, return-value]


def flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**61,
    2**63,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "\x1b[31m",
    [],
    {},
    [[0, 1]],
    [[0, 2**61]],
    [2**61],
    [None] * 4,
]


def edited(data: bytes, chance: random.Random) -> bytes:
    """The JSON with the value at a random place replaced, removed, or copied from another place."""
    raw = json.loads(data)
    places: list[tuple[object, object]] = []

    def walk(value: object) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            places.append((value, key))
            walk(item)

    walk(raw)
    top = [(raw, key) for key in raw]
    holder, key = chance.choice(places if chance.random() < 0.7 else top)
    if chance.random() < 0.2:
        del holder[key]  # type: ignore[attr-defined]
    else:
        other, name = chance.choice(places)
        holder[key] = chance.choice([*VALUES, copy.deepcopy(other[name])])  # type: ignore[index]
    return json.dumps(raw).encode()


@pytest.fixture
def little_memory():
    """At most 1 GB more than what is in use can be had, so that an allocation of a hostile size fails instead of passing unseen."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to limit memory")
@pytest.mark.parametrize("kind", PLANS)
def test_damaged_files_give_a_sentence_or_a_model(tmp_path: Path, kind: str, little_memory: None):
    saved(tmp_path / "out", kind)
    whole = {name: (tmp_path / "out" / name).read_bytes() for name in (files.PLAN, files.WEIGHTS)}
    weights = load_file(tmp_path / "out" / files.WEIGHTS)
    validator = jsonschema.Draft202012Validator(files.schema())
    refused = 0
    for seed in range(200):
        chance = random.Random(seed)
        damage, name = chance.choice(
            [(edited, files.PLAN)] * 4
            + [(flipped, files.PLAN), (truncated, files.PLAN), (flipped, files.WEIGHTS), (truncated, files.WEIGHTS)]
        )
        for each, data in whole.items():
            (tmp_path / "out" / each).write_bytes(damage(data, chance) if each == name else data)
        try:
            again = files.load(tmp_path / "out", build)
        except SecateurError as error:
            refused += 1
            assert "\n" not in str(error) and "\x1b" not in str(error) and str(error).endswith(".")
        else:
            assert name == files.PLAN, "a damaged weight must not pass"
            assert all(torch.equal(value, weights[key]) for key, value in files.tensors_of(again).items())
            assert validator.is_valid(json.loads((tmp_path / "out" / files.PLAN).read_bytes()))
    assert 100 < refused < 200
