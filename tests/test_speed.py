"""Models are timed in turns; no assertion is about time itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import BadInput
from secateur.speed import WARM, latency, percentile


class Noted(nn.Module):
    """Writes down that it ran, and on how many samples."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled() and not self.training
        self.log.append((self.name, len(x)))
        return self.linear(x)


def test_every_round_runs_each_model_once_beginning_with_another():
    log: list[tuple[str, int]] = []
    models = {name: Noted(name, log) for name in "abc"}
    measured = latency(models, torch.zeros(4, 2), batches=(1, 8), repeats=6)
    assert {name: set(times) for name, times in measured.items()} == {name: {"1", "8"} for name in "abc"}
    assert all(0 < median <= p95 for times in measured.values() for median, p95 in times.values())
    for size in (1, 8):
        ran = [name for name, batch in log if batch == size][3 * WARM :]
        rounds = ["".join(ran[start : start + 3]) for start in range(0, len(ran), 3)]
        assert rounds == ["abc", "bca", "cab"] * 2
    assert all(model.training for model in models.values())


def test_five_rounds_whatever_the_time():
    log: list[tuple[str, int]] = []
    latency({"a": Noted("a", log)}, torch.zeros(1, 2), batches=(1,), seconds=0.0)
    assert len(log) == WARM + 5


@pytest.mark.parametrize("count", [1, 2, 5, 21, 50])
def test_percentile_is_torchs(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    for share in (0.0, 0.5, 0.95, 1.0):
        assert percentile(values.tolist(), share) == pytest.approx(values.quantile(share).item())


def test_a_model_that_does_not_run_is_named():
    with pytest.raises(BadInput, match="The model wide does not run"):
        latency({"wide": nn.Linear(3, 2)}, torch.zeros(1, 2))
