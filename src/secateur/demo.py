"""The whole journey on data that a dependency ships: handwritten digits, a small residual network, pruned three ways, with the proof."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from .api import prune
from .cli_explain import files_of
from .evaluate import compare, evaluate
from .files import save
from .finetune import Tuned, finetune
from .folders import replacing
from .frontends.batches import Batches, Splits
from .frontends.data import data_of
from .journey import CURVE, VALIDATION, classification, curve_of, example_in, machine, refuse_foreign
from .plan import Plan
from .progress import Bar, silent
from .report import Story, story_of, write_report
from .rounds import rounds
from .sensitivity import Sensitivity, merge
from .structure import Structure, weights
from .surgery import shrink
from .table import Column, Table, factor, in_words
from .tree import Scores

EPOCHS, LEARNING, BATCH = 12, 5e-3, 64  # of the dense model
TUNING, RATE = 4, 2e-3  # epochs after every cut (a gradual run shares them out over its rounds), and their learning rate
LOCAL = 0.3
CONNECTIONS, CHANNELS = 0.9, 0.6  # the share of the connections, and of the MACs, that goes
GRADUAL = "connections, gradually"
BASELINES = ("magnitude", "random")


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        around = [nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)] if inside != outside else []
        self.around = nn.Sequential(*around)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.around(x))


class DigitNet(nn.Module):
    """A residual network of three stages for images of 8 by 8 pixels: (n, 1, 8, 8) -> (n, 10)."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv = nn.Conv2d(1, first, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.stages = nn.Sequential(Block(first, first, 1), Block(first, second, 2), Block(second, third, 2))
        self.head = nn.Linear(third, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def build() -> nn.Module:
    """The network, untrained: `secateur.demo:build` on the command line."""
    return DigitNet()


@dataclass(frozen=True)
class Cut:
    """One way of pruning: the model straight after the cut, the same after fine-tuning, and what they rest on."""

    straight: nn.Module
    tuned: Tuned
    plan: Plan
    structure: Structure
    sensitivity: Sensitivity
    scores: Scores


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    table: Table
    story: Story
    sentences: tuple[str, ...]
    report: Path


def run_demo(folder: str | Path = "secateur-demo", seed: int = 0, bar: Bar = lambda stage: silent) -> Demo:
    """Train (or read from the cache), measure, prune three ways and by two baselines, fine-tune, compare; writes folder/report.html.

    Raises BadInput where the folder is not the demo's or cannot be written, MissingExtra where an extra is not installed.
    """
    place = refuse_foreign(Path(folder), lambda place: (place / "cache").is_dir())
    with one_thread():
        splits = data_of("digits", seed, BATCH)
        dense = trained(place / "cache", splits, seed, bar)
        cuts = {name: way(dense, splits, seed, bar) for name, way in WAYS.items()}
        chosen = cuts["channels"]
        curve = curve_of(
            dense, splits.validation, {f"taylor, local {LOCAL}": chosen.scores}, splits.train, classification, chosen.structure, "macs",
            "global", seed=seed, tell=bar("curve of accuracy"),
        )  # fmt: skip
        bar("comparing on the test split")
        table = compared(dense, cuts, splits)
        story = story_of(
            chosen.plan, chosen.sensitivity, chosen.scores, table, curve=curve, history=chosen.tuned.history, local=LOCAL,
            title="Secateur's demo: handwritten digits", subject="channels", machine=machine(), notes=[*told(table), CURVE],
            curves_on=VALIDATION,
        )  # fmt: skip
    for name in ("connections", GRADUAL, "channels"):
        cut = cuts[name]
        plan = cut.plan.note(model="secateur.demo:build", data="digits", seed=seed)
        explained = files_of(cut.structure, cut.sensitivity, cut.scores, cut.plan)
        save(place / name.rpartition(", ")[2], cut.tuned.model, plan, force=True, extra=explained)
    write_report(place / "report.html", story)
    return Demo(table, story, story.notes, place / "report.html")


@contextmanager
def one_thread() -> Iterator[None]:
    """A network this small is fastest on one thread, on a busy machine by far; and it comes out the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# the dense model ------------------------------------------------------------------------------------------------------------------------


def trained(cache: Path, splits: Splits, seed: int, bar: Bar) -> nn.Module:
    """The network after training: from the cache, where it holds exactly this training's result, whole."""
    key = f"{build()} {EPOCHS} {LEARNING} {BATCH} {seed} {torch.__version__}"
    file = cache / f"dense-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    if not read_into(model, file):
        tuned = finetune(
            model, shuffled(splits, seed), classification, EPOCHS, validation=splits.validation,
            lr=LEARNING, seed=seed, progress=bar("training the dense model"),
        )  # fmt: skip
        model = tuned.model
        content = to_bytes({name: value.contiguous() for name, value in model.state_dict().items()}, {"sha256": digest(model)})
        with replacing(cache) as fresh:
            (fresh / file.name).write_bytes(content)
    return model.eval()


def read_into(model: nn.Module, file: Path) -> bool:
    """Fill `model` from the file; False, and an unchanged model, where it is not there, damaged or another's."""
    now = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as read:
            then = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118 (not a dict)
            model.load_state_dict(then)
            if (read.metadata() or {}).get("sha256") == digest(model):
                return True
    except (OSError, SafetensorError, RuntimeError):
        pass
    model.load_state_dict(now)
    return False


def digest(model: nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        hashed.update(name.encode() + value.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def shuffled(splits: Splits, seed: int) -> Batches:
    assert isinstance(splits.train, Batches)
    return splits.train.shuffled(seed)


# three ways, and the baselines ----------------------------------------------------------------------------------------------------------


def at_once(structure: str, amount: float, of: str, criterion: str, name: str) -> Callable[[nn.Module, Splits, int, Bar], Cut]:
    """One cut, then fine-tuning."""

    def way(dense: nn.Module, splits: Splits, seed: int, bar: Bar) -> Cut:
        ours = criterion == "taylor"
        pruned = prune(
            dense, example_in(splits.train), splits.train, classification, structure=structure, criterion=criterion,
            contexts="class" if ours else "batch", local=LOCAL if ours else 0.0, amount=amount, of=of, seed=seed,
            progress=bar(f"pruning {name}"),
        )  # fmt: skip
        tuned = tuned_on(pruned.model, splits, seed, TUNING, bar, f"fine-tuning {name}")
        return Cut(shrink(dense, pruned.plan), tuned, pruned.plan, pruned.structure, pruned.sensitivity, pruned.scores)

    return way


def gradual(dense: nn.Module, splits: Splits, seed: int, bar: Bar) -> Cut:
    """As many epochs in all, but one after each of as many rounds; its scores are those of the first."""
    first, last, units = None, None, weights(dense)
    for step in rounds(
        dense, example_in(splits.train), splits.train, classification, amount=CONNECTIONS, steps=TUNING, schedule="cubic",
        structure="weights", contexts="class", local=LOCAL, of="units", seed=seed, progress=bar("pruning, round by round"),
    ):  # fmt: skip
        tuned = tuned_on(step.model, splits, seed + step.number, 1, bar, f"fine-tuning round {step.number}")
        step.model.load_state_dict(tuned.model.state_dict())
        first = first or step.sensitivity
        last = Cut(shrink(step.before, step.cut), tuned, step.plan, units, first, merge(first, LOCAL))
    assert last is not None
    return last


def tuned_on(model: nn.Module, splits: Splits, seed: int, epochs: int, bar: Bar, stage: str) -> Tuned:
    return finetune(
        model, shuffled(splits, seed), classification, epochs, validation=splits.validation, lr=RATE, seed=seed, progress=bar(stage)
    )


WAYS: Mapping[str, Callable[[nn.Module, Splits, int, Bar], Cut]] = {
    "channels": at_once("channels", CHANNELS, "macs", "taylor", "channels"),
    **{f"channels, {name}": at_once("channels", CHANNELS, "macs", name, f"channels, {name}") for name in BASELINES},
    "connections": at_once("weights", CONNECTIONS, "units", "taylor", "connections"),
    GRADUAL: gradual,
    **{f"connections, {name}": at_once("weights", CONNECTIONS, "units", name, f"connections, {name}") for name in BASELINES},
}


# the proof ------------------------------------------------------------------------------------------------------------------------------


def compared(dense: nn.Module, cuts: Mapping[str, Cut], splits: Splits) -> Table:
    """All models on the test split, which nothing before this has looked at; and how good each was straight after its cut."""
    models = {"dense": dense, **{name: cut.tuned.model for name, cut in cuts.items()}}
    table = compare(models, splits.test, example=example_in(splits.train), dense="dense")
    rows = {name: dict(row) for name, row in table.rows.items()}
    for name, cut in cuts.items():
        rows[name]["straight"] = evaluate(cut.straight, splits.test, ("top1",))["top1"]
    straight = Column("top-1 straight", "share", "more", "straight after the cut, nothing repaired and nothing fine-tuned")
    return replace(table, rows=rows, columns={"straight": straight, **table.columns})


def told(table: Table) -> tuple[str, ...]:
    """What the numbers say, in three sentences."""
    zeros = 1 - table.rows["connections"]["nonzeros"] / table.rows["dense"]["nonzeros"]
    straight, after = ({name: row[figure] for name, row in table.rows.items() if figure in row} for figure in ("straight", "top1"))
    return (
        f"Channels: {in_words(ratio(table, 'channels', 'macs'), 'fewer MACs', 'MACs')}, "
        f"{in_words(ratio(table, 'channels', 'bytes'), 'smaller file', 'file size')}, a batch of 32 {speed(table, 'channels')}, "
        f"{points(table, 'channels')}.",
        f"Connections: {zeros:.0%} of the weights are zero, {points(table, 'connections')} ({points(table, GRADUAL)} when cut gradually); "
        f"a batch of 32 {speed(table, 'connections')}, since zeros are stored and multiplied like other numbers; "
        f"compressed the file is {factor(ratio(table, 'connections', 'compressed'))} times smaller.",
        f"At the same budget, straight after the cut: channels {straight['channels']:.1%} against {rest(straight, 'channels')}, "
        f"connections {straight['connections']:.1%} against {rest(straight, 'connections')}; "
        f"after fine-tuning: channels {after['channels']:.1%} against {rest(after, 'channels')}, "
        f"connections {after['connections']:.1%} against {rest(after, 'connections')}.",
    )


def ratio(table: Table, row: str, column: str) -> float:
    return table.ratio(row, column) or 1.0


def speed(table: Table, row: str) -> str:
    """How much faster, in words; a tenth either way is noise."""
    faster = ratio(table, row, "ms_32")
    if faster >= 1.1:
        return f"is {factor(faster)} times as fast"
    return "is no faster" if faster > 0.9 else f"takes {factor(1 / faster)} times as long"


def points(table: Table, row: str) -> str:
    difference = table.difference(row, "top1") or 0.0
    if abs(difference) < 0.05:
        return "top-1 unchanged"
    return f"top-1 {abs(difference):.1f} points {'higher' if difference > 0 else 'lower'}"


def rest(values: Mapping[str, float], row: str) -> str:
    return " and ".join(f"{values[f'{row}, {name}']:.1%} ({name})" for name in BASELINES)
