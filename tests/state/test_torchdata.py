"""Every order of iter(), next(), state_dict(), load_state_dict() and the end of an epoch.

torchdata's StatefulDataLoader is the oracle: people move from it. The same steps are done with
both loaders, and what leaves them must be the same.
"""

import json
from collections import deque
from itertools import chain, islice, product

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from torchdata.stateful_dataloader import StatefulDataLoader

from headrace import DataLoader
from state.torchdata_streams import KINDS, Counted, PlaceFromIter

BOTH = (False, True)


def keep(batch):
    return batch


class BesideTorchdata(RuleBasedStateMachine):
    workers, persistent = 0, False

    @initialize(
        kind=st.sampled_from(KINDS),
        n=st.integers(0, 13),
        batch_size=st.sampled_from([1, 2, 3, None]),
    )
    def begin(self, kind, n, batch_size):
        self.arguments = kind, n, batch_size
        self.saved, self.history = [], []
        self.iterators, self.resumed = None, False
        self.ours, self.theirs = self.make(DataLoader), self.make(StatefulDataLoader)

    def make(self, loader):
        kind, n, batch_size = self.arguments
        options = {"persistent_workers": self.persistent, "collate_fn": keep}
        return loader(kind(n), batch_size, num_workers=self.workers, **options)

    # How far workers that persist had gone where an epoch was left is a matter of chance.
    @precondition(lambda self: not self.persistent or self.iterators is None)
    @rule()
    def iterate(self):
        self.iterators = iter(self.ours), iter(self.theirs)
        if not self.resumed:
            self.history.append(0)
        self.resumed = False

    @precondition(lambda self: self.iterators is not None)
    @rule(count=st.integers(1, 4))
    def step(self, count):
        for _ in range(count):
            got, wanted = (next(iterator, "end") for iterator in self.iterators)
            assert got == wanted
            if got == "end":
                self.end()
                break
            self.history[-1] += 1

    @precondition(lambda self: self.iterators is not None)
    @rule()
    def go_to_the_end(self):
        got, wanted = map(list, self.iterators)
        assert got == wanted
        self.end()

    def end(self):
        self.history[-1] = None
        self.iterators = None  # what comes behind the end is nobody's business

    @rule()
    def whole_epoch(self):
        if self.iterators is None:
            self.iterate()
        self.go_to_the_end()

    @rule()
    def save(self):
        ours, theirs = self.ours.state_dict(), self.theirs.state_dict()
        self.saved.append((json.dumps(ours), json.dumps(theirs), list(self.history)))

    @rule()
    def save_and_load(self):
        self.save()
        self.load(len(self.saved) - 1, same=False)

    @precondition(lambda self: self.saved)
    @rule(number=st.integers(0, 99), same=st.booleans())
    def load(self, number, same):
        ours, theirs, history = self.saved[number % len(self.saved)]
        if not same:
            self.ours, self.theirs = self.make(DataLoader), self.make(StatefulDataLoader)
        self.ours.load_state_dict(json.loads(ours))
        self.iterators, self.history = None, list(history)
        self.resumed = history != [] and history[-1] is not None
        if history and not self.resumed:
            # Between epochs torchdata's workers go on otherwise than if nobody had stopped:
            # what would have come then is right.
            self.theirs = self.make(StatefulDataLoader)
            for count in history:
                deque(islice(iter(self.theirs), count), 0)
        else:
            self.theirs.load_state_dict(json.loads(theirs))

    def teardown(self):
        self.iterators = self.ours = self.theirs = None


@pytest.mark.filterwarnings("ignore:all workers yield the same stream")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(
    ("workers", "persistent", "examples"),
    [
        (0, False, 200),
        (1, False, 4),
        (2, False, 6),
        (2, True, 12),
        *(pytest.param(*case, marks=pytest.mark.stress) for case in product((1, 2), BOTH, [200])),
    ],
)
def test_what_leaves_is_what_leaves_torchdatas_loader(workers, persistent, examples):
    machine = type("Machine", (BesideTorchdata,), {"workers": workers, "persistent": persistent})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    many = settings(
        max_examples=examples,
        stateful_step_count=10,
        deadline=None,
        suppress_health_check=checks,
        phases=[Phase.generate],  # shrinking begins workers some thousand times
    )
    run_machine(machine, settings=many)


@pytest.mark.parametrize("steps", [0, 2, 4, "end"])
@pytest.mark.parametrize("kind", KINDS)
def test_iter_is_called_once(kind, steps):
    loader = DataLoader(kind(9), 2, collate_fn=keep)
    iterator = iter(loader)
    left = list(iterator) if steps == "end" else [next(iterator) for _ in range(steps)]
    state = json.dumps(loader.state_dict())
    again = DataLoader(kind(9), 2, collate_fn=keep)
    again.load_state_dict(json.loads(state))
    Counted.iters = 0
    rest = list(again)
    # A place that exists from iter() on is put back behind it, and then another epoch begins.
    assert Counted.iters == 1 + (kind is PlaceFromIter and steps == "end")
    if steps != "end":
        assert left + rest == list(DataLoader(kind(9), 2, collate_fn=keep))


class OnlySays(PlaceFromIter):
    """It can say where it stands, and cannot be put back there."""

    load_state_dict = property()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_put_back_is_replayed(workers):
    loader = DataLoader(OnlySays(9), 2, collate_fn=keep, num_workers=workers)
    iterator = iter(loader)
    first = [next(iterator), next(iterator)]
    again = DataLoader(OnlySays(9), 2, collate_fn=keep, num_workers=workers)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    with pytest.warns(UserWarning, match="has no state"):
        assert sorted(chain.from_iterable(first + list(again))) == list(range(9))
