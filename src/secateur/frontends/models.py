"""Models and example inputs by name, as the command line gives them."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import BadInput, need

WAYS = "file.py:function, package.module:function, timm:NAME or torchvision:NAME"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
}
LARGEST = 1 << 31  # elements of an example


def build_of(spec: str) -> Callable[[], nn.Module]:
    """The function that builds the model `spec` names: file.py:function, package.module:function, timm:NAME or torchvision:NAME.

    A class serves as well as a function. Models of a zoo come with random weights: nothing is downloaded.
    Raises BadInput, here or when the model is built, MissingExtra where the zoo is not installed.
    """
    source, colon, name = spec.rpartition(":")
    if source.startswith(("timm:", "torchvision:")):  # a name with colons would be looked up in a hub
        raise BadInput(f"{spec} has a colon too many, and hubs are not asked. Give a name such as {source.partition(':')[0]}:resnet18.")
    if not (colon and source and name):
        raise BadInput(f"{spec!r} does not name a model. Give {WAYS}.")
    return ZOOS[source](name) if source in ZOOS else from_code(spec)


def from_code(spec: str) -> Callable[[], nn.Module]:
    function, path = function_of(spec, "model")

    def build() -> nn.Module:
        model = call(spec, function, path)
        if not isinstance(model, nn.Module):
            raise BadInput(f"{spec} returned a {type(model).__name__}, not a torch.nn.Module. Return the model from it.")
        return model

    return build


def from_timm(name: str) -> Callable[[], nn.Module]:
    timm = zoo("timm")
    if not timm.is_model(name):
        raise BadInput(f"timm has no model {name}.{close(name, timm.list_models())} See timm.list_models() for the names.")
    return lambda: timm.create_model(name, pretrained=False)


def from_torchvision(name: str) -> Callable[[], nn.Module]:
    models = zoo("torchvision.models")
    if name not in models.list_models():
        raise BadInput(
            f"torchvision has no model {name}.{close(name, models.list_models())} See torchvision.models.list_models() for the names."
        )
    # a detector would download weights of its backbone
    without = {"weights_backbone": None} if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters else {}
    return lambda: models.get_model(name, weights=None, **without)


ZOOS = {"timm": from_timm, "torchvision": from_torchvision}


def zoo(module: str) -> ModuleType:
    try:
        return need(module, "zoo")
    except RuntimeError as error:  # compiled for another torch
        name = module.partition(".")[0]
        raise BadInput(
            f"{name} is installed but cannot be imported: {said(error)}. Install it, and torchvision, for torch {torch.__version__}."
        ) from error


def function_of(spec: str, what: str) -> tuple[Callable[..., object], Path]:
    """The function that file.py:function or package.module:function names, and the folder that it imports from."""
    source, colon, name = spec.rpartition(":")
    if not (colon and source and name):
        raise BadInput(f"{spec!r} does not name a {what}. Give file.py:function or package.module:function.")
    is_file = source.endswith(".py")
    folder = file_of(source).parent if is_file else Path.cwd()
    with importable(folder):
        module = module_in(file_of(source)) if is_file else module_named(source)
    function = getattr(module, name, None)
    if not callable(function) or isinstance(function, nn.Module):
        fact = f"has no function {name}" if function is None else f"has {name}, but as a {type(function).__name__}"
        raise BadInput(f"{source} {fact}.{close(name, functions_in(module))} Name a function that returns the {what}.")
    return function, folder


def file_of(source: str) -> Path:
    """The full path of a file of code. Raises BadInput where there can be none."""
    try:
        return Path(source).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user's home, a loop of links, a zero byte
        raise BadInput(f"{source!r} is not the path of a file: {error}. Give {WAYS}.") from error


def sources_of(spec: str) -> list[Path]:
    """The places that the code of file.py:function or package.module:function would come from, told without running any."""
    source = spec.rpartition(":")[0]
    if source.endswith(".py"):
        return [file_of(source)]
    roots = [Path.cwd(), *(Path(entry) for entry in sys.path)]
    parts = source.split(".")
    packages = [root.joinpath(*parts[:count]) for root in roots for count in range(1, len(parts) + 1)]
    places = [f"{package}{suffix}" for package in packages for suffix in ("", *importlib.machinery.all_suffixes())]
    # a module takes what it imports in turn from the working folder, too
    return [Path.cwd().resolve(), *(file_of(place) for place in places if os.path.exists(place))]


def call(spec: str, function: Callable[..., object], folder: Path) -> object:
    """The function's result. Raises BadInput where it needs arguments or fails."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in callables have no signature
        parameters = {}.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise BadInput(
            f"{spec} needs arguments ({', '.join(needed)}), but is called without. Name a function without, or give them defaults."
        )
    try:
        with importable(folder):
            return function()
    except (Exception, SystemExit) as error:
        raise BadInput(f"{spec} failed: {said(error)}. Make it run by itself first.") from error


def module_in(file: Path) -> ModuleType:
    """Run a file as a module of a private name, without a trace beside it."""
    if not file.is_file():
        raise BadInput(f"There is no file {file}. Give {WAYS}.")
    name = f"_secateur_{file.stem}_{abs(hash(file)):x}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise BadInput(f"{file} is not Python code. Give {WAYS}.")
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise BadInput(f"{file} cannot be imported: {said(error)}. Make it run by itself first.") from error
    return module


def module_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"The module {name} cannot be imported: {said(error)}. Install it, or run from the folder it is in.") from error


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The modules in `folder` can be imported, and leave no compiled code there."""
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def functions_in(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__ and not n.startswith("_")]


def close(name: str, names: list[str]) -> str:
    """A sentence with the names that may be meant: all of a few, or else the similar ones."""
    meant = names if len(names) <= 8 else difflib.get_close_matches(name, names, 4)
    return f" There is {', '.join(meant)}." if meant else ""


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0].rstrip('.')}"


def example_of(text: str, seed: int = 0) -> Tensor | tuple[Tensor, ...]:
    """The example that "1,3,32,32" describes: standard normal numbers of that shape.

    "1,16:int64" are zeros of that type, "1,3,32,32;1,16:int64" two inputs. Raises BadInput.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(one_example(part.strip(), text, generator) for part in text.split(";"))
    return inputs[0] if len(inputs) == 1 else inputs


def one_example(part: str, text: str, generator: torch.Generator) -> Tensor:
    dims, _, dtype = part.partition(":")
    sizes = [size.strip() for size in dims.split(",")]
    way = "Give sizes such as 1,3,32,32, with a type for other inputs than float32: 1,16:int64; separate several inputs by ';'."
    if not all(size.isascii() and size.isdigit() and 0 < len(size) < 12 and int(size) for size in sizes):
        raise BadInput(f"The example {text!r} has {part!r}, which is not a list of sizes from 1 on. {way}")
    if dtype and dtype not in DTYPES:
        raise BadInput(f"The example {text!r} has the type {dtype!r}, which is not one of {', '.join(DTYPES)}. {way}")
    shape, kind = [int(size) for size in sizes], DTYPES[dtype or "float32"]
    if math.prod(shape) > LARGEST:
        raise BadInput(f"The example {text!r} has {math.prod(shape)} elements, too many for one batch. {way}")
    return torch.randn(shape, generator=generator).to(kind) if kind.is_floating_point else torch.zeros(shape, dtype=kind)
