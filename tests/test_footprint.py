"""Sizes against known answers."""

from __future__ import annotations

import zlib
from collections import namedtuple

import pytest
import safetensors.torch
import torch
from torch import nn

from secateur import footprint as sizes
from secateur.errors import BadInput
from secateur.footprint import footprint, macs, repeat


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


def test_parameters_and_nonzeros():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight[0] = 0.0
        model.bias.fill_(-0.0)
    measured = footprint(model)
    assert (measured["parameters"], measured["nonzeros"]) == (15, 8)
    assert "macs" not in measured


def test_tied_weights_count_once():
    measured = footprint(Tied(), torch.zeros(2, 5, dtype=torch.long))
    assert measured["parameters"] == 21
    assert measured["macs"] == 5 * 3 * 7
    assert measured["bytes"] == len(safetensors.torch.save({"embed.weight": torch.zeros(7, 3)}))


attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
KNOWN = [  # a model, an example, and its multiply-accumulates per sample
    (nn.Linear(4, 3), torch.zeros(5, 4), 12),
    (nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 6, 5), 8 * 3 * 9 * 6 * 5),
    (nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 6, 6), 8 * 9 * 16),
    (nn.ConvTranspose2d(4, 2, 2, stride=2), torch.zeros(2, 4, 3, 3), 4 * 2 * 4 * 9),
    (nn.LSTM(5, 7, batch_first=True), torch.zeros(2, 3, 5), 3 * 4 * 7 * (5 + 7)),
    (nn.GRU(5, 7, batch_first=True), torch.zeros(2, 3, 5), 3 * 3 * 7 * (5 + 7)),
    # queries, keys, values and the output: 4 x 8 x 8; the scores and their use: 2 x 8 per pair; the two layers after: 2 x 8 x 16
    (attention, torch.zeros(2, 5, 8), 5 * 4 * 64 + 2 * 8 * 25 + 5 * 2 * 128),
]


@pytest.mark.parametrize(("model", "example", "known"), KNOWN, ids=lambda value: type(value).__name__)
def test_macs_are_those_of_one_sample(model, example, known):
    assert macs(model, example) == known
    assert macs(model, repeat(example, 4)) == known


def test_counting_leaves_the_model_and_the_settings_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings, state = (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()), torch.get_rng_state()
    footprint(model, torch.randn(3, 4, generator=torch.Generator()))
    assert settings == (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled())
    assert torch.equal(state, torch.get_rng_state()) and model.training and model[2].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bytes_are_those_of_the_file_and_zeros_compress(monkeypatch):
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    file = safetensors.torch.save(model.state_dict())
    dense = footprint(model)
    assert (dense["bytes"], dense["compressed"]) == (len(file), len(zlib.compress(file, 6)))
    with torch.no_grad():
        model[0].weight.zero_()
    sparse = footprint(model)
    assert sparse["bytes"] == dense["bytes"] and sparse["compressed"] < dense["compressed"] / 4
    monkeypatch.setattr(sizes, "BIG", 100)
    assert {key: value for key, value in footprint(model).items() if key in ("bytes", "compressed")} == {"bytes": len(file)}


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="does not run on the example of shape"):
        macs(nn.Linear(4, 3), torch.zeros(2, 5))
    with pytest.raises(BadInput, match="no tensor with a batch dimension"):
        repeat((), 2)


def test_repeating_an_example():
    pair = namedtuple("pair", "left right")
    example = (
        torch.arange(2.0),
        {"mask": torch.eye(2), "scale": torch.tensor(3.0), "names": [1, "a"]},
        pair(torch.zeros(2, 1), torch.ones(5)),
    )
    first, options, both = repeat(example, 3)
    assert first.tolist() == [0.0, 0.0, 0.0] and options["mask"].tolist() == [[1.0, 0.0]] * 3
    assert options["scale"] == 3.0 and options["names"] == [1, "a"]
    assert both.left.shape == (3, 1) and both.right.shape == (5,)
