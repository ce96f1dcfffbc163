"""Stop anywhere, go on in a fresh process with other workers: the rest is the same to the bit."""

import json

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from state import loaders

pytestmark = pytest.mark.filterwarnings("ignore:the epoch gave no batch")
NO_DEADLINE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)


def check(fresh, arguments, before, after, stop, epochs=2):
    """Run through with ``before``, stop where ``stop`` says, go on with ``after``."""
    loaders.seed_all(11)
    batches, states = loaders.run_through(loaders.make(*arguments, **before), epochs)
    epoch = min(stop[0], epochs - 1)
    place = min(stop[1], len(states[epoch]) - 1)
    rest = fresh(loaders.resume, arguments, after, states[epoch][place], epochs - epoch)
    over = place == len(states[epoch]) - 1
    expected = [] if over else [batches[epoch][place:]]
    expected += batches[epoch + 1 :]
    # After the last epoch there is another one: what it should be, nobody has recorded.
    assert rest[: len(expected)] == expected


@pytest.mark.parametrize("order", loaders.ORDERS)
@pytest.mark.parametrize("data", ["augmented", "columns"])
def test_every_order_goes_on_at_every_step(order, data):
    n, batch_size = 23, 4
    loaders.seed_all(11)
    batches, states = loaders.run_through(loaders.make(data, n, order, batch_size), 3)
    for epoch in (0, 1):
        for step, state in enumerate(states[epoch][:-1]):
            rest = loaders.resume((data, n, order, batch_size), {}, state, 3 - epoch)
            assert rest == [batches[epoch][step:], *batches[epoch + 1 :]], f"{epoch}, {step}"
        rest = loaders.resume((data, n, order, batch_size), {}, states[epoch][-1], 2 - epoch)
        assert rest == batches[epoch + 1 :], f"after epoch {epoch}"


ANY = given(
    data=st.sampled_from(["augmented", "columns"]),
    n=st.integers(1, 40),
    order=st.sampled_from(sorted(loaders.ORDERS)),
    batch_size=st.integers(1, 9),
    workers=st.integers(0, 2),
    other_workers=st.integers(0, 2),
    drop_last=st.booleans(),
    stop=st.tuples(st.integers(0, 1), st.integers(0, 12)),
)


@NO_DEADLINE
@example("augmented", 17, "shuffled", 4, 0, 2, False, (0, 2))
@example("augmented", 17, "custom, lazy", 4, 2, 0, False, (0, 2))
@example("augmented", 32, "custom, lazy", 6, 2, 0, True, (0, 3))
@example("columns", 33, "custom, lazy", 2, 1, 2, True, (1, 5))
@example("augmented", 24, "stateful", 8, 0, 0, False, (0, 3))
@example("augmented", 24, "stateful", 8, 2, 1, False, (0, 3))
@ANY
def test_another_process_with_other_workers_goes_on(
    fresh, data, n, order, batch_size, workers, other_workers, drop_last, stop
):
    arguments = (data, n, order, batch_size)
    before = {"num_workers": workers, "drop_last": drop_last}
    after = {"num_workers": other_workers, "drop_last": drop_last}
    check(fresh, arguments, before, after, stop)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@settings(NO_DEADLINE, max_examples=1000)
@ANY
def test_a_thousand_ways_to_go_on(
    fresh, data, n, order, batch_size, workers, other_workers, drop_last, stop
):
    arguments = (data, n, order, batch_size)
    before = {"num_workers": workers, "drop_last": drop_last}
    after = {"num_workers": other_workers, "drop_last": drop_last}
    check(fresh, arguments, before, after, stop)


@pytest.mark.parametrize("stop", [(0, 2), (0, 99), (1, 3), (1, 99)])
@pytest.mark.parametrize("order", ["shuffled", "custom, lazy", "stateful"])
def test_workers_that_persist_go_on_in_another_number(fresh, order, stop):
    options = {"num_workers": 2, "persistent_workers": True}
    other = {"num_workers": 1, "persistent_workers": True}
    check(fresh, ("augmented", 21, order, 4), options, other, stop, 3)


@pytest.mark.parametrize("after", [{"num_workers": 0}, {"num_workers": 2, "backend": "process"}])
@pytest.mark.parametrize(
    "before",
    [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "backend": "process"}],
)
def test_columns_go_on_whatever_makes_the_batches(fresh, before, after):
    check(fresh, ("columns", 50, "shuffled", 4), before, after, (0, 7))


def test_the_global_generator_goes_on_as_it_stood():
    """A loop that draws from the generator that orders come from."""

    def train(loader, epochs, into, states=None):
        for _ in range(epochs):
            for batch in loader:
                into.append((loaders.plain(batch), torch.rand(()).item()))
                if states is not None:
                    states.append(json.dumps(loader.state_dict()))

    arguments = ("augmented", 20, "shuffled", 3)
    loaders.seed_all(1)
    whole, states = [], []
    train(loaders.make(*arguments), 2, whole, states)
    for step in range(7):
        loaders.seed_all(2)
        loader = loaders.make(*arguments)
        loader.load_state_dict(json.loads(states[step]))
        rest = []
        train(loader, 2, rest)
        assert rest == whole[step + 1 :]
