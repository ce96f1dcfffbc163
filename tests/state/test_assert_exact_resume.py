"""The public check: it passes what resumes, and says where what does not differs."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from headrace import DataLoader
from headrace.testing import assert_exact_resume
from state.loaders import Augmented, Eager, Lazy, StatefulStream, columns


def check(dataset, **options):
    workers = options.pop("also_workers", None)
    more = {} if workers is None else {"resume_with": make(dataset, num_workers=workers, **options)}
    assert_exact_resume(make(dataset, **options), **more)


def make(dataset, **options):
    return lambda: DataLoader(dataset(), **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"sampler": Lazy(14)},
        {"shuffle": True, "also_workers": 2},
    ],
)
def test_what_resumes_passes(options):
    check(lambda: Augmented(14), **options)
    check(lambda: columns(14), **options)


def test_a_stream_with_state_passes():
    check(lambda: StatefulStream(14), seed=1)


class CountsCalls(Augmented):
    calls = 0

    def __getitem__(self, index):
        self.calls += 1
        return {"nested": [index, torch.tensor([0, self.calls])]}


def test_a_dataset_that_counts_its_calls_fails_with_place_path_and_values():
    with pytest.raises(AssertionError) as caught:
        check(lambda: CountsCalls(8))
    text = str(caught.value)
    assert "resumed behind 1 steps of epoch 0" in text
    assert "step 1 of epoch 0 differs at batch['nested'][1][0][1]" in text
    assert "5 without stopping, 1 resumed" in text


class Forgets(StatefulStream):
    def state_dict(self):
        return {"position": self.position // 4 * 4 - 4}


def test_a_state_that_leaves_something_out_fails():
    with pytest.raises(AssertionError, match=r"differs at batch\['number'\]"):
        check(lambda: Forgets(14), seed=1)


class NotJSON(StatefulStream):
    def state_dict(self):
        return {"position": np.int64(self.position)}


class Keys(StatefulStream):
    def state_dict(self):
        return {3: self.position}

    def load_state_dict(self, state):
        self.position = state[3]


def test_a_state_that_is_no_json_fails():
    with pytest.raises(AssertionError, match="behind 0 steps of epoch 0 is not JSON"):
        check(lambda: NotJSON(14), seed=1)
    with pytest.raises(AssertionError, match="not the same once written to JSON"):
        check(lambda: Keys(14), seed=1)


@pytest.mark.parametrize("shuffle", [np.random.permutation, lambda n: random.sample(range(n), n)])
def test_a_sampler_that_draws_elsewhere_fails(shuffle):
    class Elsewhere(Eager):
        def __iter__(self):
            return iter([int(i) for i in shuffle(self.n)])

    with pytest.raises(AssertionError, match="differs at batch"):
        check(lambda: Augmented(14), sampler=Elsewhere(14))


class Shorter(IterableDataset):
    """It forgets its state, and gives one sample less each time it begins."""

    begun = 0

    def __iter__(self):
        type(self).begun += 1
        return iter(range(20 - self.begun))


@pytest.mark.filterwarnings("ignore:.*has no state")
def test_an_epoch_of_another_length_fails():
    with pytest.raises(AssertionError, match="steps, without stopping it had"):
        assert_exact_resume(lambda: DataLoader(Shorter(), batch_size=1))


class Kinds(Dataset):
    """One leaf of each kind, the last one different in each process's life."""

    def __init__(self, leaf):
        self.leaf = leaf

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.leaf()


class Own:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    "of",
    [
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.complex64),
        lambda x: torch.tensor([0.0, x]).to_sparse(),
        lambda x: torch.nested.nested_tensor([torch.zeros(1), torch.tensor([1.0, x])]),
        lambda x: np.array([1, x], np.float32),
        lambda x: np.array([x, None], object),
        lambda x: -0.0 if x % 2 else 0.0,
        lambda x: float("nan") if x % 2 else 1.0,
        lambda x: torch.zeros(int(x) % 2),
        lambda x: {"a" if x % 2 else "b": 1},
        lambda x: (1, str(x)),
        lambda x: [1] * (int(x) % 2),
        Own,
        lambda x: int(x) if x % 2 else x,
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_any_kind_of_difference_is_seen(of):
    count = iter(range(1000))

    def loader():
        return DataLoader(Kinds(lambda: of(float(next(count)))), batch_size=None)

    with pytest.raises(AssertionError, match="without stopping"):
        assert_exact_resume(loader)
    assert_exact_resume(lambda: DataLoader(Kinds(lambda: of(1.0)), batch_size=None))


def test_the_generators_are_as_they_were_before():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    check(lambda: Augmented(8), shuffle=True)
    assert (torch.rand(()), np.random.rand(), random.random()) == expected


def test_stops_can_be_made_rarer():
    read = []

    class Reads(Augmented):
        def __getitem__(self, index):
            read.append(index)
            return index

    assert_exact_resume(make(lambda: Reads(40)), every=100)
    few = len(read)
    read.clear()
    assert_exact_resume(make(lambda: Reads(40)))
    assert few < len(read) / 3
    with pytest.raises(ValueError, match="at least 1"):
        assert_exact_resume(make(lambda: Reads(40)), every=0)
