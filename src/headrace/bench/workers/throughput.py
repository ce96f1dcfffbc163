"""How many samples a second worker processes deliver."""

from collections.abc import Callable
from functools import partial

from headrace.bench.datasets import Dictionaries, Images, PythonWork
from headrace.bench.harness import Row, Say, Size, Spread, System, at_least, in_turn, ratios, spread
from headrace.bench.workers.work import (
    LOADERS,
    OURS,
    TORCH,
    Run,
    Work,
    memory_mib,
    run,
    run_both,
    system,
    two_bare_loops,
)

_BARE = "two bare loops"


def against_torch(size: Size, say: Say) -> list[Row]:
    """Measure large batches that are only copied, and samples of many small tensors."""
    images = Images(64 * size.choose(160, 8))
    dictionaries = Dictionaries(64 * size.choose(320, 16))
    copied, nested = "64x3x224x224 float32 copied", "dicts of 50 tensors, batch 64"
    return [
        _ratio_row(f"{copied}, 2 processes", Work(images, 64, 2), 6.0, size, say),
        _ratio_row(f"{copied}, 1 process", Work(images, 64, 1), 8.0, size, say),
        _ratio_row(f"{nested}, 2 processes", Work(dictionaries, 64, 2), 4.0, size, say),
    ]


def _ratio_row(name: str, work: Work, bound: float, size: Size, say: Say) -> Row:
    say(name)
    runs = run_both(work, size.rounds)
    return Row(
        work=name,
        figure="throughput, headrace / torch loader",
        value=_rate_ratio(runs[OURS], runs[TORCH]),
        unit="x",
        target=at_least(bound),
        systems=tuple(_rate_system(name, runs[name], work) for name in LOADERS),
    )


def _rate_ratio(above: list[Run], below: list[Run]) -> Spread:
    return ratios([run.rate for run in above], [run.rate for run in below])


def _rate_system(name: str, runs: list[Run], work: Work) -> System:
    rate = spread([run.rate / 1e3 for run in runs])
    return system(name, rate, "k samples/s", runs, memory_mib(partial(run, work, name)))


def beside_bare_loops(size: Size, say: Say) -> Row:
    """Measure samples of pure Python against two loops that do nothing but make them."""
    say("pure Python, 150 us a sample: 2 processes beside two bare loops")
    dataset = PythonWork.lasting(150e-6, 32 * size.choose(200, 16))
    work = Work(dataset, 32, 2)
    loops = partial(_bare_loops, dataset)
    loaders = {name: partial(run, work, name) for name in LOADERS}
    runs = in_turn({**loaders, _BARE: loops}, size.rounds)
    bare_rate = spread([run.rate / 1e3 for run in runs[_BARE]])
    theirs = _rate_ratio(runs[TORCH], runs[_BARE])
    return Row(
        work="pure Python, 150 us a sample, batch 32, 2 processes",
        figure="throughput, headrace / two bare loops at once",
        value=_rate_ratio(runs[OURS], runs[_BARE]),
        unit="x",
        target=at_least(0.95),
        systems=(
            *(_rate_system(name, runs[name], work) for name in LOADERS),
            system(_BARE, bare_rate, "k samples/s", runs[_BARE], memory_mib(lambda _: loops())),
        ),
        note=f"torch loader / two bare loops {theirs.median:.3g} x; a bare loop makes half of the "
        "samples, and neither collates nor sends them",
    )


def _bare_loops(dataset: PythonWork) -> Run:
    def loop(part: int, ready: Callable[[], object]) -> None:
        ready()
        for index in range(part, len(dataset), 2):
            dataset[index]

    return two_bare_loops(len(dataset), loop)
