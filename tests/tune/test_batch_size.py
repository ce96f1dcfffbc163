"""The largest batch size: found, run, and everything put back."""

import random
import re
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace import OptionError, TrainingError
from headrace.tune import batch_size as room
from headrace.tune import find_batch_size

X, Y = torch.randn(300, 4), torch.randint(2, (300,))


def batch_of(n):
    return X[:n], Y[:n]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(room, "_TIMED_S", 0.0)
    monkeypatch.setattr(room, "_RUNS", 1)
    monkeypatch.setattr(room, "release_memory", room.release_memory)  # put back afterwards


def failing_above(size, ran=None, error=torch.OutOfMemoryError):
    def step(batch):
        rows = len(batch[0])
        if rows > size:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        if ran is not None:
            ran.append(rows)

    return step


@given(limit=st.integers(1, 300), low=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_the_largest_that_runs(limit, low):
    ran = []
    room.release_memory = lambda device: None  # collecting garbage each time takes most of the time
    step = failing_above(limit, ran)
    if limit < low:
        with pytest.raises(TrainingError, match=f"not even a batch of {low} fits"):
            find_batch_size(step, batch_of, low=low, min_gain=None)
        return
    found = find_batch_size(step, batch_of, low=low, min_gain=None)
    assert found.batch_size == int(found) == limit
    assert limit in ran
    assert [t.batch_size for t in found.trials if t.fits and t.batch_size > limit] == []
    # Growth, then bisection.
    assert len(found.trials) <= 2 * limit.bit_length() + 2


def test_every_kind_of_out_of_memory_counts():
    for error in (MemoryError, RuntimeError):
        found = find_batch_size(failing_above(7, error=error), batch_of, min_gain=None)
        assert found.batch_size == 7
        assert "8 ran out of memory" in found.why
        assert "8 ran out of memory" in str(found)


def test_other_errors_pass_and_everything_is_put_back():
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()

    def step(batch):
        with torch.no_grad():
            model.weight.add_(1)
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        find_batch_size(step, batch_of, model=model)
    assert torch.equal(model.weight, before)


def test_no_more_samples():
    found = find_batch_size(failing_above(1000), batch_of, min_gain=None)
    assert found.batch_size == 300
    assert "no more than 300 samples" in found.why
    found = find_batch_size(failing_above(1000), lambda n: batch_of(min(n, 5)), low=8)
    assert found.batch_size == 5
    found = find_batch_size(failing_above(1000), batch_of, high=100, min_gain=None)
    assert (found.batch_size, found.why) == (100, "high=100 was reached")


def train_step(model, optimizer):
    def step(batch):
        random.random(), np.random.rand()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def everything(model, optimizer):
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "state": {
            k: {n: v.clone() if torch.is_tensor(v) else v for n, v in s.items()}
            for k, s in optimizer.state_dict()["state"].items()
        },
        "groups": [dict(g) for g in optimizer.state_dict()["param_groups"]],
        "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
    }


def same(one, other):
    if torch.is_tensor(one) or isinstance(one, np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("trained", [False, True], ids=["new", "trained before"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
    ],
    ids=["SGD", "AdamW", "Adagrad"],
)
def test_model_optimizer_and_random_state_come_back_bit_for_bit(make, trained):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    model[2].eval()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = train_step(model, optimizer)
    if trained:
        step(batch_of(10))
    before, lr = everything(model, optimizer), scheduler.state_dict()
    tensors = [*model.parameters(), *model.buffers()]
    state = {id(p): dict(s) for p, s in optimizer.state.items()}

    def whole(batch):
        step(batch)
        scheduler.step()
        model.eval()
        model.train()

    find_batch_size(
        whole, batch_of, model=model, optimizer=optimizer, others=[scheduler], low=2, high=16
    )
    assert same(everything(model, optimizer), before)
    assert scheduler.state_dict() == lr
    # They are the tensors that were there, not copies: others may hold them.
    assert all(
        a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True)
    )
    assert {id(p) for p in optimizer.state} == set(state)
    for p, values in optimizer.state.items():
        assert all(values[n] is state[id(p)][n] for n in values if torch.is_tensor(values[n]))
    # And training goes on as if nothing had been.
    step(batch_of(10))


def test_training_goes_on_as_if_nothing_had_been():
    def trained(search):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        step = train_step(model, optimizer)
        step(batch_of(10))
        if search:
            find_batch_size(step, batch_of, model=model, optimizer=optimizer, low=2, high=8)
        step(batch_of(20))
        return everything(model, optimizer)

    assert same(trained(True)["model"], trained(False)["model"])


def test_the_optimizers_memory_is_there_in_every_measurement():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    states = []

    def step(batch):
        states.append(len(optimizer.state))
        train_step(model, optimizer)(batch)

    found = find_batch_size(step, batch_of, model=model, optimizer=optimizer, low=2, high=4)
    assert states[0] == 0
    assert all(states[1:])
    assert len(found.trials) == 2  # the warm-up is none


def test_nothing_is_kept_alive():
    batches = []

    def make_batch(n):
        batch = X[:n].clone()
        batches.append(weakref.ref(batch))
        return (batch,)

    find_batch_size(failing_above(4), make_batch, high=8, min_gain=None)
    assert len(batches) >= 4
    assert [batch() for batch in batches] == [None] * len(batches)


class FakeMemory:
    """The memory of a device on which a sample takes 10 MiB, and the step 100."""

    def __init__(self, device):
        pass

    def begin(self):
        pass

    def taken_bytes(self, at_least=None):
        return (100 + 10 * self.rows) << 20


def test_the_cpu_never_runs_what_would_take_more_than_its_share(monkeypatch):
    monkeypatch.setattr(room, "PeakMemory", FakeMemory)
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000 << 20)
    ran = []

    def step(batch):
        ran.append(len(batch[0]))
        FakeMemory.rows = len(batch[0])

    found = find_batch_size(step, batch_of, memory_share=0.5, min_gain=None)
    assert max(ran) == found.batch_size == 40  # 100 + 40 * 10 MiB
    assert re.search(r"41 would take about 510 MiB, more than 50 % of the free memory", found.why)


def test_a_device_may_be_asked_and_keeps_its_share(monkeypatch):
    """Where running out of memory raises, a size is run, and its memory looked at afterwards."""
    monkeypatch.setattr(room, "PeakMemory", FakeMemory)
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000 << 20)
    monkeypatch.setattr(room, "release_memory", lambda device: None)
    monkeypatch.setattr(room._Search, "_wait", lambda self: None)
    monkeypatch.setattr(
        room, "Snapshot", lambda *_: type("S", (), {"restore": lambda self: None})()
    )
    ran = []

    def step(batch):
        ran.append(len(batch[0]))
        FakeMemory.rows = len(batch[0])

    found = find_batch_size(step, batch_of, device="meta", memory_share=0.5)
    assert found.batch_size == 40
    assert max(ran) == 64
    assert "41 takes 510 MiB, more than 50 % of the free memory (500 MiB)" in found.why


@pytest.mark.parametrize(
    ("rates", "best", "options"),
    [
        ([10, 20, 40, 41, 41.5, 41.8, 400], 4, {}),
        ([100, 60, 80, 150, 300, 310, 312, 900], 16, {}),  # the first was lucky
        ([10, 20, 10, 9, 9, 60, 61, 61, 900], 32, {}),  # small sizes are not judged
        ([10, 20, 20, 20, 20], 2, {"high": 16}),
        ([10, 20, 40, 41, 50], 16, {"high": 16}),
    ],
)
def test_on_the_cpu_it_stops_where_speed_does(monkeypatch, rates, best, options):
    clock = [0.0]

    def step(batch):
        clock[0] += len(batch[0]) / rates[len(batch[0]).bit_length() - 1]

    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    found = find_batch_size(step, batch_of, **options)
    assert found.batch_size == best
    ended = best == options.get("high")
    assert ("high=16 was reached" if ended else "not 5 % faster a sample") in found.why
    run = rates[:5] if options else rates[:-1]
    assert [t.batch_size for t in found.trials] == [1 << n for n in range(len(run))]
    assert [t.samples_per_s for t in found.trials] == pytest.approx(run)


@pytest.mark.parametrize(
    "options", [{"low": 0}, {"low": 9, "high": 8}, {"memory_share": 0}, {"memory_share": 1.5}]
)
def test_limits_that_cannot_be(options):
    with pytest.raises(OptionError, match="leave nothing to try"):
        find_batch_size(print, batch_of, **options)


@pytest.mark.parametrize(
    ("step", "make_batch", "options", "words"),
    [
        (print, X, {}, r"make_batch is a Tensor, .*default_collate\(\[dataset\[i\]"),
        (3, batch_of, {}, r"step is a int, .* Write find_batch_size\(step, make_batch\)"),
        (print, batch_of, {"device": "gpu"}, r"Write find_batch_size\(\.\.\., device='cpu'\)"),
    ],
)
def test_wrong_use_says_what_to_write(step, make_batch, options, words):
    with pytest.raises(OptionError, match=words):
        find_batch_size(step, make_batch, **options)


def test_the_report_is_a_table():
    lines = str(find_batch_size(failing_above(3), batch_of, min_gain=None)).splitlines()
    assert lines[0].split() == ["batch", "size", "fits", "ms", "a", "step", "samples/s", "MiB"]
    assert lines[1].split()[:2] == ["1", "yes"]
    assert lines[3].split() == ["4", "no", "-", "-", "-"]
    assert lines[-1].startswith("batch size 3: 4 ran out of memory (OutOfMemoryError: CUDA out")


# Eight are more than malloc ever keeps to give again: what is kept takes no memory when it is used.
SAMPLE_BYTES = 16 << 20


@pytest.mark.parametrize("freed", [0, 1 << 28])
def test_real_memory_of_the_process(freed):
    """A step that fills so many bytes a sample is seen to take them, whatever others let go of."""
    others = [torch.ones(freed, dtype=torch.uint8)]

    def make_batch(n):
        others.clear()
        return torch.zeros(n, 1)

    found = find_batch_size(
        lambda batch: torch.ones(len(batch), SAMPLE_BYTES, dtype=torch.uint8).max(),
        make_batch,
        high=8,
        min_gain=None,
    )
    taken = [t.memory_bytes / SAMPLE_BYTES for t in found.trials]
    assert [t.batch_size for t in found.trials] == [1, 2, 4, 8]
    assert 7 < taken[-1] < 20
    assert taken[-1] > taken[0]


def test_batch_norm_wants_more_than_one_sample():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def step(batch):
        model(batch).sum().backward()

    with pytest.raises(OptionError, match="low=2"):
        find_batch_size(step, lambda n: torch.randn(n, 3), model=model)
    assert find_batch_size(step, lambda n: torch.randn(n, 3), model=model, low=2, high=4)
