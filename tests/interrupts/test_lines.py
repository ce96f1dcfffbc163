"""An interruption at any line: held batches stay, the next epoch is exact, nothing is left."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from headrace.engine.order.samplers import with_seed
from interrupts.injector import Injector, Place, describe
from interrupts.trial import FORGOTTEN, reference, run
from interrupts.ways import WAYS, Way

SHORT = 2  # places a way, in `make test`


def places_of(way: Way, *, each_instruction: bool = False) -> list[Place]:
    """Return every line that a first epoch reaches: the first time, and one in the middle."""
    want = reference(way)
    injector = Injector(each_instruction=each_instruction)
    run(way, want, injector.run, go_on=False)
    places = [(*here, 1) for here in sorted(injector.reached)]
    later = [(*here, 1 + n // 2) for here, n in sorted(injector.reached.items()) if n > 1]
    return places + later


def faults_at(way: Way, want: list[Any], places: list[Place], **kind: bool) -> list[str]:
    """Interrupt at each place in turn; return what went wrong, and where."""
    said = []
    for number, place in enumerate(places):
        injector = Injector(place, **kind)
        faults = run(way, want, injector.run, go_on=number % 3 != 2)
        if injector.in_del:
            faults = [fault for fault in faults if not fault.startswith(FORGOTTEN)]
        said += [f"{describe(place)}: {fault}" for fault in faults]
    return said


@pytest.mark.parametrize("name", WAYS)
def test_an_interruption_leaves_the_next_epoch_exact(name: str) -> None:
    with Way(name) as way:
        places = places_of(way)
        some = places[:: max(1, len(places) // SHORT)]
        assert faults_at(way, reference(way), some) == []


@pytest.mark.stress
@pytest.mark.parametrize("name", WAYS)
def test_an_interruption_at_every_line(name: str) -> None:
    with Way(name) as way:
        places = places_of(way)
        assert len(places) > 100
        assert faults_at(way, reference(way), places) == []


class Drawing:
    """A sampler of a stranger's, which draws from the program's generator."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(3):
            yield int(torch.randint(1000, ()))


def test_an_interruption_while_a_stranger_draws_puts_the_programs_generator_back() -> None:
    stands = torch.get_rng_state()

    def draw() -> list[int]:
        return list(with_seed(Drawing(), 7))

    watched = Injector(each_instruction=True)
    assert len(watched.run(draw)) == 3
    for here, times in sorted(watched.reached.items()):
        for time in range(1, times + 1):
            with contextlib.suppress(KeyboardInterrupt):
                Injector((*here, time), each_instruction=True).run(draw)
            assert torch.equal(torch.get_rng_state(), stands), describe((*here, time))
