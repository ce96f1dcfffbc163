"""The commands: parse, call, print."""

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

import headrace
from headrace.cli.bench import bench
from headrace.cli.problems import CannotGoOn, WrongUse, complain, one_line_errors
from headrace.cli.profile import PROFILE_EXAMPLES, PROFILE_VALUES, profile
from headrace.cli.program import Program, split
from headrace.cli.shards import shards
from headrace.cli.tokenize import EXAMPLES as _TOKENIZE_EXAMPLES
from headrace.cli.tokenize import tokenize
from headrace.cli.values import number_option
from headrace.errors import OptionError

app = typer.Typer(
    name="headrace",
    help="A drop-in PyTorch DataLoader: see it work, and measure it.",
    add_completion=False,
    # A traceback that still appears is a mistake of ours: show it as Python does.
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line in ``arguments`` (default: the process's own); return the exit code."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name, values in (("run", _RUN_VALUES), ("profile", PROFILE_VALUES)):
        if given[:1] == [name]:
            given[1:] = split(given[1:], values)
    try:
        code = command.main(given, prog_name="headrace", standalone_mode=False)
    except Exception as error:
        # typer carries its own copy of click since 0.26: the class of a usage error has no
        # name that holds for all versions, its way of stating itself has.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        message = _sentence(error.format_message())
        if message.startswith("no such command") and context is not None and "mean" not in message:
            message += f". There are: {', '.join(context.command.list_commands(context))}"
        complain(getattr(context, "command_path", "headrace"), message)
        return 2
    except KeyboardInterrupt:
        complain("headrace", "interrupted")
        return 130
    if isinstance(code, Program):
        return _run_program(code)  # out here: what a program raises is none of typer's business
    return code if isinstance(code, int) else 0


def _run_program(program: Program) -> int:
    try:
        return program.run()
    except CannotGoOn as problem:
        complain("headrace run", str(problem))
        return 2
    except OptionError as problem:
        complain("headrace run", str(problem))
        return 2


def _sentence(message: str) -> str:
    """Typer's message in the form of our own: no capital, no full stop, no quotes to no use."""
    bad_value = re.fullmatch(r"Invalid value for '(--[\w-]+)': (must .*)", message)
    if bad_value:
        return f"{bad_value[1]} {bad_value[2]}"
    return message[:1].lower() + message[1:].rstrip(".")


def _print_version(wanted: bool) -> None:
    if wanted:
        python = platform.python_version()
        print(f"headrace {headrace.__version__} (torch {torch.__version__}, Python {python})")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="Examples:  [bold]headrace demo[/]   [bold]headrace bench inmemory --quick[/]",
)
def _root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


_DEMO_EXAMPLES = """
Examples:

  [bold]headrace demo[/]

  [bold]headrace demo --epochs 3 --batch-size 128 --out pictures[/]

  [bold]headrace demo --device cuda --seed 7[/]
"""


@app.command(epilog=_DEMO_EXAMPLES)
def demo(
    epochs: Annotated[int, number_option("Passes over the training images.")] = 12,
    batch_size: Annotated[int, number_option("Images in a mini-batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps.")] = "cpu",
    seed: Annotated[int, number_option("Fixes split, order and first weights.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory for the two pictures.")] = Path("."),
) -> None:
    """Train a small network on real handwritten digits, in a few seconds.

    Takes the 1,797 digits of scikit-learn, trains on shuffled mini-batches from
    headrace.DataLoader, and writes digits-batch.png and digits-curves.png.
    """
    with one_line_errors("headrace demo"):
        from headrace.cli.demo import run_demo

        run_demo(epochs=epochs, batch_size=batch_size, device=device, seed=seed, out=out)


_PEEK_EXAMPLES = """
Examples:

  [bold]headrace peek train.csv --target price[/]

  [bold]headrace peek photographs --out grid.png[/]

  [bold]headrace peek corpus.jsonl.gz --rows 10[/]

  [bold]headrace peek sqlite:///train.db --query "SELECT id, x FROM samples"[/]

  [bold]headrace peek my_project.data:make_dataset --json[/]
"""


@app.command(epilog=_PEEK_EXAMPLES)
def peek(  # noqa: PLR0917 - typer's
    source: Annotated[
        str,
        typer.Argument(
            help="A file, a directory, an address, or module:callable that makes a dataset."
        ),
    ],
    target: Annotated[str | None, typer.Option(help="The column to predict (.csv, .tsv).")] = None,
    query: Annotated[
        str | None, typer.Option(help="The rows of a database: one SELECT. All are read.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="A unique column of --query: only the rows that are shown are read."),
    ] = None,
    batch_size: Annotated[int, number_option("Samples in the batch that is made.")] = 32,
    rows: Annotated[int, number_option("How many of the first samples are shown.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Draw the images of the batch to this PNG.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a loader would give of a source: shapes, types, ranges, classes, samples.

    Knows .csv, .tsv, .parquet, .npy, .npz, .safetensors, .tar, .txt and .jsonl files (text and
    tables also .gz and .zst), directories of images by class or of shards, MNIST and CIFAR
    directories, databases (SQLite, PostgreSQL, DuckDB), and datasets of your own.
    """
    with one_line_errors("headrace peek"):
        from headrace.cli.peek import Asked, run_peek

        asked = Asked(source, target, query, key)
        run_peek(asked, batch_size=batch_size, rows=rows, out=out, as_json=as_json)


_RUN_EXAMPLES = """
Examples:

  [bold]headrace run train.py --epochs 3[/]

  [bold]headrace run --seed 0 --workers auto train.py[/]

  [bold]headrace run --verbose -m my_project.train[/]

  [bold]torchrun --nproc-per-node 2 -m headrace run train.py[/]
"""

_RUN_VALUES = ("--seed", "--workers", "--backend", "--device")


@app.command(name="run", epilog=_RUN_EXAMPLES)
def run_program(  # noqa: PLR0917 - typer's
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT ARGS...", help="A program, and what it is given."),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", "--module", help="A module to run, in a script's place.")
    ] = None,
    seed: Annotated[int | None, number_option("Seed of all loaders: orders that count.")] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N", help="Workers of all loaders, or auto.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Who makes batches: process, thread, inline.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where batches arrive: cuda, cuda:1.")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print all that was replaced.")
    ] = False,
) -> Program:
    """Run a program with headrace's DataLoader in the place of torch's; the program stays as it is.

    Its arguments, its exit code and its processes are its own. What is replaced is said in one
    line, before it starts.
    """
    with one_line_errors("headrace run"):
        words = tuple(program or ())
        if module is None and not words:
            raise WrongUse("give a program to run: headrace run train.py")
        options = {
            "seed": seed,
            "num_workers": _workers(workers),
            "backend": backend,
            "device": device,
        }
        given = {name: value for name, value in options.items() if value is not None}
        if module is not None:
            return Program(module, True, words, given, verbose)
        return Program(words[0], False, words[1:], given, verbose)


def _workers(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise WrongUse(f"--workers must be a whole number or auto, not {text!r}") from None


app.command(name="profile", epilog=PROFILE_EXAMPLES)(profile)
app.add_typer(shards, name="shards")
app.command(epilog=_TOKENIZE_EXAMPLES)(tokenize)
app.add_typer(bench, name="bench")
