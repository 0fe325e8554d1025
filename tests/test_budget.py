from __future__ import annotations

import pytest
import torch

from secateur.budget import absolute, fraction, quantity, targets
from secateur.cost import cost
from secateur.errors import BadInput
from secateur.structure import all_kept
from toy import Hidden, mlp

NET = Hidden(mlp(3, 4, 2, 2))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("7 MB", ("bytes", 7e6)),
        ("7MB", ("bytes", 7e6)),
        ("1.2 GB", ("bytes", 1.2e9)),
        ("1 GiB", ("bytes", 2.0**30)),
        ("512 kB", ("bytes", 512e3)),
        ("64 KiB", ("bytes", 65536.0)),
        ("9 B", ("bytes", 9.0)),
        ("9 bytes", ("bytes", 9.0)),
        ("3 M parameters", ("parameters", 3e6)),
        ("1.5b params", ("parameters", 1.5e9)),
        ("30 M MACs", ("macs", 3e7)),
        ("1,000 units", ("units", 1000.0)),
        ("4G macs", ("macs", 4e9)),
        ("0.04 GMACs", ("macs", 4e7)),
        ("30 GMACs", ("macs", 3e10)),
        ("30 MMACs", ("macs", 3e7)),
        ("30kmac", ("macs", 3e4)),
        ("7 macs", ("macs", 7.0)),
        ("25Mparams", ("parameters", 2.5e7)),
        ("30M", (None, 3e7)),
        ("2e6", (None, 2e6)),
        ("12", (None, 12.0)),
        ("5 ms", ("latency", 5.0)),
        ("250 us", ("latency", 0.25)),
        ("250 µs", ("latency", 0.25)),
        ("0.1 s", ("latency", 100.0)),
        (7, (None, 7.0)),
        (0.5, (None, 0.5)),
    ],
)
def test_a_quantity_is_read(text: str | float, meant: tuple[str | None, float]) -> None:
    assert quantity(text)[0] == meant[0] and quantity(text)[1] == pytest.approx(meant[1])


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-7 MB", "7 parsecs", "7 M parsecs", "seven", "7 MB MB", "7 GGMACs", True, -1, float("inf"), float("nan"), "7 ms ms"],
)
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(BadInput, match="like '7 MB'"):
        quantity(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "meant"),
    [
        (None, {}),
        ("7 MB", {"bytes": 7e6}),
        ("macs=30 M, 5 ms", {"macs": 3e7, "latency": 5.0}),
        ("macs=30M;bytes=1,000,000", {"macs": 3e7, "bytes": 1e6}),
        ({"bytes": "7 MB", "macs": 100, "ram": "2 k"}, {"bytes": 7e6, "macs": 100.0, "ram": 2000.0}),
    ],
)
def test_a_budget_names_its_costs(budget: object, meant: dict[str, float]) -> None:
    assert absolute(budget) == pytest.approx(meant)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("30 M", "does not say of what"),
        ({"macs": "7 MB"}, "of macs is '7 MB', which is a quantity of bytes"),
        *((nothing, "The budget is empty .*, so it asks for nothing") for nothing in ("", " ", ";", " , ", {})),
    ],
)
def test_a_budget_that_does_not_say_of_what_is_refused(budget: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        absolute(budget)  # type: ignore[arg-type]


def half(structure: object, keep: object) -> float:
    return 10.0


def test_targets_are_limits_on_costs() -> None:
    whole = all_kept(NET)
    asked = targets({"macs": 0.5, "half": 0.1, "units": 0.25}, {"bytes": 100}, {"half": half}, NET, whole)
    assert [target.name for target in asked] == ["macs", "units", "bytes", "half"], "what runs the model is asked last"
    assert [target.most for target in asked] == pytest.approx([0.5 * cost(NET, whole, "macs"), 4.5, 100, 9])
    (one,) = targets(0.5, None, half, NET, whole)
    assert one.name == "half" and one.most == pytest.approx(5)
    assert one.met(5.0) and not one.met(5.1)
    assert targets(None, None, "units", NET, whole) == []


@pytest.mark.parametrize(
    ("amount", "of", "says"),
    [
        (0.5, {"a": half, "b": half}, "several costs"),
        ({"flops": 0.5}, "units", "no cost 'flops'"),
        ({"macs": 1.5}, "units", "0..1, but it is 1.5"),
        (0.5, "flops", "no cost 'flops'"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(amount: object, of: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        targets(amount, None, of, NET, all_kept(NET))  # type: ignore[arg-type]


def test_a_fraction_is_one() -> None:
    assert fraction(0) == 0.0 and fraction(1) == 1.0
    for wrong in (True, "0.5", float("nan"), -0.1, torch.tensor(0.5)):
        with pytest.raises(BadInput, match=r"in 0\.\.1"):
            fraction(wrong)
