"""What can be built, what cannot, and which error comes first: as torch's constructor has it."""

import copy
import inspect
import itertools
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.data as torch_data
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from headrace import BucketBatchSampler, DataLoader, OptionError, StackDataset


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


class SizedStream(Stream):
    def __len__(self) -> int:
        return 5


def outcome(loader: Any, dataset: Any, options: dict[str, Any]) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loader(dataset, **options)
        except Exception as error:
            kinds = [k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"]
            return kinds[0], str(error)
    return "", ""


MAP_OPTIONS: dict[str, list[Any]] = {
    "batch_size": [0, -1, 2.5, "3", True, None, 4],
    "shuffle": [True, False, 3, "yes"],
    "sampler": [[1, 2], 5],
    "batch_sampler": [[[1], [2]], 5],
    "num_workers": [-1, 2],
    "drop_last": [True, "yes", 1],
    "timeout": [-1, 3],
    "prefetch_factor": [2, -1],
    "persistent_workers": [True],
    "multiprocessing_context": ["fork", "no such", multiprocessing.get_context("spawn"), 3],
    "pin_memory": [True],
    "in_order": [False],
}
PAIRS = [
    dict([one, other])
    for (one, other) in itertools.combinations(
        [(name, value) for name, values in MAP_OPTIONS.items() for value in values], 2
    )
    if one[0] != other[0]
]
# What torch's constructor takes, and means something else or fails over later: ours does not.
TAKEN_IN_SILENCE = [
    ("shuffle", 3),
    ("shuffle", "yes"),
    ("sampler", 5),
    ("batch_sampler", 5),
    ("drop_last", "yes"),
]
SINGLES = [{name: value} for name, values in MAP_OPTIONS.items() for value in values]


class TestErrors:
    @pytest.mark.parametrize(
        "dataset",
        [
            pytest.param(range(10), id="map"),
            pytest.param([], id="empty"),
            pytest.param(Stream(), id="stream"),
            pytest.param(SizedStream(), id="sized stream"),
            pytest.param(object(), id="neither"),
        ],
    )
    def test_are_torchs_for_one_option_and_for_any_two(self, dataset: Any) -> None:
        wrong = []
        for options in [{}, *SINGLES, *PAIRS]:
            theirs = outcome(torch_data.DataLoader, dataset, options)
            ours = outcome(DataLoader, dataset, options)
            if theirs[0] == "" and any(option in TAKEN_IN_SILENCE for option in options.items()):
                if "Write DataLoader(" not in ours[1]:
                    wrong.append((options, theirs, ours))
            elif ours[0] != theirs[0] or theirs[1] not in ours[1]:
                wrong.append((options, theirs, ours))
        assert not wrong, f"{len(wrong)} of {len(PAIRS)} differ, such as {wrong[:3]}"

    @pytest.mark.parametrize(
        ("options", "first"),
        [
            (
                {"sampler": [1], "shuffle": True, "batch_sampler": [[1]]},
                "sampler option is mutually",
            ),
            ({"batch_sampler": [[1]], "batch_size": 2}, "batch_sampler option is mutually"),
            ({"batch_sampler": [[1]], "drop_last": True}, "batch_sampler option is mutually"),
            ({"batch_size": None, "drop_last": True}, "batch_size=None option disables"),
            ({"persistent_workers": True}, "persistent_workers option needs"),
            ({"prefetch_factor": 2}, "prefetch_factor option could only"),
            ({"multiprocessing_context": "fork"}, "multiprocessing_context can only"),
            ({"num_workers": -1, "timeout": -1}, "num_workers option should be non-negative"),
            ({"timeout": -1, "batch_size": None, "drop_last": True}, "timeout option should be"),
        ],
    )
    def test_come_in_torchs_order(self, options: Any, first: str) -> None:
        with pytest.raises(ValueError, match=first):
            DataLoader(range(10), **options)

    def test_of_a_stream_come_before_a_samplers_type(self) -> None:
        for options in ({"shuffle": True}, {"sampler": 5}, {"batch_sampler": 5}):
            with pytest.raises(ValueError, match="IterableDataset"):
                DataLoader(Stream(), **options)

    @pytest.mark.parametrize("batch_size", [0, -3, 2.5, "4", True])
    def test_of_a_batch_size_say_what_to_write(self, batch_size: Any) -> None:
        with pytest.raises(OptionError, match="batch_size=32") as caught:
            DataLoader(range(10), batch_size=batch_size)
        assert f"batch_size={batch_size}" in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert not isinstance(batch_size, str) or repr(batch_size) in str(caught.value)

    @pytest.mark.parametrize("num_workers", ["4", "all", 2.0, None])
    def test_of_a_number_of_workers_is_a_type_error_at_once(self, num_workers: Any) -> None:
        with pytest.raises(TypeError, match="num_workers='auto'") as caught:
            DataLoader(range(10), num_workers=num_workers)
        assert isinstance(caught.value, OptionError)
        assert repr(num_workers) in str(caught.value)

    def test_of_a_number_of_workers_that_works_in_torch_does_not_come(self) -> None:
        for num_workers in (0.0, False, np.int64(0)):
            assert len(list(DataLoader(range(3), num_workers=num_workers))) == 3  # type: ignore[arg-type]

    @pytest.mark.parametrize("seed", ["a", 1.5])
    def test_of_a_seed_come_at_once(self, seed: Any) -> None:
        with pytest.raises(OptionError, match=f"seed={seed!r} is no integer"):
            DataLoader(range(10), seed=seed)

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize(
        ("dataset", "says"),
        [
            ((i for i in range(3)), r"'generator' has no len\(\)"),
            (torch_data.Dataset(), r"Add def __len__"),
        ],
    )
    def test_of_a_dataset_without_a_length_name_it_and_streams(
        self, dataset: Any, says: str, shuffle: bool
    ) -> None:
        with pytest.raises(TypeError, match=says) as caught:
            list(DataLoader(dataset, shuffle=shuffle))
        assert "IterableDataset with def __iter__" in str(caught.value)
        assert "__len__" in str(caught.value)

    def test_of_a_dataset_without_a_length_do_not_come_with_a_sampler_of_ones_own(self) -> None:
        class Squares(torch_data.Dataset[int]):
            def __getitem__(self, index: int) -> int:
                return index**2

        assert [int(x) for x in DataLoader(Squares(), sampler=[2, 3])] == [4, 9]
        assert [x.tolist() for x in DataLoader(Squares(), batch_sampler=[[2, 3]])] == [[4, 9]]

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_of_a_dict_say_what_makes_a_dataset_of_it(self, shuffle: bool) -> None:
        for column, line in ((torch.zeros(4), "StackDataset("), (np.zeros(4), "ArrayDataset(")):
            columns: Any = {"x": column, "y": column}
            with pytest.raises(OptionError, match="a dict is no dataset") as caught:
                list(DataLoader(columns, shuffle=shuffle))
            assert f"headrace.{line}" in str(caught.value)
        assert len(list(DataLoader(StackDataset(x=torch.zeros(4))))) == 4

    def test_of_a_dict_of_samples_do_not_come(self) -> None:
        for samples in ({0: 5, 1: 6}, {}):
            assert [int(x) for x in DataLoader(samples)] == list(samples.values())  # type: ignore[arg-type]
        assert [int(x) for x in DataLoader({"a": 5}, sampler=["a"])] == [5]  # type: ignore[arg-type]

    def test_of_a_batch_sampler_in_a_samplers_place_name_the_right_option(self) -> None:
        batches = BucketBatchSampler([1, 2, 3, 4], batch_size=2)
        for options in ({}, {"batch_size": 2}):
            with pytest.raises(OptionError, match="Write batch_sampler= for sampler="):
                DataLoader(range(4), sampler=batches, **options)
        assert len(list(DataLoader(range(4), batch_sampler=batches))) == 2
        assert len(list(DataLoader(torch.arange(4), sampler=batches, batch_size=None))) == 2
        theirs = BatchSampler(range(4), 2, False)
        assert len(list(DataLoader(torch.arange(4), sampler=theirs))) == 2

    def test_of_a_stream_for_threads_name_the_way_out(self) -> None:
        with pytest.raises(OptionError, match="or leave backend= out") as caught:
            DataLoader(Stream(), num_workers=2, backend="thread")
        assert "Stream(self.files[index::count])" in str(caught.value)

    def test_of_an_empty_dataset_come_shuffled_only(self) -> None:
        assert list(DataLoader([], batch_size=2)) == []
        with pytest.raises(ValueError, match="num_samples"):
            DataLoader([], shuffle=True)

    def test_of_an_empty_tensor_dataset_too(self) -> None:
        empty = TensorDataset(torch.empty(0, 3))
        assert list(DataLoader(empty)) == []
        assert len(DataLoader(empty)) == 0
        with pytest.raises(ValueError, match="num_samples"):
            DataLoader(empty, shuffle=True)

    def test_of_a_timeout_without_workers_come_at_iter(self) -> None:
        loader = DataLoader(range(3), timeout=3)
        with pytest.raises(AssertionError, match="num_workers=1"):
            iter(loader)


class TestSignature:
    def test_is_torchs_in_order_kind_and_default(self) -> None:
        ours = inspect.signature(DataLoader).parameters
        theirs = inspect.signature(torch_data.DataLoader).parameters
        assert list(ours)[: len(theirs)] == list(theirs)
        for name, parameter in theirs.items():
            assert ours[name].default == parameter.default, name
            assert ours[name].kind == parameter.kind, name

    def test_has_its_own_options_behind_by_keyword_and_as_attributes(self) -> None:
        ours = inspect.signature(DataLoader).parameters
        own = list(ours)[len(inspect.signature(torch_data.DataLoader).parameters) :]
        loader = DataLoader(range(3))
        for name in own:
            assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert getattr(loader, name) == ours[name].default

    def test_takes_torchs_options_by_position(self) -> None:
        loader = DataLoader(range(10), 3, False, None, None, 0, list, False, True, 0, None)
        assert list(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]

    def test_attributes_are_torchs(self) -> None:
        options: dict[str, Any] = {"batch_size": 3, "drop_last": True, "shuffle": True}
        ours, theirs = DataLoader(range(9), **options), torch_data.DataLoader(range(9), **options)
        public = [name for name in vars(theirs) if not name.startswith("_")]
        assert set(public) <= set(vars(ours))
        for name in public:
            mine, its = getattr(ours, name), getattr(theirs, name)
            assert type(mine) is type(its), name
            if not isinstance(its, (BatchSampler, RandomSampler)):
                assert mine == its, name

    def test_another_library_can_rebuild_a_loader_from_its_attributes(self) -> None:
        """What Lightning and Accelerate do to replace the sampler."""
        loader = DataLoader(range(10), 4, generator=torch.Generator(), drop_last=True)
        names = set(inspect.signature(type(loader).__init__).parameters)
        options = {k: v for k, v in vars(loader).items() if k in names}
        for name in ("batch_size", "drop_last", "sampler", "shuffle"):
            options.pop(name, None)
        options["batch_sampler"] = BatchSampler(range(9, -1, -1), 4, False)
        assert [b.tolist() for b in type(loader)(**options)] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]


class TestIdentity:
    def test_is_a_torch_loader(self) -> None:
        assert isinstance(DataLoader(range(3)), torch_data.DataLoader)
        assert issubclass(DataLoader, torch_data.DataLoader)

    def test_is_generic(self) -> None:
        loader: DataLoader[int] = DataLoader[int](range(3))
        assert [int(x) for x in loader] == [0, 1, 2]

        class Mine(DataLoader[torch.Tensor]):
            pass

        assert len(list(Mine(range(3)))) == 3

    def test_can_be_subclassed(self) -> None:
        class Mine(DataLoader[Any]):
            def __init__(self, *args: Any, **options: Any) -> None:
                self.before = 1
                super().__init__(*args, **options)
                self.after = 2

            def __iter__(self) -> Any:
                return (batch * 2 for batch in super().__iter__())

        loader = Mine(range(3), batch_size=3)
        assert [b.tolist() for b in loader] == [[0, 2, 4]]
        assert (loader.before, loader.after) == (1, 2)

    @pytest.mark.parametrize(
        "name",
        ["batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"],
    )
    def test_attributes_are_locked_after_construction(self, name: str) -> None:
        loader = DataLoader(range(3))
        with pytest.raises(ValueError, match=f"{name} attribute should not be set after"):
            setattr(loader, name, None)

    @pytest.mark.parametrize("name", ["collate_fn", "num_workers", "pin_memory", "generator"])
    def test_other_attributes_are_not(self, name: str) -> None:
        loader = DataLoader(range(3))
        setattr(loader, name, None)

    def test_a_collate_function_that_is_replaced_is_used(self) -> None:
        loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
        list(loader)
        loader.collate_fn = len
        assert list(loader) == [2, 2]

    def test_constructing_starts_nothing(self) -> None:
        class Untouchable(torch_data.Dataset[int]):
            def __len__(self) -> int:
                return 10

            def __getitem__(self, index: int) -> int:
                raise AssertionError

        before = torch.get_rng_state()
        with pytest.warns(UserWarning, match="will create 1000 worker processes"):
            DataLoader(Untouchable(), num_workers=1000, shuffle=True)
        assert torch.equal(torch.get_rng_state(), before)
        assert multiprocessing.active_children() == []


class TestLength:
    def test_stays_live(self) -> None:
        data = [1, 2, 3]
        loader = DataLoader(data, batch_size=2)
        assert len(loader) == 2
        data += [4, 5]
        assert len(loader) == 3
        assert [b.tolist() for b in loader] == [[1, 2], [3, 4], [5]]

    @pytest.mark.filterwarnings("ignore:the epoch gave no batch")
    @pytest.mark.parametrize("n", [0, 1, 4, 5, 6])
    @pytest.mark.parametrize("drop_last", [False, True])
    def test_is_the_number_of_batches(self, n: int, drop_last: bool) -> None:
        for data in (range(n), TensorDataset(torch.arange(n))):
            loader = DataLoader(data, batch_size=2, drop_last=drop_last)
            assert len(loader) == len(list(loader)) == (n // 2 if drop_last else -(-n // 2))
            assert len(iter(loader)) == len(loader)

    def test_without_one_is_a_type_error(self) -> None:
        with pytest.raises(TypeError):
            len(DataLoader(Stream()))
        with pytest.raises(TypeError):
            len(DataLoader(range(3), sampler=iter([1, 2])))

    @pytest.mark.parametrize("batch_size", [1, 2, None])
    @pytest.mark.parametrize("drop_last", [False, True])
    def test_of_a_stream_is_torchs(self, batch_size: Any, drop_last: bool) -> None:
        options = {"batch_size": batch_size, "drop_last": drop_last and batch_size is not None}
        assert len(DataLoader(SizedStream(), **options)) == len(
            torch_data.DataLoader(SizedStream(), **options)
        )

    def test_that_a_stream_exceeds_is_torchs_warning(self) -> None:
        class More(Stream):
            def __len__(self) -> int:
                return 3

        def heard(cls: Any, ask: bool, **options: Any) -> list[str]:
            loader = cls(More(), **options)
            if ask:
                len(loader)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                batches = list(loader)
            assert len(batches) == (3 if "batch_size" in options else 5)
            return [
                f"{w.category.__name__} {w.message}".split(" object at ")[0]
                + str(w.message).split("reported to be")[-1]
                for w in caught
            ]

        for ask in (True, False):
            for options in ({}, {"batch_size": 2}):
                ours = heard(DataLoader, ask, **options)
                assert ours == heard(torch_data.DataLoader, ask, **options)
        assert len(heard(DataLoader, True)) == 2

    def test_warning_points_at_the_users_line(self) -> None:
        class More(Stream):
            def __len__(self) -> int:
                return 0

        loader = DataLoader(More())
        len(loader)
        with pytest.warns(UserWarning, match="reported to be 0") as caught:
            next(iter(loader))
        assert caught[0].filename == __file__


class TestCopies:
    @pytest.mark.parametrize(
        "clone",
        [
            pytest.param(lambda x: pickle.loads(pickle.dumps(x)), id="pickle"),
            pytest.param(copy.copy, id="copy"),
            pytest.param(copy.deepcopy, id="deepcopy"),
        ],
    )
    def test_work_and_stay_locked(self, clone: Any) -> None:
        loader = DataLoader(TensorDataset(torch.arange(20_000.0)), batch_size=10_000, shuffle=True)
        list(loader)
        other = clone(loader)
        assert type(other) is DataLoader
        assert other.statistics().batches == 0
        assert loader.statistics().batches == 2
        torch.manual_seed(0)
        mine = [x for (x,) in loader]
        torch.manual_seed(0)
        theirs = [x for (x,) in other]
        assert all(map(torch.equal, mine, theirs))
        with pytest.raises(ValueError, match="should not be set"):
            other.batch_size = 3

    def test_may_be_made_while_an_epoch_runs(self) -> None:
        loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2)
        batches = iter(loader)
        next(batches)
        other = pickle.loads(pickle.dumps(loader))
        assert len(list(other)) == 3
        assert len(list(batches)) == 2

    def test_of_an_iterator_are_an_error(self) -> None:
        for data in (TensorDataset(torch.arange(6)), range(6)):
            batches = iter(DataLoader(data))
            for clone in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(NotImplementedError, match="cannot be pickled"):
                    clone(batches)


class TestShuffle:
    def test_by_any_truth_is_shuffled(self) -> None:
        for value in (True, 1, np.True_):
            assert isinstance(DataLoader(range(9), shuffle=value).sampler, RandomSampler)
        for value in (False, 0, None, np.False_):
            assert isinstance(DataLoader(range(9), shuffle=value).sampler, SequentialSampler)


class TestPinMemory:
    @pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
    @pytest.mark.parametrize("data", [range(4), TensorDataset(torch.arange(4))])
    def test_without_an_accelerator_is_one_warning_and_no_failure(self, data: Any) -> None:
        loader = DataLoader(data, batch_size=2, pin_memory=True)
        with pytest.warns(UserWarning, match="no accelerator is found") as caught:
            assert len(list(loader)) == 2
        assert len(caught) == 1
        assert caught[0].filename == __file__
