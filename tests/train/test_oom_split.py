"""Out of memory in a step: an error that names a size that was run, or a smaller step."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import HeadraceError, OptionError, OutOfMemoryError, TrainingWarning
from headrace.train import Trainer
from headrace.train.oom_split import OomSplit


@pytest.fixture(autouse=True)
def released(monkeypatch):
    """The devices whose memory was given back; collecting garbage takes long in a large process."""
    devices = []
    monkeypatch.setattr("headrace.train.oom_split.release_memory", devices.append)
    return devices


class Limited(nn.Module):
    """A model that runs out of memory above so many rows, as CUDA would say it."""

    def __init__(self, most_rows, inner=None, in_backward=False):
        super().__init__()
        self.inner = inner or nn.Linear(4, 1)
        self.most_rows, self.in_backward = most_rows, in_backward
        self.ran = []

    def forward(self, x):
        def look(*_):
            if len(x) > self.most_rows:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"
                )

        self.ran.append(len(x))
        made = self.inner(x)
        if self.in_backward and torch.is_grad_enabled():
            (made if made.requires_grad else x).register_hook(look)
        else:
            look()
        return made


def gradients_of(model):
    return [p.grad.clone() for p in model.parameters()]


def splitter(model, on_oom="error", **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OomSplit(model, on_oom, optimizer.zero_grad, **options)


def attempt_with(model, total):
    """Forward and backward of a list of batches, to the mean over ``total`` samples."""

    def attempt(batches):
        value = 0.0
        for x, y in batches:
            loss = ((model(x) - y) ** 2).sum() / total
            loss.backward()
            value += loss.item()
        return value

    return attempt


def batch(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 4, generator=generator), torch.rand(rows, 1, generator=generator)


def test_what_fits_is_run_as_it_is():
    model = Limited(8)
    data = [batch(8), batch(3)]
    assert splitter(model).run(lambda batches: batches is data, data)


@pytest.mark.parametrize("in_backward", [False, True])
def test_the_error_names_a_size_that_was_run(released, in_backward):
    model = Limited(6, in_backward=in_backward)
    with pytest.raises(OutOfMemoryError) as caught:
        splitter(model).run(attempt_with(model, 64), [batch(64)])
    assert model.ran == [64, 32, 16, 8, 4]
    assert released == [torch.device("cpu")] * 5  # before each attempt, and at the end
    text = str(caught.value)
    assert "in a batch of 64 samples (CUDA out of memory). A batch of 4 was tried and fits" in text
    assert "batch_size=4" in text
    assert "accumulate=16" in text
    assert all(p.grad is None for p in model.parameters())


def test_the_error_is_torchs_and_ours():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        splitter(Limited(1)).run(attempt_with(Limited(1), 4), [batch(4)])
    assert isinstance(caught.value, HeadraceError)


def test_looking_for_a_size_puts_buffers_and_random_states_back():
    model = Limited(2, nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)))
    before = []

    def attempt(batches):
        if len(batches[0][0]) == 8:
            before[:] = [torch.get_rng_state(), {n: b.clone() for n, b in model.named_buffers()}]
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return attempt_with(model, 8)(batches)

    with pytest.raises(OutOfMemoryError, match="A batch of 2 was tried"):
        splitter(model).run(attempt, [batch(8)])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(b, before[1][n]) for n, b in model.named_buffers())


def test_one_sample_that_does_not_fit():
    for on_oom in ("error", "split"):
        model = Limited(0)
        with pytest.raises(OutOfMemoryError, match="one sample alone does not fit either"):
            splitter(model, on_oom).run(attempt_with(model, 4), [batch(4)])
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("on_oom", ["error", "split"])
def test_batches_that_cannot_be_cut_and_other_ranks(on_oom):
    model = Limited(0)
    ragged = (torch.rand(4, 4), torch.rand(7, 4))
    with pytest.raises(OutOfMemoryError, match="do not share a first dimension"):
        splitter(model, on_oom).run(lambda b: model(b[0][0]), [ragged])
    with pytest.raises(OutOfMemoryError, match=r"2 processes.*batch_size=2\)"):
        splitter(model, ranks=2).run(attempt_with(model, 4), [batch(4)])
    assert model.ran == [4, 4]  # nothing was tried again


def test_other_errors_pass():
    for on_oom in ("error", "split"):
        with pytest.raises(ZeroDivisionError):
            splitter(nn.Linear(1, 1), on_oom).run(lambda _: 1 / 0, [batch(4)])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 20),
    st.booleans(),
)
def test_split_gradients_are_those_of_the_whole(sizes, most_rows, in_backward):
    torch.manual_seed(0)
    model = Limited(most_rows, in_backward=in_backward).double()
    batches = [tuple(t.double() for t in batch(rows, seed)) for seed, rows in enumerate(sizes)]
    total = sum(sizes)
    split = splitter(model, "split")
    if max(sizes) > most_rows:
        with pytest.warns(TrainingWarning, match="out of memory in a batch of"):
            value = split.run(attempt_with(model, total), batches)
    else:
        value = split.run(attempt_with(model, total), batches)
    found = gradients_of(model)
    model.most_rows = 1000
    model.zero_grad()
    assert value == pytest.approx(attempt_with(model, total)(batches))
    for ours, whole in zip(found, gradients_of(model), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_what_was_too_large_once_is_cut_from_then_on():
    model = Limited(5)
    split = splitter(model, "split")
    with pytest.warns(TrainingWarning, match="pieces of at most 4"):
        split.run(attempt_with(model, 16), [batch(16)])
    model.ran.clear()
    split.run(attempt_with(model, 19), [batch(16), batch(3)])
    assert model.ran == [4, 4, 4, 4, 3]


def test_a_second_shortage_cuts_further():
    model = Limited(8)
    split = splitter(model, "split")
    with pytest.warns(TrainingWarning):
        split.run(attempt_with(model, 16), [batch(16)])
    model.most_rows = 3
    model.zero_grad()
    model.ran.clear()
    with pytest.warns(TrainingWarning, match="at most 2"):
        split.run(attempt_with(model, 16), [batch(16)])
    assert model.ran[-8:] == [2] * 8


def test_a_second_attempt_draws_the_numbers_of_the_first():
    drawn = []

    def attempt(batches):
        drawn.append(torch.rand(1).item())
        if len(batches) < 4:
            raise torch.OutOfMemoryError

    with pytest.warns(TrainingWarning):
        splitter(nn.Linear(4, 1), "split").run(attempt, [batch(8)])
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_split_is_refused_where_it_would_change_the_result():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    with pytest.raises(OptionError, match=r"BatchNorm \('1' and 1 more\)"):
        splitter(model, "split")
    with pytest.raises(OptionError, match="3 train together"):
        splitter(nn.Linear(1, 1), "split", ranks=3)
    with pytest.raises(OptionError, match="on_oom='error' or on_oom='split'"):
        splitter(nn.Linear(1, 1), "never")
    splitter(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), "split")


# ---- through the Trainer


def fit(model, on_oom, **options):
    data = TensorDataset(*batch(30))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, nn.MSELoss(), optimizer, on_oom=on_oom, progress=False, **options)
    return trainer.fit(DataLoader(data, batch_size=8), epochs=2)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_training_that_is_split_learns_the_same(accumulate, in_backward):
    def model_of(rows):
        torch.manual_seed(1)
        return Limited(rows, in_backward=in_backward)

    whole, split = model_of(100), model_of(3)
    history = fit(whole, "error", accumulate=accumulate)
    with pytest.warns(TrainingWarning, match="pieces of at most 2"):
        other = fit(split, "split", accumulate=accumulate)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [r["loss"] for r in other.steps] == pytest.approx([r["loss"] for r in history.steps])


def test_the_trainers_error_names_a_size():
    with pytest.raises(OutOfMemoryError, match=r"batch of 8 samples .* A batch of 2 was tried"):
        fit(Limited(3), "error")
