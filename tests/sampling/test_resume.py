"""A loader over each of the samplers resumes at every step, and so does the epoch after."""

import json

import numpy as np
import pytest
import torch

from headrace import DataLoader
from headrace.collate import pad_collate
from headrace.sampling import weighted
from headrace.sampling.balanced import ClassBalancedSampler
from headrace.sampling.buckets import BucketBatchSampler
from headrace.sampling.packing import PackedBatchSampler
from headrace.sampling.stratified import StratifiedBatchSampler
from headrace.sampling.subset import SubsetRandomSampler
from headrace.sampling.weighted import WeightedRandomSampler

LENGTHS = np.random.default_rng(0).integers(1, 20, 60)
LABELS = LENGTHS % 3
WEIGHTS = 1.0 / LENGTHS


class Sequences(torch.utils.data.Dataset):
    """Random values: they too have to be the same."""

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        return torch.rand(int(LENGTHS[index])) + index


SAMPLERS = {
    "weighted": lambda g: {"sampler": WeightedRandomSampler(WEIGHTS, 50, generator=g)},
    "weighted, no replacement": lambda g: {
        "sampler": WeightedRandomSampler(WEIGHTS, 50, replacement=False, generator=g)
    },
    "subset": lambda g: {"sampler": SubsetRandomSampler(range(0, 60, 2), generator=g)},
    "balanced": lambda g: {"sampler": ClassBalancedSampler(LABELS, generator=g)},
    "stratified": lambda g: {"batch_sampler": StratifiedBatchSampler(LABELS, 7, generator=g)},
    "buckets": lambda g: {"batch_sampler": BucketBatchSampler(LENGTHS, max_tokens=90, generator=g)},
    "buckets, one of two ranks": lambda g: {
        "batch_sampler": BucketBatchSampler(
            LENGTHS, max_tokens=60, generator=g, num_replicas=2, rank=1
        )
    },
    "packed": lambda g: {"batch_sampler": PackedBatchSampler(LENGTHS, 70, generator=g)},
}


def make_loader(name, seed, own, workers=0):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed) if own else None
    options = SAMPLERS[name](g)
    if "sampler" in options:
        options["batch_size"] = 8
    return DataLoader(
        Sequences(), **options, collate_fn=pad_collate(), generator=g, num_workers=workers
    )


def flat(batches):
    return [(values.tolist(), lengths.tolist()) for values, lengths in batches]


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_rest_and_the_next_epoch_are_the_same(monkeypatch, name, beyond, own):
    if beyond:
        if "weighted" not in name:
            pytest.skip("only weights have a limit")
        monkeypatch.setattr(weighted, "TORCH_WEIGHTS", 10)
    loader = make_loader(name, 1, own)
    expected, states = [], []
    for batch in loader:
        expected += flat([batch])
        states.append(json.dumps(loader.state_dict()))
    following = flat(loader)
    assert following != expected
    for step, state in enumerate(states, 1):
        again = make_loader(name, 2, own)
        again.load_state_dict(json.loads(state))
        assert flat(again) == expected[step:]
        assert flat(again) == following


@pytest.mark.parametrize("name", ["buckets", "stratified", "balanced"])
def test_other_workers_make_the_same_batches(name):
    assert flat(make_loader(name, 1, False)) == flat(make_loader(name, 1, False, workers=2))
