"""The benchmark of robustness: its corruptions and attacks on small images, what is measured again, and what its page says of rows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not part of an installed package")
sys.path.append(str(BENCHMARKS))

import corruptions  # noqa: E402
import images  # noqa: E402
import results  # noqa: E402
import robust  # noqa: E402
import robust_table  # noqa: E402
import subjects  # noqa: E402


def pixels(number: int = 4) -> torch.Tensor:
    return torch.rand(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# corruptions ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", corruptions.LEVELS["blur"])
def test_blur_is_the_gaussian_filter_of_scipy(level: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    given = pixels().double()
    wanted = ndimage.gaussian_filter(given.numpy(), (0, 0, level, level), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(corruptions.blur(given, level).numpy(), wanted, atol=1e-12)


def test_noise_is_the_same_at_every_level_of_the_wanted_size_and_clipped() -> None:
    grey, before = torch.full((50, 3, 32, 32), 0.5), torch.get_rng_state()
    one, other = (corruptions.noise(grey, level) - grey for level in (0.04, 0.08))
    torch.testing.assert_close(other, 2 * one)
    assert float(one.std()) == pytest.approx(0.04, rel=0.01) and float(one.mean()) == pytest.approx(0, abs=1e-3)
    assert not torch.equal(corruptions.noise(grey, 0.04, seed=1), corruptions.noise(grey, 0.04))
    moved = corruptions.noise(pixels(), 0.5)
    assert float(moved.min()) == 0 and float(moved.max()) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_contrast_keeps_the_mean_of_every_colour_and_scales_what_differs_from_it() -> None:
    given = pixels().double()
    less = corruptions.contrast(given, 0.3)
    torch.testing.assert_close(less.mean((2, 3)), given.mean((2, 3)))
    torch.testing.assert_close(less.std((2, 3)), 0.3 * given.std((2, 3)))


@pytest.mark.parametrize("name", corruptions.LEVELS)
def test_each_corruption_has_five_levels_each_farther_from_the_image(name: str) -> None:
    given, change = pixels(), corruptions.CORRUPTIONS[name]
    apart = [float((change(given, level, 0) - given).square().mean()) for level in corruptions.LEVELS[name]]
    assert len(apart) == 5 and apart[0] > 0 and apart == sorted(apart) and len(set(apart)) == 5


# attacks --------------------------------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def test_a_network_on_pixels_makes_what_it_made_on_normalised_images() -> None:
    net, inputs = small(), images.normalised((pixels() * 255).byte().permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(robust.Pixels(net)(robust.pixels_of(inputs)), net(inputs))


@pytest.mark.parametrize("name", ["FGSM", "PGD"])
@pytest.mark.parametrize("radius", robust.RADII)
def test_an_attack_stays_within_its_radius_in_pixels_raises_the_loss_and_leaves_chance_alone(name: str, radius: float) -> None:
    pytest.importorskip("torchattacks")
    net, given, labels = robust.Pixels(small()).requires_grad_(False), pixels(), torch.arange(4)
    before = torch.get_rng_state()
    moved = robust.attack(name, radius / 255)(net, given, labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(robust.attack(name, radius / 255)(net, given, labels), moved)
    assert 0 < float((moved - given).abs().max()) <= radius / 255 + 1e-6
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1
    loss = nn.functional.cross_entropy
    assert float(loss(net(moved), labels)) > float(loss(net(given), labels))


# what is measured -----------------------------------------------------------------------------------------------------------------------


def figures(top1: float = 0.8, **other: object) -> results.Row:
    attacks = dict.fromkeys((name for name in robust_table.MEASURES if name.startswith(("fgsm", "pgd"))), 0.2)
    levels = {name: [0.5, 0.4, 0.3, 0.2, 0.1] for name in corruptions.LEVELS}
    return {"top1": top1, "worst": top1 - 0.1, "ece": 0.1, "other": top1, **levels, **attacks, **other}


def test_every_structure_has_a_plain_way_chance_and_all_that_is_to_protect() -> None:
    for structure in robust.CASES:
        there = {name for name, way in robust.WAYS.items() if structure in way.structures}
        assert {robust_table.PLAIN, robust_table.CHANCE, *robust_table.MEANT} <= there
    assert set(robust.NETS) == set(robust_table.NETS) <= set(subjects.SUBJECTS)
    measured = {f"{kind}{radius:g}" for kind in ("fgsm", "pgd") for radius in robust.RADII}
    assert measured | set(corruptions.CORRUPTIONS) | {"top1", "worst", "ece"} == set(robust_table.MEASURES)


def test_a_run_that_was_stopped_goes_on_and_the_best_way_is_repaired_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []
    scores = {"plain": 0.7, "noise": 0.6, "fgsm": 0.9, "local": 0.8, "lamp": 0.95, "random": 0.1}

    def pruned_by(way: robust.Way, case: robust.Case, repair: str, *_: object) -> tuple[object, float]:
        name = next(name for name, each in robust.WAYS.items() if each is way)
        ran.append((f"{case.structure} {name}", repair))
        return scores[name], 0.5

    monkeypatch.setattr(robust, "ROWS", tmp_path / "rows.json")
    monkeypatch.setattr(robust, "tests_of", lambda *_: None)
    monkeypatch.setattr(robust, "pruned_by", pruned_by)
    monkeypatch.setattr(robust, "told", lambda score, tests: figures(score))
    monkeypatch.setitem(robust.SUBJECTS, "resnet20", lambda given: SimpleNamespace(model=0.99, calibration=lambda seed, number: []))

    def fill(seeds: int, until: float = float("inf")) -> list[results.Row]:
        rows = results.read(tmp_path / "rows.json")
        robust.fill("resnet20", subjects.Setting(tmp_path, images=64, test=100), seeds, 10, 10, until, rows)
        return rows

    assert fill(1, until=0.0) == [] and not ran
    assert len(fill(1)) == 1 + 5 + 6 + 2
    assert ran[5] == ("channels fgsm", "least-squares") and ran[-1] == ("connections lamp", "least-squares")
    ran.clear()
    assert len(fill(2)) == 14 + 5 + 6
    assert len(ran) == 11 and {repair for _, repair in ran} == {"statistics"}
    assert len(fill(2, until=time.perf_counter())) == 25 and len(ran) == 11


# the page -------------------------------------------------------------------------------------------------------------------------------


def row(way: str, seed: int, repair: str = "statistics", structure: str = "channels", **found: object) -> results.Row:
    made: results.Row = {"net": "resnet20", "images": 1024, "test": 4000, "corrupted": 600, "attacked": 200, "left": 0.66}
    place: results.Row = {"structure": structure, "way": way, "repair": repair, "seed": seed}
    return {**made, **place, **figures(**found), "commit": "abc1234", "machine": "a machine"}  # type: ignore[arg-type]


DENSE = row("dense", 0, "none", "dense", top1=0.915)
PLAINS = [row("plain", 0, ece=0.1), row("plain", 1, top1=0.81, ece=0.1)]


@pytest.mark.parametrize(
    ("name", "one", "other", "wanted"),
    [
        ("top1", 0.82, 0.83, 1),  # two points each, of a margin of 1.26
        ("top1", 0.81, 0.82, 0),  # one point each
        ("top1", 0.75, 0.83, 0),  # down with one seed, up with the other
        ("top1", 0.77, 0.78, -1),
        ("ece", 0.08, 0.08, 1),  # less is better
        ("ece", 0.13, 0.12, -1),
        ("ece", 0.095, 0.095, 0),
        ("noise", [0.5] * 5, [0.5] * 5, 1),
        ("noise", [0.31] * 5, [0.31] * 5, 0),
        ("fgsm2", 0.24, 0.24, 0),  # four points on 200 images
        ("fgsm2", 0.26, 0.26, 1),
        ("pgd8", 0.01, 0.01, 0),  # where the plain loss leaves nothing, a few of 200 images are still chance
        ("pgd8", 0.02, 0.02, 1),
    ],
)
def test_a_difference_is_clear_with_every_seed_and_beyond_chance(name: str, one: object, other: object, wanted: int) -> None:
    plains = [{**row, "pgd8": 0.0} for row in PLAINS]
    rows = [DENSE, *plains, row("noise", 0, **{name: one}), row("noise", 1, **{name: other})]
    assert robust_table.clear(rows, ("resnet20", "channels"), "noise", name) == wanted


def test_one_seed_is_never_clear() -> None:
    rows = [DENSE, *PLAINS, row("noise", 0, top1=0.9)]
    assert robust_table.clear(rows, ("resnet20", "channels"), "noise", "top1") == 0


def test_the_page_answers_from_the_rows() -> None:
    rows = [DENSE, *PLAINS]
    rows += [row("noise", seed, noise=[0.5] * 5, top1=0.7) for seed in (0, 1)] + [row("local", seed, top1=0.82) for seed in (0, 1)]
    rows += [row("plain", 0, "least-squares", top1=0.88)]
    page = robust_table.page(rows)
    assert (
        "- `noise`, at what it is to protect, is clearly better in: ResNet-20, channels (noise +20.0); clearly worse in: nowhere." in page
    )
    assert "Its top-1, case by case: -10.5." in page and "Its top-1, case by case: +1.5." in page
    assert "Clearly better in each of the 1 cases: `noise` (noise); `local` (top-1)." in page
    assert "| `local`: worst class | +1.5 (+2.0, +1.0), not clear |" in page
    assert "| ResNet-20, channels | 91.5 → 80.5 |" in page
    assert "| ResNet-20, channels, `plain` | +8.0 | +8.0 | +0.0 |" in page
    assert "in every case that had both, at: top-1 (+8.0); worst class (+8.0)." in page
    assert "| `plain` | 2 | 80.5 ± 0.7 |" in page
    assert "- Best of the pruned in ResNet-20, channels: `plain`, least squares at top-1, worst class; `noise` at noise." in page
    assert "| `noise` | 50.0 / 50.0 / 50.0 / 50.0 / 50.0 | 50.0 / 40.0 / 30.0 / 20.0 / 10.0 |" in page
    without = robust_table.page([DENSE, *PLAINS])
    assert "`noise`, at what it is to protect, is clearly better in: nowhere; clearly worse in: nowhere." in without
    assert "each of the 1 cases: no way, at nothing." in without and "Least squares" not in without
    assert robust_table.page([{**DENSE, "images": 8}, *({**row, "images": 8} for row in PLAINS[:1]), DENSE, *PLAINS]) == without


def test_without_the_data_the_script_says_so_for_each_network(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "robust.py"), "--data", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert [line.partition(" is left out: There is no folder")[0] for line in done.stderr.splitlines()] == list(robust.NETS)
