"""An interruption at any line: held batches stay, the next epoch is exact, nothing is left."""

from typing import Any

import pytest

from interrupts.injector import Injector, Place, describe
from interrupts.trial import reference, run
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
        faults = run(way, want, Injector(place, **kind).run, go_on=number % 3 != 2)
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
