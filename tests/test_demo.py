"""The demo: its cache, its table and its page; and the sentences come from the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from secateur import BadInput, demo, load
from secateur.cli_explain import explain_folder
from secateur.frontends.data import data_of
from secateur.progress import silent
from secateur.table import table_of


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "TUNING", 1)


@pytest.mark.slow
def test_the_demo_prunes_three_ways_and_shows_what_each_cost(short: None, tmp_path: Path):
    threads, stages = torch.get_num_threads(), []

    def bar(stage: str) -> object:
        stages.append(stage)
        return silent

    found = demo.run_demo(tmp_path / "demo", bar=bar)
    rows = found.table.rows
    assert list(rows) == ["dense", *demo.WAYS]
    for row, figures in rows.items():
        assert {"top1", "top5", "worst_class", "parameters", "nonzeros", "macs", "bytes", "ms_1", "ms_32"} <= figures.keys(), row
    dense = rows["dense"]
    for name in ("", ", magnitude", ", random"):
        assert rows[f"channels{name}"]["macs"] <= (1 - demo.CHANNELS) * dense["macs"]
        assert rows[f"connections{name}"]["nonzeros"] <= 1.02 * rows["connections"]["nonzeros"]
    assert rows["channels"]["parameters"] < dense["parameters"] == rows["connections"]["parameters"]
    page = found.report.read_text()
    assert all(sentence.split(":")[0] in page for sentence in found.sentences) and "<svg" in page
    for name, unit in (("connections", "conv.weight:3,0,1,1"), ("gradually", "conv.weight:3,0,1,1"), ("channels", "stages.0.conv1:3")):
        assert load(tmp_path / "demo" / name, demo.build)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        told = explain_folder(tmp_path / "demo" / name, unit)
        assert told.unit == unit and (told.cut is None) == (name == "gradually") and told.needs
    assert "training the dense model" in stages and torch.get_num_threads() == threads


def test_the_dense_model_is_trained_once_and_again_where_the_cache_is_damaged(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("accelerate")
    splits, real, times = data_of("digits"), demo.finetune, []
    monkeypatch.setattr(demo, "finetune", lambda *a, **k: times.append(1) or real(*a, **k))

    def trained() -> torch.Tensor:
        return demo.trained(tmp_path / "cache", splits, 0, lambda stage: silent)(torch.ones(1, 1, 8, 8))

    first = trained()
    assert torch.equal(trained(), first) and len(times) == 1
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:1000], b"", whole[:-4] + bytes(4)):
        file.write_bytes(damaged)
        times.clear()
        assert torch.equal(trained(), first) and len(times) == 1
        assert file.read_bytes() == whole


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="not written by secateur"):
        demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_sentences_follow_the_numbers():
    dense = {"top1": 0.9, "nonzeros": 100.0, "macs": 100.0, "bytes": 100.0, "compressed": 100.0, "ms_32": 1.0}
    rows = {"dense": dense, **{name: {**dense, "straight": 0.5} for name in demo.WAYS}}
    rows["channels"] |= {"macs": 40.0, "bytes": 25.0, "ms_32": 0.5, "top1": 0.88}
    rows["connections"] |= {"nonzeros": 20.0, "ms_32": 1.05}
    channels, connections, _ = demo.told(table_of(rows))
    assert (
        "2.5 times fewer MACs" in channels
        and "4.0 times smaller" in channels
        and "2.0 times as fast" in channels
        and "2.0 points lower" in channels
    )
    assert "80% of the weights are zero" in connections and "no faster" in connections and "unchanged" in connections
    rows["connections"] |= {"ms_32": 2.0}
    slower = demo.told(replace(table_of(rows)))[1]
    assert "takes 2.0 times as long" in slower
    rows["channels"] |= {"macs": 95.0, "bytes": 99.0}
    assert "Channels: 1.05 times fewer MACs, about the same file size, " in demo.told(table_of(rows))[0]
