"""Why a unit went or stayed, as values and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .table import shown

NAMED = 4  # keys, and other units, in the text
STYLES = {"bytes": "bytes", "activations": "bytes", "latency": "ms"}
WORDS = {"macs": "MACs a sample", "bytes": "", "activations": "of activations", "latency": ""}


@dataclass(frozen=True)
class Need:
    """A key (a class, a domain, ...): the unit's share of all its sensitivity, and the share of all units that it needs less."""

    key: str
    share: float
    above: float


@dataclass(frozen=True)
class Other:
    """A unit that would go before others that stay, and its score as a multiple of the cut (None without a cut above 0).

    block: where units leave several at a time, all those that leave with it, itself the first; their score is the block's.
    """

    unit: str
    score: float
    to_cut: float | None
    block: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """unit: "group:place". score: merged from global and local; ranked_by: that score as the scope made it, which `cut` is one of, too;
    of units that leave in blocks, their block's mean.

    rank, of: among all units; group_rank, group_size: among those of its group. cut: the last that left, as the plan has it (where every
    group lost a share of its own, of this group); None where there is no one cut.
    global_rank, local_rank, global_share, local_share: by either sensitivity alone, and its part of the whole. error: of global_share.
    saved: what it takes along when it alone leaves the dense model. whole: what that model has in all, and what the plan leaves of it.
    needs: of contexts that have keys, who needs it, the most first. instead: what would go next, if it stayed or more had to go.
    members: (tensor, dimension) that are cut together; through: the operators that couple them.
    """

    unit: str
    kind: str
    kept: bool
    why: str
    how: str
    score: float
    ranked_by: float
    rank: int
    of: int
    group_rank: int
    group_size: int
    cut: float | None
    global_rank: int
    local_rank: int
    global_share: float
    local_share: float
    error: float | None
    saved: dict[str, float]
    whole: dict[str, tuple[float, float]]
    contexts: str
    needs: tuple[Need, ...]
    instead: tuple[Other, ...]
    members: tuple[tuple[str, int], ...]
    through: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def text(self) -> str:
        """In words and numbers, a few lines."""
        of = f"{self.of:,}"
        ranked_by = "" if self.ranked_by == self.score else f", ranked as {self.ranked_by:.3g}"
        lines = [
            f"{self.unit} ({self.kind}) {'stayed' if self.kept else 'went'}: {self.why}",
            f"  score {self.score:.3g}{ranked_by}: rank {self.rank:,} of {of} from the least needed, "
            f"{self.group_rank:,} of {self.group_size:,} in its group; {self.how}",
            f"  takes along {self.costs()}" if self.saved else "",
            f"  the plan: {self.planned()}",
            f"  global: rank {self.global_rank:,} of {of}, {percent(self.global_share)} of the sensitivity"
            + ("" if self.error is None else f" (± {percent(self.error)})"),
            f"  local:  rank {self.local_rank:,} of {of}, {percent(self.local_share)}",
            "  who needs it:" if self.needs else "",
            *(f"    {self.named_need(need)}" for need in self.needs[:NAMED]),
            ("  next to go: " if self.kept else "  had it stayed, next to go: ") + "; ".join(map(named, self.instead[:NAMED]))
            if self.instead
            else "",
            "  leaves with it: " + ", ".join(f"{tensor} (dimension {dim})" for tensor, dim in self.members) if self.members else "",
            *(f"    through {place}" for place in self.through),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(filter(None, lines))

    def costs(self) -> str:
        parts = []
        for of, value in self.saved.items():
            share = f" ({percent(value / self.whole[of][0])})" if of in self.whole and self.whole[of][0] else ""
            parts.append(counted(value, of) + share)
        return ", ".join(parts) + " of the dense model"

    def planned(self) -> str:
        return ", ".join(f"{counted(before, of, False)} -> {counted(after, of)}" for of, (before, after) in self.whole.items())

    def named_need(self, need: Need) -> str:
        what = "class " if self.contexts == "class" else ""
        return f"{what}{need.key}: {percent(need.share)} of its sensitivity, more than {percent(need.above)} of all units"


def counted(value: float, of: str, named: bool = True) -> str:
    """ "36.9 k MACs a sample"."""
    return shown(value, STYLES.get(of, "count")) + (f" {WORDS.get(of, of)}".rstrip() if named else "")


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def named(other: Other) -> str:
    others = f" and {len(other.block) - 1} more" if other.block else ""
    return other.unit + others + (f" ({other.to_cut:.2f} times the cut)" if other.to_cut is not None else f" ({other.score:.3g})")
