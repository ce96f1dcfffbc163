"""States that do not fit are refused with both values, and damaged ones never crash."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from headrace import DataLoader
from headrace.engine.order.state import seal
from headrace.errors import StateError
from state import loaders
from state.loaders import OwnGenerator, StatefulStream, Stream


def make(n=30, batch_size=4, **options):
    return DataLoader(range(n), batch_size=batch_size, **{"shuffle": True, **options})


def state_of(loader, steps=2):
    iterator = iter(loader)
    for _ in range(steps):
        next(iterator)
    return json.loads(json.dumps(loader.state_dict()))


REFUSED = {
    "another dataset": (lambda: make(31), "dataset_length 30.*has 31"),
    "another batch size": (lambda: make(batch_size=5), "global_batch 4.*has 5"),
    "not shuffled": (lambda: make(shuffle=False), "'RandomSampler'.*'SequentialSampler'"),
    "a seed": (lambda: make(seed=3), "'generator'.*'seed 3'"),
    "a shard": (lambda: make(batch_size=2, shard=(0, 2)), "'generator'.*'ranks'"),
    "a generator of the sampler's": (
        lambda: make(shuffle=None, sampler=RandomSampler(range(30), generator=torch.Generator())),
        "1 generators.*drawn from 2",
    ),
    "an iterable dataset": (
        lambda: DataLoader(Stream(30), batch_size=4),
        "dataset_length 30.*has None",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loader_that_differs_is_told_how(name):
    other, message = REFUSED[name]
    loader = other()
    with pytest.raises(StateError, match=message) as caught:
        loader.load_state_dict(state_of(make()))
    assert "Give" in str(caught.value)


def test_a_refusal_changes_nothing():
    other = state_of(make(31))
    loader = make()
    iterator = iter(loader)
    next(iterator)
    before = loader.state_dict()
    with pytest.raises(StateError):
        loader.load_state_dict(other)
    assert loader.state_dict() == before
    sharded = make(batch_size=2, shard=(0, 3), seed=1)
    with pytest.raises(StateError, match="global batch of 8"):
        sharded.load_state_dict(state_of(make(batch_size=4, shard=(0, 2), seed=1)))
    assert len(sharded) == 5


def test_an_epoch_that_is_over_fits_a_dataset_that_has_grown():
    loader = make()
    list(loader)
    grown = make(35)
    grown.load_state_dict(loader.state_dict())
    assert sorted(int(i) for batch in grown for i in batch) == list(range(35))


@pytest.mark.parametrize("what", [None, 3, "state", [], {}, {"epoch": 3}, {"_snapshot": {}}])
def test_what_is_not_ours_is_refused(what):
    with pytest.raises(StateError, match=r"no state of a headrace DataLoader.*state_dict\(\)"):
        make().load_state_dict(what)


def test_a_newer_version_is_refused():
    state = state_of(make())
    state["headrace_state"] = 99
    with pytest.raises(StateError, match=r"version 99.*up to 4.*pip install -U headrace"):
        make().load_state_dict(state)


@pytest.mark.parametrize("name", sorted(set(state_of(make())) - {"headrace_state"}))
def test_each_value_that_is_missing_is_named(name):
    state = state_of(make())
    del state[name]
    with pytest.raises(StateError, match=f"'{name}' is missing"):
        make().load_state_dict(state)


def test_a_generator_cut_short_is_refused():
    for name in ("generators", "generators_at_start"):
        state = state_of(make())
        state[name] = [state[name][0][:1000]]
        with pytest.raises(StateError, match="damaged"):
            make().load_state_dict(state)


def test_nothing_in_a_state_is_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("was unpickled",)

    bomb = pickle.dumps(Trap())
    for value in (bomb, bomb.hex()):
        state = state_of(make())
        state["generators"] = [value]
        with pytest.raises(StateError):
            make().load_state_dict(state)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**63, 2**64, 10**30, -1, "running", "finished", "fresh"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)

LOADERS = {
    "shuffled": make,
    "shard": lambda: make(seed=1, batch_size=2, shard=(0, 2)),
    "custom": lambda: make(shuffle=None, sampler=OwnGenerator(30)),
    "columns": lambda: loaders.make("columns", 30, "shuffled", 4),
    "batch sampler": lambda: loaders.make("columns", 30, "batch sampler", 4),
    "stateful stream": lambda: DataLoader(StatefulStream(30), batch_size=4),
    "stateful sampler": lambda: make(shuffle=None, sampler=loaders.Stateful(30)),
}
STATES = {
    name: [state_of(loader(), 0), state_of(loader(), 2), loader().state_dict()]
    for name, loader in LOADERS.items()
}


@settings(deadline=None, max_examples=300)
@given(data=st.data(), name=st.sampled_from(sorted(LOADERS)))
def test_a_state_that_was_tampered_with_never_crashes(data, name):
    state = copy.deepcopy(data.draw(st.sampled_from(STATES[name])))
    keys = [key for key in sorted(state) if key != "headrace_state"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        state[key] = data.draw(ANYTHING)
    if "checksum" in state and data.draw(st.booleans()):
        seal(state)
    try:
        loader = LOADERS[name]()
        loader.load_state_dict(state)
        seen = [loaders.plain(batch) for batch in loader]
    except StateError:
        return
    assert len(seen) <= 30


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_streams_that_were_tampered_with_never_crash(data):
    state = copy.deepcopy(STATES["stateful stream"][1])
    stream = state["streams"][0]
    change = data.draw(st.sampled_from(["batches", "dataset", "all", "more"]))
    if change == "all":
        state["streams"][0] = data.draw(ANYTHING)
    elif change == "more":
        state["streams"].append(data.draw(ANYTHING))
    elif change == "batches":
        stream["batches"] = data.draw(ANYTHING)
    else:
        stream["dataset"] = data.draw(ANYTHING.filter(lambda value: value is not None))
    seal(state)
    loader = LOADERS["stateful stream"]()
    try:
        loader.load_state_dict(state)
        list(loader)
    except StateError:
        return
    assert stream["batches"] == 2


ENDED = make()
list(ENDED)
MOMENTS = {
    "running": state_of(make()),
    "with seeds": state_of(make(seed=1)),
    "of a rank": state_of(make(shard=(0, 2), batch_size=2, seed=1)),
    "finished": json.loads(json.dumps(ENDED.state_dict())),
    "fresh": make().state_dict(),
}
OF_MOMENTS = {
    "with seeds": {"seed": 1},
    "of a rank": {"shard": (0, 2), "batch_size": 2, "seed": 1},
}


@pytest.mark.parametrize(
    ("moment", "changes"),
    [
        ("running", {"epoch": 1}),
        *(("running", {"rank": rank}) for rank in ([], [0], [0, 1, 2], ["0", 1])),
        ("running", {"begun": False}),
        ("running", {"steps": 3}),
        ("running", {"samples": 4}),
        ("running", {"samples": None}),
        ("running", {"order_seed": 5}),
        ("running", {"next_worker": 1}),
        ("running", {"ahead": [1]}),
        ("running", {"ahead": [9]}),
        ("running", {"status": "finished"}),
        ("running", {"status": "fresh"}),
        ("running", {"streams": [{"batches": 2, "dataset": None}]}),
        ("with seeds", {"base_seed": 5}),
        ("with seeds", {"order_seed": 5}),
        ("with seeds", {"round": 1}),
        ("with seeds", {"seeded_by": "generator"}),
        ("of a rank", {"order_seed": None}),
        ("finished", {"epoch": 3}),
        ("finished", {"base_seed": None}),
        ("finished", {"steps": 8, "samples": 30}),
        ("finished", {"status": "running"}),
        ("finished", {"status": "fresh"}),
        ("fresh", {"base_seed": 7}),
        ("fresh", {"round": 1}),
        ("fresh", {"steps": 1}),
        ("fresh", {"status": "running"}),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_under_a_right_checksum(moment, changes):
    state = seal({**copy.deepcopy(MOMENTS[moment]), **changes})
    loader = make(**OF_MOMENTS.get(moment, {}))
    with pytest.raises(StateError):
        loader.load_state_dict(state)
    loader.load_state_dict(MOMENTS[moment])


class Counts(Stream):
    """Says where it stands in values that JSON does not know."""

    KINDS = {
        "tensor": torch.tensor,
        "array": np.array,
        "number": np.int64,
        "bytes": lambda at: bytes([at]),
    }

    def __init__(self, n, kind):
        super().__init__(n)
        self.kind = kind
        self.at = 0

    def __iter__(self):
        while self.at < 30:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.KINDS[self.kind](self.at)}

    def load_state_dict(self, state):
        self.at = int(state["at"][0] if self.kind == "bytes" else state["at"])


@pytest.mark.parametrize("kind", Counts.KINDS)
def test_what_a_dataset_said_in_tensors_or_bytes_is_under_the_checksum_too(kind):
    loader = DataLoader(Counts(30, kind), batch_size=4)
    next(iter(loader))
    state = loader.state_dict()
    again = DataLoader(Counts(30, kind), batch_size=4)
    again.load_state_dict(copy.deepcopy(state))
    assert next(iter(again)).tolist() == [4, 5, 6, 7]
    state["streams"][0]["dataset"]["dataset"]["at"] = Counts.KINDS[kind](9)
    with pytest.raises(StateError, match="checksum"):
        again.load_state_dict(state)


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, device="meta"),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor(True),
        torch.empty(0),
        torch.eye(2).to_sparse(),
        np.array([{}], object),
        object(),
    ],
    ids=lambda value: str(getattr(value, "dtype", "object")),
)
def test_whatever_a_dataset_says_a_state_can_be_taken_and_loaded(value):
    loader = DataLoader(Counts(30, "number"), batch_size=4)
    loader.dataset.state_dict = lambda: {"at": 4, "more": value}
    next(iter(loader))
    again = DataLoader(Counts(30, "number"), batch_size=4)
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)).tolist() == [4, 5, 6, 7]


def test_what_a_sampler_said_is_under_the_checksum_too():
    state = STATES["stateful sampler"][1]
    LOADERS["stateful sampler"]().load_state_dict(state)
    changed = {**state, "sampler_state": {**state["sampler_state"], "position": 3}}
    assert changed != state
    with pytest.raises(StateError, match="checksum"):
        LOADERS["stateful sampler"]().load_state_dict(changed)


@pytest.mark.parametrize(("version", "why"), [(1, "order was a function"), (2, "random numbers")])
def test_a_state_of_an_older_version_is_refused(version, why):
    state = {**state_of(make()), "headrace_state": version}
    with pytest.raises(StateError, match=rf"version {version}.*{why}.*begin a new epoch"):
        make().load_state_dict(state)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), name=st.sampled_from(sorted(LOADERS)))
def test_a_number_that_was_changed_is_refused(data, name):
    state = copy.deepcopy(data.draw(st.sampled_from(STATES[name])))
    key = data.draw(st.sampled_from([k for k in sorted(state) if k != "headrace_state"]))
    value = data.draw(ANYTHING.filter(lambda v: v != state[key] or type(v) is not type(state[key])))
    state[key] = value
    with pytest.raises(StateError):
        LOADERS[name]().load_state_dict(state)


def test_what_a_library_writes_beside_its_fields_is_none_of_its_business():  # accelerate
    loader = make(8, 2, shuffle=False)
    loader.load_state_dict(state_of(loader, 1) | {"_iterator_finished": False})
    assert [batch.tolist() for batch in loader] == [[2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("wrong", [None, 5, {}, {"epoch": 0}])
def test_what_a_sampler_does_not_take_is_a_state_error(wrong):
    state = copy.deepcopy(STATES["stateful sampler"][1])
    state["sampler_state"] = wrong
    seal(state)
    loader = LOADERS["stateful sampler"]()
    loader.load_state_dict(state)
    with pytest.raises(StateError, match=r"a Stateful, does not take what the state says of it"):
        next(iter(loader))
