"""Options that several commands share: each a type that says its metavar and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .api import STRUCTURES
from .contexts import CONTEXTS
from .journey import seed_in_range
from .version import __version__


def tell_version(asked: bool) -> None:
    if asked:
        print(f"secateur {__version__}")
        raise typer.Exit()


Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function, a.module:function, timm:NAME, ...")]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help=".safetensors, or a .pt/.pth/.th state dict")]
Data = Annotated[str, typer.Option(metavar="DATA", help="f.py:name, folder:PATH, npz:PATH or digits")]
Loss = Annotated[str | None, typer.Option(metavar="F.PY:NAME", help="loss(outputs, targets), else cross entropy")]
OTHERS = ", ".join(name for name in STRUCTURES if name != "channels")
Structure = Annotated[str, typer.Option(metavar="NAME", help=f"{OTHERS}, 4x1, 2:4")]
Criterion = Annotated[str, typer.Option(metavar="NAME", help="one of those below, or f.py:name")]
Contexts = Annotated[str, typer.Option(metavar="NAME", help=", ".join(CONTEXTS) + " or f.py:name")]
Example = Annotated[str | None, typer.Option(metavar="SIZES", help="of the inputs: 1,3,32,32; else from the data")]
Exact = Annotated[bool, typer.Option("--exact", help="leave groups whole that shrink only nearly exactly")]
Units = Annotated[str | None, typer.Option(metavar="KIND,..", help="kinds that may leave: channel, head, head-dimension, ...")]
AsGraph = Annotated[bool, typer.Option("--as-graph", help="export it first: sizes in its code follow, too")]
Multiple = Annotated[int, typer.Option(metavar="N", help="keep multiples of N units")]
Samples = Annotated[int, typer.Option(metavar="N", help="training samples, in whole batches")]
Batch = Annotated[int, typer.Option(metavar="N", help="samples a batch")]
Seed = Annotated[int, typer.Option(metavar="N", help="of splits, order and chance", callback=seed_in_range)]
Force = Annotated[bool, typer.Option("--force", help="replace a folder that is not ours")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress, no table")]
Sensitivities = Annotated[Path | None, typer.Option("--sensitivity", metavar="FILE", help="of secateur measure, not measured again")]
Enough = Annotated[float | None, typer.Option(metavar="0..1", help="stop when halves of the data agree so far")]
Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=tell_version, help="Show the version and exit.")]
