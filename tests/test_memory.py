"""The tape that travels plays what the model does; the fresh process sees what a model takes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from secateur import memory
from secateur.errors import BadInput
from secateur.memory import STATUS, Untaped, peak_memories, play, write_tape

MB = 1 << 20
MEASURED = pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell a process its peak memory")


class Views(nn.Module):
    """Views, writes in place, concatenation, values that the forward makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("scale", torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor, flip: bool = False) -> dict[str, object]:
        x = self.conv(x).relu_()
        left, right = x.chunk(2, dim=1)
        left.add_(torch.arange(4.0).view(4, 1, 1))
        both = torch.cat([right, left], 1).permute(0, 2, 3, 1).to(torch.float64)
        return {"map": both * self.scale.view(8), "sum": (x.flatten(1).sum(1), x.mean((2, 3)))}


class Holds(nn.Module):
    """Takes `size` bytes while it runs, or twice that if the first half is held."""

    def __init__(self, size: int, held: bool = False) -> None:
        super().__init__()
        self.size, self.held = size, held

    def forward(self, x: Tensor) -> Tensor:
        big = torch.ones(self.size // 4)
        total = x.sum() + big.sum()
        if not self.held:
            del big
        return total + torch.ones(self.size // 4).sum()


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


NETS = [
    (Views(), {"x": torch.randn(2, 3, 5, 5), "flip": True}),
    (nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(24, 3)), torch.randn(2, 2, 8)),
    (nn.Sequential(nn.Embedding(9, 4), nn.GELU(), nn.LayerNorm(4)), torch.randint(9, (2, 3))),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    (nn.MultiheadAttention(8, 2), (torch.randn(5, 2, 8),) * 3),
    (Lstm(), torch.randn(3, 2, 4)),
]


@pytest.mark.parametrize(("model", "inputs"), NETS, ids=lambda value: type(value).__name__)
def test_the_tape_plays_what_the_model_does(tmp_path, model, inputs):
    model.eval()
    with torch.no_grad():
        wanted = list(memory.tensors_in(memory.call(model, inputs)))
    played = play(write_tape(tmp_path / "tape", model, inputs))
    assert len(played) == len(wanted)
    for got, want in zip(played, wanted):
        torch.testing.assert_close(got, want)


def test_the_tape_tells_when_tensors_die(tmp_path):
    write_tape(tmp_path / "tape", nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
    lines = json.loads((tmp_path / "tape" / "tape.json").read_text())["lines"]
    names = [line[0] for line in lines]
    first, second = lines[0][3][0], lines[1][3][0]
    assert names == ["aten.linear.default", "aten.relu.default", first, "aten.linear.default", second]


@MEASURED
def test_peaks_are_those_of_the_tensors_alive_at_once():
    models = {"none": nn.Identity(), "one": Holds(64 * MB), "two": Holds(64 * MB, held=True), "weights": nn.Linear(4096, 4096)}
    models["weights"].forward = lambda x: models["weights"].weight.sum() + x.sum()
    peaks, reasons = peak_memories(models, torch.zeros(1, 4))
    assert reasons == {}
    assert peaks["none"] < 8 * MB
    assert 64 * MB <= peaks["one"] < 72 * MB
    assert 128 * MB <= peaks["two"] < 136 * MB
    assert 64 * MB <= peaks["weights"] < 72 * MB


@MEASURED
def test_what_cannot_be_measured_is_absent_with_a_reason(monkeypatch):
    class Chance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0))

    peaks, reasons = peak_memories({"chance": Chance(), "good": nn.Identity()}, torch.zeros(1, 2))
    assert peaks["chance"] is None and "cannot be written down" in reasons["chance"]
    assert peaks["good"] is not None and "good" not in reasons
    monkeypatch.setattr(memory, "STATUS", STATUS.parent / "nothing")
    assert memory.peak_memory(nn.Identity(), torch.zeros(1, 2)) is None


@MEASURED
def test_a_child_that_fails_does_not_take_the_others_with_it(tmp_path):
    good = write_tape(tmp_path / "good", nn.Linear(2, 2), torch.zeros(1, 2))
    bad = write_tape(tmp_path / "bad", nn.Linear(2, 2), torch.zeros(1, 2))
    (bad / "tape.json").write_text('{"lines": [["os.system.default", ["false"], {"dict": {}}, []]], "results": []}')
    said, peak = memory.ask_mother([bad, good])
    assert isinstance(said, str) and isinstance(peak, float)


def test_taping_leaves_the_model_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    write_tape(tmp_path / "tape", model, torch.zeros(3, 2))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model(torch.randn(3, 2)).sum().backward()


def test_refusals(tmp_path):
    with pytest.raises(BadInput, match="does not run on the example"):
        write_tape(tmp_path / "tape", nn.Linear(2, 2), torch.zeros(1, 3))
    with pytest.raises(Untaped, match="not in the memory"):
        write_tape(tmp_path / "tape", nn.Linear(2, 2, device="meta"), torch.zeros(1, 2))
