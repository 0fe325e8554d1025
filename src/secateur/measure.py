"""Measure the sensitivity of every unit: run a criterion over the data once, and reduce what it yields."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .contexts import Keys, cut_of
from .criteria import IN_ORDER, Criterion, criterion, name_of
from .distributed import Processes, is_split, processes
from .errors import BadInput, SecateurError
from .resume import Checkpoint, digest, loss_told
from .sensitivity import Collector, Sensitivity
from .sharded import is_sharded
from .sharded_task import ShardedTask
from .stream import Position, Stream
from .structure import Structure, check_prunable
from .task import Task, device_of, mixed, seeded

ROUNDS = 8  # pieces a process, between two meetings of several processes
FIRST, MORE = 8, 1.25  # contexts at which `enough` is looked at first, and how many times as many the next time
PARTS = 40  # bits for the number of a piece, before those for which of its scores it is
WATCHED, SHARE = 1.0, 0.05  # seconds between two looks at the least, and the share of the time that looking may take


def measure(
    task: Task,
    structure: Structure,
    criterion: str | Criterion = "taylor",
    contexts: str | Keys = "batch",
    local: str | float = "max",
    progress: Callable[[int, int | None], None] | None = None,
    *,
    watch: Callable[[Sensitivity], None] | None = None,
    checkpoint: str | Path | None = None,
    enough: float | None = None,
    amount: float = 0.5,
    split: bool | None = None,
) -> Sensitivity:
    """Global and local sensitivity of every unit, in one pass over the data.

    contexts: "batch", "sample" (every sample on its own: exact, and as slow as batches of one), "class" (samples are regrouped into
    batches of one class; memory is classes x units), or a function batch -> keys: one string or whole number for every sample (or
    one for the batch), that says which domain, speaker, language, sensor, ... it is of. A context of which nothing counts in the loss (all
    its targets are ignored, so its mean is over none) needs no unit: its scores are 0, and it counts as one of the contexts.
    local: "max", or a quantile in 0..1 over the contexts. It is exact over keys; over other contexts it is taken over 64 (of many units)
    to 4,096 (of few) of them, so that memory does not grow: `reductions.rank_error` tells how far off that can be.
    progress: called with (batches done, batches in all or None). watch: now and then with the sensitivity so far (5 % of the time).
    checkpoint: a file to go on from after a stop, with the same numbers. It is written every 30 seconds and removed in the end; one of
    another model, another loss (by its name and code), other settings or other data (by its first batch) is refused. What was seen is
    left out by the data's own `skip(n)` where it has one, else read past.
    enough: stop when two halves of the contexts agree on what to remove at `amount` (`stability.agreement`, a Jaccard index in 0..1), which
    is looked at after 8 contexts and then at every quarter more; not before every key that was met is in both halves, though: what one
    needs, others do not tell. It needs a criterion that yields for every batch: others are refused.
    split: in an initialised torch.distributed process group, each process measures its share of the pieces and all get the merged result,
    the same as of one process. All read all data, unless each has data of its own already: split=False, known of a DistributedSampler
    (then `enough` is looked at every 8 pieces of each only, so it can stop later than one process would).
    Raises BadInput for scores that are not finite, naming the criterion and the context.
    """
    check_prunable(structure)
    function, name = criterion_of(criterion), name_of(criterion)
    cut, called = cut_of(contexts)
    group, sharded = processes(), any(is_sharded(value) for value in task.model.parameters())
    split = not is_split(task.data) if split is None else split
    check(enough, amount, checkpoint is not None, split, sharded, group)
    if getattr(function, "func", function) in IN_ORDER and (checkpoint or group.size > 1):
        raise BadInput(f"Scores by {name} depend on the batches before: measure them in one process, and without checkpoint=.")
    total, device = length(task.data), device_of(task.model)
    settings: dict[str, object] = {"criterion": name, "contexts": called, "local": local, "seed": task.seed, "model": structure.digest}
    settings |= {"loss": loss_told(task.loss), "criterion's code": digest(function), "contexts' code": digest(contexts)}
    settings |= {"groups": {name: list(each.shape) for name, each in structure.groups.items()}, "batches": total}
    collector = Collector(structure, name, called, local, task.seed)
    if sharded:  # all processes compute every piece together, and each has the scores of its shards
        task, group = ShardedTask(task.model, task.data, task.loss, task.seed), Processes()
    group.agree(json.dumps({**settings, "batches": split and total, "enough": enough, "amount": amount}))
    kept = Checkpoint(Path(checkpoint), settings, str(device)) if checkpoint else None
    between = Between(collector, group, watch, kept, enough, amount)
    start, chance = between.begin(), partial(chance_at, task.seed, device)
    stream = Stream(task.data, cut, start, group.rank, group.size, split, between, chance, kept.begun if kept else None)
    with seeded(task.seed, device):
        try:
            yielded: object = function(replace(task, data=stream, first=stream.first, every=group.size), structure)
            if not isinstance(yielded, Iterable):
                made = type(yielded).__name__
                raise BadInput(f"The criterion {name} returned {made}, not scores. Let it yield structure.reduce(...) for each batch.")
            for scores in yielded:
                between.take(scores, stream)
                if progress:
                    progress(stream.taken, total)
            between.end(stream)
        except Exception as error:
            between.fail(error)
            raise
    return between.finish(stream).sensitivity(amount)


criterion_of = criterion  # `measure` has an argument of that name


@dataclass
class Between:
    """What happens between the pieces of a measurement: its scores are collected; now and then it is looked at, kept, or found enough.

    Several processes meet at the same pieces, and decide together; one that is done early goes on meeting the others.
    """

    collector: Collector
    group: Processes
    watch: Callable[[Sensitivity], None] | None
    checkpoint: Checkpoint | None
    enough: float | None
    amount: float
    handed: int = 0  # pieces, at the last scores
    parts: int = 0  # scores of the last piece
    counted: int = 0  # samples, each once however many scores or passes they are for
    looked: float = field(default_factory=time.monotonic)
    pause: float = 0.0  # seconds until the next look: the first one is early
    start: int = 0
    next: int = FIRST
    failed: bool = False

    def begin(self) -> Position:
        """Where to begin, by the checkpoint of the first process, which has what was seen."""
        found, error = None, None
        if self.checkpoint and not self.group.rank:
            try:
                found = self.checkpoint.read(self.collector)
            except SecateurError as caught:
                error = caught
        self.group.fail_together(error)
        if error:
            raise error
        self.collector, place = found or (self.collector, Position())
        place = Position(*self.group.summed(place))
        self.start, self.next = place.pieces, after(self.group.summed([self.collector.seen])[0])
        return place

    def take(self, scores: Mapping[str, Tensor], stream: Stream) -> None:
        """Collect the scores of the piece that was handed out last."""
        if stream.key is not None and stream.handed != self.handed + 1:
            raise BadInput(
                f"The criterion {self.collector.criterion} did not yield one score for each batch, so its scores cannot be told apart by "
                f'{self.collector.contexts}. Use contexts="batch", or yield once for every batch of task.data.'
            )
        self.parts = self.parts + 1 if stream.handed == self.handed else 0
        self.handed = stream.handed
        if stream.counts:
            number = None if not stream.handed else stream.turn if stream.key is not None else stream.number + (self.parts << PARTS)
            self.collector.update(scores, stream.key, max(0, stream.total - self.counted), number)
            self.counted = max(self.counted, stream.total)

    def __call__(self, stream: Stream) -> bool:
        """Before a piece: whether it is enough."""
        if stream.handed != self.handed and (self.checkpoint or self.group.size > 1):
            raise self.not_shared()
        if stream.handed != self.handed and self.enough is not None:
            raise self.not_halved()
        place = stream.place.pieces
        looks = self.enough is not None and stream.split and place == self.next  # as one process would, which has seen so many by then
        if place == self.start or (self.group.size > 1 and place % (ROUNDS * self.group.size) and not looks):
            return False
        return self.meet(stream.place, stream.waiting)[0]

    def meet(self, place: Position | None, waiting: int = 0) -> tuple[bool, bool]:
        """Whether it is enough, and whether some process is not yet done; place: before which piece this one is, None where it is done;
        waiting: how many keys have no piece yet."""
        try:
            self.group.fail_together()
        except BadInput:
            self.failed = True
            raise
        looks = self.watch is not None and time.monotonic() - self.looked >= self.pause
        keeps = place is not None and self.checkpoint is not None and self.checkpoint.due
        looks_, keeps_, open_, seen, waiting = self.group.summed([looks, keeps, place is not None, self.collector.seen, waiting])
        due, stop = self.enough is not None and seen >= self.next, False
        if seen and (looks_ or keeps_ or due):
            began, whole = time.monotonic(), self.group.merged(self.collector)
            if keeps and place and self.checkpoint and not self.group.rank:
                self.checkpoint.write(whole, place)
            if due and self.enough is not None:
                self.next, sure = after(seen), whole.stability(self.amount)
                stop = sure is not None and sure.agreement >= self.enough and whole.in_halves and not waiting
            if looks and self.watch:
                self.watch(whole.sensitivity(self.amount))
                self.looked = time.monotonic()
                self.pause = max(WATCHED, (self.looked - began) / SHARE)
        return stop, bool(open_)

    def not_shared(self) -> BadInput:
        return BadInput(
            f"The criterion {self.collector.criterion} did not yield scores for each batch, so processes cannot share it, and it cannot go "
            "on after a stop. Measure in one process and without checkpoint=, or yield once for every batch of task.data."
        )

    def not_halved(self) -> BadInput:
        return BadInput(
            f"The criterion {self.collector.criterion} does not yield scores for each batch, so there are no halves of the data that could "
            "agree. Leave enough= out, or choose a criterion that does (taylor, say)."
        )

    def end(self, stream: Stream) -> None:
        if self.enough is not None and not stream.ended and self.collector.seen <= 1:
            raise self.not_halved()
        if self.group.size > 1 and stream.handed and not stream.ended:
            raise self.not_shared()
        while self.group.size > 1 and self.meet(None)[1]:
            pass

    def fail(self, error: Exception) -> None:
        """Tell the other processes, unless it was them who told."""
        if not self.failed:
            self.failed = True
            with suppress(RuntimeError):  # where one of them is gone, there is nobody to tell
                self.group.fail_together(error)

    def finish(self, stream: Stream) -> Collector:
        """What all have seen; without data, each has seen the whole."""
        whole = self.group.merged(self.collector) if stream.taken else self.collector
        if self.checkpoint and not self.group.rank:
            self.checkpoint.remove()
        return whole


def after(seen: int) -> int:
    """The number of contexts at which `enough` is looked at next."""
    number = FIRST
    while number <= seen:
        number = math.ceil(number * MORE)
    return number


def chance_at(seed: int, device: torch.device, what: str, number: int) -> None:
    """Chance that goes by the number of the batch or piece only, whoever computes it and whenever."""
    start = mixed(seed, what, number)
    torch.default_generator.manual_seed(start)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(start)


def check(enough: object, amount: object, kept: bool, split: bool, sharded: bool, group: Processes) -> None:
    """Raises BadInput for settings that are none, or that do not go together."""
    for name, value in (("enough", enough), ("amount", amount)):
        given = name == "amount" or value is not None
        if given and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1):
            raise BadInput(f"{name}= must be in 0..1, but it is {value!r}. Try {name}={0.95 if name == 'enough' else 0.5}.")
    if kept and (sharded or (group.size > 1 and not split)):
        what = "a sharded model" if sharded else "data that each process has a part of"
        raise BadInput(f"checkpoint= does not work with {what}. Leave it out, or give all processes the same data and a whole model.")
    if sharded and enough is not None:
        raise BadInput("enough= does not work with a sharded model, whose ranking no process has as a whole. Leave it out.")


def length(data: object) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a loader of a stream has a __len__ that raises
        return None
