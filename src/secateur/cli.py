"""The command line, a function a command. An error is one line on stderr and code 2; Ctrl-C is code 130."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer
from rich.console import Console

from .api import named_structure, structure_of
from .cli_asked import ALL_SCOPES, Asked, kinds_of, local_in
from .cli_curves import curves_into
from .cli_evaluate import evaluate_folder
from .cli_explain import explain_folder
from .cli_measure import Counted, Early, Stopped, contexts_of, going_on, refuse, sure, taken
from .cli_options import (
    AsGraph,
    Batch,
    Contexts,
    Criterion,
    Data,
    Enough,
    Exact,
    Example,
    Force,
    Loss,
    Model,
    Multiple,
    Quiet,
    Samples,
    Seed,
    Sensitivities,
    Structure,
    Units,
    Version,
    Weights,
)
from .cli_prune import prune_into
from .cli_report import report_again
from .cli_tables import by_model, curves_table, frozen_table, groups_table, none_may, notes_on, ranking_table, text, totals
from .criteria import CRITERIA
from .distributed import launched
from .errors import SecateurError
from .frontends.data import data_of
from .frontends.models import example_of
from .journey import First, at_least, criterion_of, example_in, loss_of, model_of, within_one
from .measure import measure as measured
from .progress import bars
from .sensitivity_file import write_sensitivity
from .structure import as_graph as graph
from .task import Task

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Measure how much every connection of a neural network matters, cut those that matter least, and prove what it cost.",
)  # fmt: skip


def example(line: str, **names: Iterable[str]) -> str:
    """What a help ends with: the names to choose from, and a line in one piece, to be copied."""
    lists = [fill(f"{title.capitalize()}: {', '.join(known)}", 76, break_on_hyphens=False) for title, known in names.items()]
    return "\n\n".join(f"\b\n{part}" for part in (*lists, f"Example: secateur {line}"))


def written(context: typer.Context, option: str) -> bool:
    """Whether the option was given, not left as it is."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def say(quiet: bool, *drawn: object) -> None:
    """On stdout, in 100 columns where it goes to a file."""
    if not quiet:
        console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
        for item in drawn:
            console.print(item)


@app.callback()
def every(version: Version = False) -> None:
    """What all commands have."""


@app.command(epilog=example("inspect net.py:build --example 1,3,32,32"))
def inspect(
    model: Model,
    example: Annotated[str, typer.Option(metavar="SIZES", help="of the inputs: 1,3,32,32 or 1,16:int64")],
    weights: Weights = None,
    structure: Structure = "channels",
    units: Units = None,
    exact: Exact = False,
    as_graph: AsGraph = False,
) -> None:
    """Show which units may leave, which stay whole and why, and what the model costs."""
    named_structure(structure)
    kinds, net, inputs = kinds_of(units, structure), model_of(model, weights), example_of(example)
    found = structure_of(graph(net, inputs) if as_graph else net, inputs, structure, exact, kinds)
    say(False, groups_table(found) if found.groups else none_may(found), *([frozen_table(found)] if found.frozen else []), totals(found))
    say(False, *(f"note: {text(note)}" for note in notes_on(found, as_graph)))


@app.command(epilog=example("measure net.py:build --data net.py:data --out s.safetensors", criteria=CRITERIA))
def measure(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where the sensitivity goes, .safetensors")],
    weights: Weights = None,
    example: Example = None,
    loss: Loss = None,
    structure: Structure = "channels",
    criterion: Criterion = "taylor",
    contexts: Contexts = "batch",
    enough: Enough = None,
    amount: Annotated[float, typer.Option(metavar="0..1", help="the cut that they have to agree on")] = 0.5,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="to go on from after a stop, written every 30 s")] = None,
    units: Units = None,
    exact: Exact = False,
    as_graph: AsGraph = False,
    samples: Samples = 2048,
    batch: Batch = 64,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Measure how much every unit matters: over the data (global), and where it is needed most (local). Runs under torchrun, too."""
    named_structure(structure)
    at_least("samples", samples, 1), at_least("batch", batch, 1)
    within_one("enough", 0 if enough is None else enough), within_one("amount", amount)
    chosen, kinds, cut = criterion_of(criterion), kinds_of(units, structure), contexts_of(contexts)
    for file in (out, checkpoint):
        refuse(file) if file else None
    with launched() as group:
        quiet = quiet or group.rank > 0
        net, splits = model_of(model, weights, seed), data_of(data, seed, batch)
        with going_on(checkpoint, lambda line: say(quiet, text(line))), bars(quiet) as bar:
            inputs = example_in(splits.train, example)
            net = graph(net, inputs) if as_graph else net
            found = structure_of(net, inputs, structure, exact, kinds)
            read = Counted(First(splits.train, samples))
            task = Task(net, read, loss_of(loss), seed)
            early = Early(bar("measuring"), quiet)
            sensitivity = measured(
                task, found, chosen, cut, progress=early.progress, watch=early.watch, checkpoint=checkpoint, enough=enough, amount=amount
            )
        if group.rank == 0:
            write_sensitivity(out, sensitivity)
    say(quiet, ranking_table(sensitivity), *map(text, [*sure(sensitivity), *taken(sensitivity, read, enough)]))
    say(quiet, f"{sensitivity.samples} samples, {sensitivity.count} contexts; written to {text(out)}")


@app.command(epilog=example("prune net.py:build --data net.py:data --amount 0.5 --out out", criteria=CRITERIA, scopes=ALL_SCOPES))
def prune(
    context: typer.Context,
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="for the result, whole or not at all")],
    amount: Annotated[float | None, typer.Option(metavar="0..1", help="the fraction to remove, or give --threshold")] = None,
    of: Annotated[str, typer.Option(metavar="COST", help="macs, bytes, latency, activations, ...")] = "units",
    budget: Annotated[str | None, typer.Option(metavar="MOST", help="left at most: '7 MB, 5 ms', or going: macs=0.5")] = None,
    drop: Annotated[float | None, typer.Option(metavar="POINTS", help="as much as costs so much accuracy at most")] = None,
    threshold: Annotated[float | None, typer.Option(metavar="X", help="remove all units with a lower score")] = None,
    weights: Weights = None,
    example: Example = None,
    loss: Loss = None,
    structure: Structure = "channels",
    criterion: Criterion = "taylor",
    contexts: Contexts = "batch",
    local: Annotated[str, typer.Option(metavar="0..1|rms", help="the weight of local sensitivity")] = "0",
    scope: Annotated[str, typer.Option(metavar="NAME", help="how groups compare, see below")] = "global",
    multiple: Multiple = 1,
    least: Annotated[str, typer.Option(metavar="N", help="every group keeps: 4, 0.1 or name=4,..")] = "1",
    most: Annotated[str, typer.Option(metavar="N", help="may leave a group: 4, 0.5 or name=4,..")] = "1.0",
    keep: Annotated[str, typer.Option(metavar="NAME,..", help="groups left alone: conv1,layer3.*")] = "",
    sensitivity: Sensitivities = None,
    curves: Annotated[Path | None, typer.Option(metavar="FILE", help="of secateur curves: each layer's share by its own")] = None,
    enough: Enough = None,
    units: Units = None,
    exact: Exact = False,
    as_graph: AsGraph = False,
    schedule: Annotated[str, typer.Option(metavar="NAME", help="one-shot, linear or cubic")] = "one-shot",
    steps: Annotated[int, typer.Option(metavar="N", help="rounds of a gradual schedule")] = 5,
    repair: Annotated[str, typer.Option(metavar="NAME", help="or statistics, moments, none")] = "least-squares",
    tune: Annotated[int, typer.Option(metavar="EPOCHS", help="of fine-tuning, after every round")] = 0,
    lr: Annotated[float, typer.Option(metavar="RATE", help="of fine-tuning")] = 1e-3,
    warmup: Annotated[float, typer.Option(metavar="0..1", help="the share of it in which the rate rises")] = 0.0,
    distill: Annotated[float, typer.Option(metavar="0..1", help="the dense model's share of the loss")] = 0.0,
    features: Annotated[str, typer.Option(metavar="NAME,..", help="modules whose outputs it teaches")] = "",
    curve: Annotated[int, typer.Option(metavar="N", help="samples of the report's curve, 0: none")] = 512,
    samples: Samples = 2048,
    batch: Batch = 64,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Remove what matters least, repair, fine-tune, compare; go on after a stop."""
    asked = Asked(
        model, data, out, amount, of, threshold, weights, example, loss, structure, criterion, contexts, local_in(local), scope, multiple,
        units, exact, as_graph, schedule, steps, repair, tune, lr, distill, curve, samples, batch, seed, force, budget, drop,
        least, most, keep, sensitivity, enough, tuple(sorted(name for name in context.params if written(context, name))), curves,
        warmup, features,
    )  # fmt: skip
    with bars(quiet) as bar:
        story = prune_into(asked, bar)
    say(quiet, by_model(story.table), *map(text, story.table.notes), f"{text(out)} has the model, its plan and report.html")


@app.command(epilog=example("evaluate out --data net.py:data"))
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="that prune wrote")],
    data: Annotated[str | None, typer.Option(metavar="DATA", help="else the data it was pruned with")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="else the one that the plan names")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="of the dense model, else those the plan names")] = None,
    loss: Loss = None,
    batch: Batch = 64,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Measure a pruned model anew on its test split: quality, size, speed."""
    at_least("batch", batch, 1)
    with bars(quiet) as bar:
        table = evaluate_folder(folder, data, model, weights, loss, batch, bar)
    say(False, by_model(table), *map(text, table.notes))


@app.command(epilog=example("explain out --unit 0:3"))
def explain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="that prune wrote")],
    unit: Annotated[str, typer.Option(metavar="GROUP:PLACE", help="layer2.0.conv1:5, conv1.weight:3,5,1,1 or layer3.1")],
    as_json: Annotated[bool, typer.Option("--json", help="the same as JSON")] = False,
) -> None:
    """Say why a unit went or stayed, what it cost, who needed it, and what would have gone instead."""
    found = explain_folder(folder, unit)
    print(found.to_json() if as_json else found.text())


@app.command(epilog=example("curves net.py:build --data net.py:data --out curves.json", criteria=CRITERIA))
def curves(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where the curves go, .json; a page of that name beside it")],
    weights: Weights = None,
    example: Example = None,
    loss: Loss = None,
    structure: Structure = "channels",
    criterion: Criterion = "taylor",
    contexts: Contexts = "batch",
    sensitivity: Sensitivities = None,
    units: Units = None,
    exact: Exact = False,
    as_graph: AsGraph = False,
    multiple: Multiple = 1,
    groups: Annotated[str | None, typer.Option(metavar="NAME,..", help="groups or patterns, else all")] = None,
    amounts: Annotated[str | None, typer.Option(metavar="A,..", help="removed of each, else 0.1 to 0.9")] = None,
    samples: Samples = 2048,
    batch: Batch = 64,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Measure what each layer alone does to the accuracy as it loses units. Goes on after a stop from what FILE has."""
    named_structure(structure)
    at_least("samples", samples, 1), at_least("batch", batch, 1), at_least("multiple", multiple, 1)
    kinds = kinds_of(units, structure)
    refuse(out)
    with bars(quiet) as bar:
        made, page = curves_into(
            out, model, data, weights, example, loss, structure, criterion, contexts, sensitivity, kinds, exact, as_graph, multiple, groups,
            amounts, samples, batch, seed, bar,
        )  # fmt: skip
    say(quiet, curves_table(made), f"written to {text(out)}; {text(page)} shows it, and secateur report FOLDER --curves {text(out)}")


@app.command(epilog=example("report out"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="that prune wrote")],
    curves: Annotated[Path | None, typer.Option(metavar="FILE", help="of secateur curves, to be shown from now on")] = None,
) -> None:
    """Write report.html again, from the report.json of a result."""
    say(False, f"{text(report_again(folder, curves))} is written")


@app.command(epilog=example("demo"))
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="for the report, the models and a cache")] = Path("secateur-demo"),
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Train a small network on handwritten digits, prune it three ways, and show what each cost."""
    from .demo import run_demo

    with bars(quiet) as bar:
        result = run_demo(out, seed, bar)
    say(False, by_model(result.table), *map(text, result.sentences), "", f"The whole story: {text(out / 'report.html')}")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. What goes wrong on purpose is one line on stderr, what does not is raised."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: object = app(args=given or ["--help"], standalone_mode=False, prog_name="secateur")
        return stopped("nothing was written") if code == 130 else code if isinstance(code, int) else 0
    except Stopped as error:
        return stopped(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return stopped("nothing was written")
    except SecateurError as error:
        return failed(str(error))
    except Exception as error:
        if (usage := getattr(error, "format_message", None)) is None:  # of an option that is missing or cannot be read
            raise
        return failed(f"{usage().strip().rstrip('.')}. See secateur --help.")


def stopped(kept: str) -> int:
    print(f"\nsecateur: Stopped; {kept}.", file=sys.stderr)
    return 130


def failed(sentence: str) -> int:
    print(f"secateur: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
