"""What a new user hears of the usual slips at the loader: the line to write."""

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from headrace import DataLoader, OptionError, RandomSampler, TensorDataset, jagged_collate
from headrace.data import CSVDataset
from headrace.train import Trainer

DATA = TensorDataset(torch.arange(10))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_worker": 2}, r"Write DataLoader\(\.\.\., num_workers=2\)"),
        ({"batchsize": 4}, r"batch_size=4"),
        ({"suffle": True}, "shuffle=True"),
        ({"collate": list}, r"collate_fn=\.\.\."),
        ({"epochs": 3}, "There are dataset, batch_size, "),
    ],
)
def test_an_option_that_is_not_there_names_the_one_that_is_meant(options, says):
    with pytest.raises(
        TypeError, match=f"unexpected keyword argument '{next(iter(options))}'.*{says}"
    ):
        DataLoader(DATA, **options)


def test_other_constructors_do_too():
    with pytest.raises(TypeError, match=r"Write Trainer\(\.\.\., scheduler=\.\.\.\)"):
        Trainer(torch.nn.Linear(1, 1), schedular=None)
    with pytest.raises(TypeError, match=r"Write CSVDataset\(\.\.\., separator=';'\)"):
        CSVDataset("x.csv", seperator=";")


def test_a_subclass_with_options_of_its_own_keeps_its_signature():
    class Mine(DataLoader):
        def __init__(self, *args, extra, **kwargs):
            super().__init__(*args, **kwargs)
            self.extra = extra

    assert Mine(DATA, extra=1, batch_size=4).extra == 1
    assert list(inspect.signature(DataLoader).parameters)[:3] == [
        "dataset",
        "batch_size",
        "shuffle",
    ]
    with pytest.raises(TypeError, match=r"Write Mine\(\.\.\., num_workers=2\)"):
        Mine(DATA, extra=1, num_worker=2)


@pytest.mark.parametrize("empty", [[], TensorDataset(torch.zeros(0, 3))])
def test_an_empty_dataset_that_is_shuffled(empty):
    kind = type(empty).__name__
    with pytest.raises(ValueError, match=rf"got num_samples=0\. The dataset \({kind}\) is empty"):
        DataLoader(empty, shuffle=True)
    assert list(DataLoader(empty, shuffle=len(empty) > 0)) == []


def test_other_complaints_of_torch_about_numbers_of_samples_stay_as_they_are():
    with pytest.raises(ValueError, match=r"got num_samples=0$"):
        DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=0))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


LESS = r"fewer than batch_size=64, and drop_last=True leaves them out\. Write drop_last=False"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("data", [DATA, list(range(10)), np.arange(10)])
def test_nothing_but_a_small_batch_that_is_left_out(data, workers):
    loader = DataLoader(data, batch_size=64, drop_last=True, num_workers=workers)
    with pytest.warns(UserWarning, match=f"the epoch gave no batch: 10 samples are {LESS}"):
        assert list(loader) == []


def test_the_same_of_streams_batch_samplers_and_ranks():
    with pytest.warns(UserWarning, match="no stream had as many samples as batch_size=64"):
        assert list(DataLoader(Stream(), batch_size=64, drop_last=True)) == []
    sampler = BatchSampler(SequentialSampler(DATA), 64, drop_last=True)
    with pytest.warns(UserWarning, match=f"10 samples are {LESS}"):
        assert list(DataLoader(DATA, batch_sampler=sampler)) == []
    ranked = DataLoader(DATA, batch_size=8, drop_last=True, shard=(1, 2), seed=0)
    with pytest.warns(UserWarning, match=r"this rank's part of 10 samples has fewer than"):
        assert list(ranked) == []


def test_what_gives_nothing_for_another_reason_is_not_told_of():
    whole = DataLoader(DATA, batch_size=10, drop_last=True)
    assert len(list(whole)) == 1
    resumed = DataLoader(DATA, batch_size=10, drop_last=True)
    batches = iter(whole)
    next(batches)
    resumed.load_state_dict(whole.state_dict())
    assert list(resumed) == []  # it was taken behind the last batch
    assert list(DataLoader([], batch_size=4, drop_last=True)) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_samples_are_given_the_line(layout):
    parts = [torch.rand(2), torch.rand(3)]
    samples = [torch.nested.nested_tensor(parts, layout=layout) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"Batches of nested tensors.*Write collate_fn=list for"):
        next(iter(DataLoader(samples, batch_size=2)))
    assert [len(b) for b in DataLoader(samples, batch_size=2, collate_fn=list)] == [2, 2]
    assert next(iter(DataLoader(parts, batch_size=2, collate_fn=jagged_collate))).is_nested


def test_sparse_samples_are_given_the_line():
    with pytest.raises(RuntimeError, match=r"Batches of sparse tensors.*x\.to_dense\(\)"):
        next(iter(DataLoader([torch.eye(2).to_sparse()] * 4, batch_size=2)))


def test_a_function_without_a_name_for_spawned_workers():
    loader = DataLoader(
        DATA, num_workers=1, multiprocessing_context="spawn", collate_fn=lambda batch: batch
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="pickle") as raised:
            iter(loader)
    [note] = raised.value.__notes__
    assert "collate_fn (<function" in note
    assert "write it at the top level of a module, or use multiprocessing_context='fork'" in note
    assert not isinstance(raised.value, OptionError)


COLUMNS = (torch.arange(6.0), torch.arange(6))
MASK = [True, False] * 5
REFUSED = {
    "a path": (lambda: DataLoader("train.csv"), r"'train.csv' is no dataset.*CSVDataset"),
    "a pathlib.Path": (lambda: DataLoader(Path("images")), r"is no dataset.*ImageFolder"),
    "text for a flag": (
        lambda: DataLoader(DATA, shuffle="False"),
        r"shuffle='False' is neither True nor False",
    ),
    "text for another": (
        lambda: DataLoader(DATA, num_workers=1, persistent_workers="no"),
        r"persistent_workers='no' is neither",
    ),
    "a seed for shuffle=": (
        lambda: DataLoader(DATA, shuffle=42),
        r"Write DataLoader\(..., seed=42",
    ),
    "a function that was called": (
        lambda: DataLoader(DATA, collate_fn=torch.stack(COLUMNS[:1])),
        r"collate_fn=tensor.*is no function",
    ),
    "the name of a collation": (
        lambda: DataLoader(DATA, collate_fn="numpy"),
        r"collate_fn=headrace.numpy_collate",
    ),
    "no function for workers": (
        lambda: DataLoader(DATA, num_workers=1, worker_init_fn=3),
        r"worker_init_fn=3 is no function",
    ),
    "no function for batches": (
        lambda: DataLoader(DATA, batch_transform=3),
        r"batch_transform=3 is no function",
    ),
    "a number for a generator": (
        lambda: DataLoader(DATA, shuffle=True, generator=42),
        r"generator=42 is no torch.Generator.*seed=42",
    ),
    "NumPy's generator": (
        lambda: DataLoader(DATA, shuffle=True, generator=np.random.default_rng()),
        r"is no torch.Generator",
    ),
    "text for a time": (lambda: DataLoader(DATA, timeout="5"), r"timeout='5' is no number"),
    "True for a seed": (lambda: DataLoader(DATA, seed=True), r"seed=True is no integer"),
    "text for bytes": (lambda: DataLoader(DATA, prefetch_bytes="1G"), r"prefetch_bytes=1 << 30"),
    "a word of uneven=": (lambda: DataLoader(DATA, uneven="padd"), r"'exact', 'pad', 'drop'"),
    "a mask for a sampler": (
        lambda: DataLoader(DATA, sampler=MASK),
        r"sampler holds a mask of True",
    ),
    "a mask as a tensor": (
        lambda: DataLoader(DATA, sampler=torch.tensor(MASK)),
        r"sampler holds a mask.*nonzero",
    ),
    "a mask in torch's sampler": (
        lambda: DataLoader(DATA, sampler=SubsetRandomSampler(np.array(MASK))),
        r"SubsetRandomSampler.indices holds a mask",
    ),
    "a mask in a subset": (
        lambda: DataLoader(Subset(TensorDataset(COLUMNS[0]), MASK[:6])),
        r"Subset.indices holds a mask",
    ),
    "a mask in a subset of a subset": (
        lambda: DataLoader(Subset(Subset(DATA, [np.True_, np.False_]), [0])),
        r"Subset.indices holds a mask",
    ),
    "a mask of tensors": (
        lambda: DataLoader(DATA, sampler=list(torch.tensor(MASK))),
        r"sampler holds a mask",
    ),
    "a sampler's class": (
        lambda: DataLoader(DATA, sampler=SequentialSampler),
        r"Write DataLoader\(..., sampler=SequentialSampler\(...\)\)",
    ),
    "a sampler for a batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=SequentialSampler(DATA)),
        r"a SequentialSampler, which yields indices.*sampler=..., batch_size=32",
    ),
    "a tensor for a batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=torch.randperm(4)),
        r"a Tensor, which yields indices",
    ),
    "a fraction of a batch ahead": (
        lambda: DataLoader(DATA, num_workers=1, prefetch_factor=1.5),
        r"prefetch_factor=1.5 is no whole number",
    ),
    "indices for lists of them": (
        lambda: list(DataLoader(DATA, batch_sampler=[0, 1])),
        r"batch_sampler= yielded 0.*Yield lists",
    ),
    "a batch without samples": (
        lambda: list(DataLoader(DATA, batch_sampler=[[0], []])),
        r"an empty list of samples makes no batch",
    ),
    "a transform without a return": (
        lambda: list(DataLoader(DATA, batch_transform=lambda batch: None)),
        r"batch_transform returned None.*return batch",
    ),
    "a set": (lambda: iter(DataLoader({1, 2})), r"'set' has no __getitem__.*list\(dataset\)"),
    "a loader": (lambda: iter(DataLoader(DataLoader(DATA))), r"loader.dataset, ..."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_loader_was_not_made_for_is_refused_with_the_line(name):
    made, text = REFUSED[name]
    with pytest.raises((ValueError, TypeError, IndexError), match=f"(?s){text}"):
        made()


def test_columns_in_a_tuple_are_warned_of():
    with pytest.warns(UserWarning, match=r"tuple of 2 arrays of 6 rows.*TensorDataset\(\*arrays\)"):
        assert len(DataLoader(COLUMNS)) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataLoader([torch.zeros(3, 4), torch.ones(3, 4)])  # two images
        DataLoader((torch.zeros(2), torch.zeros(2), torch.zeros(2)))


def test_a_generator_beside_a_seed_is_warned_of():
    with pytest.warns(UserWarning, match="generator= is not drawn from"):
        DataLoader(DATA, shuffle=True, seed=1, generator=torch.Generator())


@pytest.mark.parametrize("name", ["sampler", "batch_sampler"])
def test_an_iterator_that_an_epoch_has_used_up_is_warned_of(name):
    given = {"sampler": iter([0, 1]), "batch_sampler": iter([[0], [1]])}[name]
    loader = DataLoader(DATA, **{name: given})
    assert len(list(loader)) == 2
    with pytest.warns(UserWarning, match=rf"{name}= is an iterator.*{name}=list"):
        assert list(loader) == []


def trainer(**options):
    model = torch.nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    return Trainer(model, torch.nn.MSELoss(), sgd, progress=False, **options)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((3,), r"val_loader=3 is no loader. Write fit\(train_loader, epochs=3\)"),
        (("val.csv",), r"val_loader='val.csv' is no loader. Write DataLoader\(dataset"),
    ],
)
def test_what_is_no_loader_is_refused_before_the_training(given, text):
    with pytest.raises(OptionError, match=text):
        trainer().fit([(torch.zeros(2, 1), torch.zeros(2, 1))], *given)


def test_a_weight_that_is_no_function():
    with pytest.raises(OptionError, match=r"weight='tokens' is no function.*weight=lambda batch"):
        trainer(weight="tokens")
