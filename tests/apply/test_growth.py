"""Batches that grow with a device's memory: joined from those of the loader, and gone on with."""

import numpy as np
import pytest
import torch

import headrace
from headrace import map_batches
from headrace.apply import calls, mapping, resume

X = torch.arange(300.0).view(100, 3)


@pytest.fixture
def roomy(monkeypatch):
    """A device with memory for calls of up to 40 rows, and batches of 5 to begin with."""

    class Peak(calls._Peak):
        def __exit__(self, *error):
            self.roomy = True

    monkeypatch.setattr(calls, "_Peak", Peak)
    monkeypatch.setattr(mapping, "_limit", lambda *_: calls.RowLimit(5, 40))


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_batches_are_joined(roomy, kind):
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return batch * 2

    data = X.numpy() if kind == "array" else iter(X)
    assert np.array_equal(map_batches(function, data, 5), X.numpy() * 2)
    assert sizes == [5, 10, 20, 40, 25]


def test_what_fails_is_not_tried_again_as_growth(roomy):
    tried = []

    def function(batch):
        tried.append(len(batch))
        if len(batch) > 10:
            raise MemoryError
        return batch

    assert torch.equal(map_batches(function, X, 5), X)
    assert tried[:4] == [5, 10, 20, 10]
    assert max(tried[4:]) == 10


def test_batches_that_do_not_fit_together_stay_apart(roomy):
    """Padded to other lengths, or with text beside them."""
    sizes = []
    texts = [torch.ones(n // 10 + 1) for n in range(40)]

    def function(batch):
        sizes.append(len(batch.lengths))
        return batch.values.sum(1)

    found = map_batches(function, texts, 5, collate_fn=headrace.pad_collate())
    assert found.tolist() == [n // 10 + 1 for n in range(40)]
    assert sum(sizes) == 40

    named = [{"x": torch.tensor(n), "name": str(n)} for n in range(20)]
    found = map_batches(lambda b: torch.tensor(list(map(int, b["name"]))), named, 5)
    assert found.tolist() == list(range(20))


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_gone_on_with_at_any_batch(roomy, monkeypatch, tmp_path, fails_at):
    """The loader's state belongs to the rows that were written, at its very end too."""
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 0)
    left = [fails_at]

    def function(batch):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return batch * 2

    out = tmp_path / "x.npy"
    for _ in range(2):
        try:
            map_batches(function, X.numpy(), 5, out=out)
        except KeyboardInterrupt:
            assert not out.exists()
    assert np.array_equal(np.load(out), X.numpy() * 2)


def test_interrupted_after_the_last_batch(roomy, monkeypatch, tmp_path):
    """Asked for more at its end, a loader stands at its next epoch: no place to go on at."""
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 0)
    out = tmp_path / "x.npy"
    with monkeypatch.context() as patch:
        patch.setattr("headrace.apply.sinks.Npy.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            map_batches(torch.neg, X.numpy(), 5, out=out)
    map_batches(torch.neg, X.numpy(), 5, out=out)
    assert np.array_equal(np.load(out), -X.numpy())


def test_after_running_out_of_memory_a_size_is_regained_but_not_exceeded():
    limit = calls.RowLimit(5, 40)
    limit.fitted(5, True)
    limit.fitted(10, True)
    limit.failed(20)
    assert limit.rows == 10
    seen = []
    for _ in range(200):
        limit.fitted(limit.rows, True)
        seen.append(limit.rows)
    assert seen.index(20) == 31  # twice 16 calls of calm
    assert max(seen) == 20


@pytest.mark.parametrize("fails_at", range(2, 11))
def test_batches_that_stay_apart_are_gone_on_with_too(roomy, monkeypatch, tmp_path, fails_at):
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 0)
    named = [{"x": torch.tensor(n), "name": str(n)} for n in range(50)]
    left = [fails_at]

    def function(batch):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return torch.tensor([int(name) for name in batch["name"]])

    out = tmp_path / "x.npy"
    with pytest.raises(KeyboardInterrupt):
        map_batches(function, named, 5, out=out)
    map_batches(function, named, 5, out=out)
    assert np.load(out).tolist() == list(range(50))
