"""A model's name gives a function that builds it, or one sentence that says why not."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from secateur.errors import BadInput, MissingExtra
from secateur.frontends.models import build_of, example_of

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from sibling import WIDTH

@dataclass
class Config:
    width: int = WIDTH

def build():
    import lazy
    return nn.Linear(Config().width, lazy.OUTPUTS)

class Net(nn.Linear):
    def __init__(self, width: int = 4):
        super().__init__(width, 2)

def needs(width): ...
def broken(): raise KeyError("no such thing\\nat all")
def quits(): raise SystemExit(3)
def nothing(): ...
model = nn.Linear(1, 1)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "sibling.py").write_text("WIDTH = 5")
    (tmp_path / "lazy.py").write_text("OUTPUTS = 3")
    yield tmp_path
    for name in ("sibling", "lazy"):
        sys.modules.pop(name, None)


def test_a_file_is_run_with_its_neighbours_and_without_a_trace(folder: Path):
    before = list(sys.path), sys.dont_write_bytecode
    model = build_of(f"{folder}/net.py:build")()
    assert isinstance(model, nn.Linear) and tuple(model.weight.shape) == (3, 5)
    assert sorted(os.listdir(folder)) == ["lazy.py", "net.py", "sibling.py"]
    assert (list(sys.path), sys.dont_write_bytecode) == before


def test_a_class_works_as_well_and_each_call_builds_another(folder: Path):
    build = build_of(f"{folder}/net.py:Net")
    assert isinstance(build(), nn.Linear) and build() is not build()


def test_a_module_is_found_by_its_dotted_name_and_in_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "package").mkdir()
    (folder / "package" / "inner.py").write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)")
    monkeypatch.chdir(folder)
    assert isinstance(build_of("package.inner:build")(), nn.Linear)
    assert isinstance(build_of("torch.nn:Identity")(), nn.Identity)
    for name in ("package", "package.inner"):
        sys.modules.pop(name)


WRONG = {
    "net.py": "does not name a model. Give file.py:function",
    ":build": "does not name a model",
    "net.py:": "does not name a model",
    "nowhere.py:build": "There is no file .*nowhere.py",
    "net.py:biuld": "net.py has no function biuld. There is .*build.* Name a function that returns the model",
    "net.py:model": "has model, but as a Linear",
    "net.py:number": "has number, but as a int",
    "net.py:needs": r"needs arguments \(width\)",
    "net.py:broken": r"net.py:broken failed: KeyError: 'no such thing\\nat all'\. Make it run",
    "net.py:quits": "failed: SystemExit: 3",
    "net.py:nothing": "returned a NoneType, not a torch.nn.Module",
    "syntax.py:build": "syntax.py cannot be imported: SyntaxError",
    "imports.py:build": "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'",
    "no.such.module:build": "The module no.such.module cannot be imported: ModuleNotFoundError",
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_is_one_sentence(folder: Path, spec: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / "syntax.py").write_text("def build(:")
    (folder / "imports.py").write_text("import nowhere_at_all")
    modules = set(sys.modules)
    with pytest.raises(BadInput, match=WRONG[spec]) as caught:
        build_of(spec)()
    assert "\n" not in str(caught.value)
    if spec.startswith(("syntax", "imports")):
        assert set(sys.modules) == modules


class Zoo(ModuleType):
    """A model zoo that records what it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: dict[str, object] = {}
        self.list_models = lambda: ["resnet18", "resnet50", "fasterrcnn", *(f"other{n}" for n in range(9))]
        self.is_model = lambda name: name in self.list_models()

    def get_model_builder(self, name: str) -> object:
        return (lambda *, weights=None, weights_backbone="imagenet": None) if name == "fasterrcnn" else (lambda *, weights=None: None)

    def create_model(self, name: str, **options: object) -> nn.Module:
        self.asked = {"name": name, **options}
        return nn.Identity()

    get_model = create_model


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    timm, torchvision, models = Zoo("timm"), ModuleType("torchvision"), Zoo("torchvision.models")
    for module in (timm, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(timm=timm, torchvision=models)


def test_a_zoo_is_never_asked_for_weights(zoo: SimpleNamespace):
    build_of("timm:resnet18")()
    assert zoo.timm.asked == {"name": "resnet18", "pretrained": False}
    build_of("torchvision:resnet18")()
    assert zoo.torchvision.asked == {"name": "resnet18", "weights": None}
    build_of("torchvision:fasterrcnn")()
    assert zoo.torchvision.asked == {"name": "fasterrcnn", "weights": None, "weights_backbone": None}


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_an_unknown_name_brings_those_that_may_be_meant(zoo: SimpleNamespace, source: str):
    with pytest.raises(BadInput, match=f"{source} has no model resnet81. There is .*resnet18"):
        build_of(f"{source}:resnet81")
    with pytest.raises(BadInput, match="hubs are not asked"):
        build_of(f"{source}:hf-hub:someone/model")


def test_a_zoo_that_is_missing_or_broken_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtra, match=r"pip install 'secateur\[zoo\]'"):
        build_of("timm:resnet18")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator does not exist')")
    with pytest.raises(BadInput, match="timm is installed but cannot be imported: RuntimeError: operator does not exist"):
        build_of("timm:resnet18")


def test_an_example_has_the_shape_and_the_type_it_says():
    state = torch.get_rng_state()
    example = example_of("1,3,32,32")
    assert example.shape == (1, 3, 32, 32) and example.dtype == torch.float32 and 0.9 < example.std() < 1.1
    assert torch.equal(example, example_of("1, 3, 32, 32")) and not torch.equal(example, example_of("1,3,32,32", seed=1))
    tokens, mask, image = example_of("1,16:int64; 1,16:bool; 2,3:float16")
    assert tokens.dtype == torch.int64 and not tokens.any() and mask.dtype == torch.bool and image.dtype == torch.float16
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "text", ["", "1,", "a", "1,-3", "0,3", "1,3:int65", "1x3", "1.5", "1,3;", "1:2:3", "99999999999,99999999999", "9" * 6000, "²"]
)
def test_what_is_no_example_is_refused(text: str):
    with pytest.raises(BadInput, match="Give sizes such as 1,3,32,32"):
        example_of(text)


def test_no_text_brings_another_error():
    chance = random.Random(0)
    for _ in range(500):
        text = "".join(chance.choices("0123,;: intfloa64", k=chance.randrange(8)))
        with contextlib.suppress(BadInput):
            example_of(text)
