"""From indices to a batch: what user code may be, and what is said when it fails."""

import contextlib
import gc
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler

from headrace import (
    CollateError,
    DataLoader,
    DatasetStoppedError,
    MissingKeyError,
    NotCollatableError,
    ShapeMismatchError,
    get_worker_info,
)
from oracle import assert_programs_agree


class Squares(Dataset[Any]):
    """Fails where it is told to."""

    def __init__(self, n: int = 10, **fails: BaseException) -> None:
        self.n = n
        self.fails = {int(name[1:]): error for name, error in fails.items()}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if int(index) in self.fails:
            raise self.fails[int(index)]
        return index * index


def outcomes(loader: Any) -> list[Any]:
    """Every batch as a list, every exception as its type, to the end of the epoch."""
    batches = iter(loader)
    seen: list[Any] = []
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return seen
        except Exception as error:
            seen.append(type(error))
        else:
            seen.append(batch.tolist() if isinstance(batch, torch.Tensor) else batch)


class UserError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code)
        self.hint = hint


class TestExceptions:
    def test_keep_their_type_traceback_and_attributes(self) -> None:
        loader = DataLoader(Squares(_3=UserError(7, hint="x")), batch_size=2)
        with pytest.raises(UserError) as caught:
            list(loader)
        assert caught.value.hint == "x"
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert "raise self.fails[int(index)]" in [frame.line for frame in frames]

    def test_carry_the_index_as_a_note(self) -> None:
        with pytest.raises(OSError, match="disk") as caught:
            list(DataLoader(Squares(_5=OSError("disk")), batch_size=4))
        assert caught.value.__notes__ == ["headrace: while fetching dataset index 5"]

    def test_carry_the_index_without_batching(self) -> None:
        with pytest.raises(OSError, match="disk") as caught:
            list(DataLoader(Squares(_5=OSError("disk")), batch_size=None))
        assert caught.value.__notes__ == ["headrace: while fetching dataset index 5"]

    def test_of_getitems_carry_the_indices_that_were_asked_for(self) -> None:
        class Many(Squares):
            def __getitems__(self, indices: list[int]) -> list[int]:
                raise OSError("disk")

        with pytest.raises(OSError, match="disk") as caught:
            list(DataLoader(Many(), batch_size=4))
        assert caught.value.__notes__ == ["headrace: while fetching dataset indices [0, 1, 2, 3]"]

    def test_of_a_collate_function_carry_the_indices_a_few_of_many(self) -> None:
        def collate(samples: list[int]) -> int:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no") as caught:
            list(DataLoader(Squares(100), batch_size=50, collate_fn=collate))
        (note,) = caught.value.__notes__
        assert "[0, 1, 2, 3, 4, 5, 6, 7, ... 50 in all]" in note

    @pytest.mark.parametrize("indices", [{1, 3}, (1, 3), np.array([1, 3]), torch.tensor([1, 3])])
    def test_carry_indices_of_any_container(self, indices: Any) -> None:
        with pytest.raises(OSError, match="disk") as caught:
            list(DataLoader(Squares(_3=OSError("disk")), batch_sampler=[indices]))
        assert "3" in caught.value.__notes__[0]

    @pytest.mark.parametrize("batch_size", [1, 3, None])
    @pytest.mark.parametrize("at_once", [False, True])
    def test_cost_one_batch_and_iteration_goes_on(self, batch_size: Any, at_once: bool) -> None:
        class Many(Squares):
            def __getitems__(self, indices: list[int]) -> list[int]:
                return [self[i] for i in indices]

        cls = Many if at_once else Squares

        def program(loader: Any) -> Any:
            fails = {"_0": KeyError("a"), "_4": OSError("b"), "_9": IndexError("c")}
            return outcomes(loader(cls(**fails), batch_size=batch_size))

        seen = assert_programs_agree(program)
        assert KeyError in seen
        assert IndexError in seen

    def test_of_a_sampler_come_through_as_they_are(self) -> None:
        class Sampler:
            def __iter__(self) -> Iterator[int]:
                yield 1
                raise LookupError("no more")

            def __len__(self) -> int:
                return 2

        def program(loader: Any) -> Any:
            return outcomes(loader(Squares(), sampler=Sampler()))

        assert assert_programs_agree(program) == [[1], LookupError]

    def test_of_a_sampler_that_can_go_on_do_not_end_the_epoch(self) -> None:
        class Sampler:
            """Not a generator: an exception does not end it."""

            def __init__(self) -> None:
                self.step = 0

            def __iter__(self) -> "Sampler":
                self.step = 0
                return self

            def __next__(self) -> list[int]:
                self.step += 1
                if self.step == 2:
                    raise LookupError
                if self.step > 4:
                    raise StopIteration
                return [self.step]

        def program(loader: Any) -> Any:
            tensors = torch.utils.data.TensorDataset(torch.arange(10))
            return [
                outcomes(loader(Squares(), batch_sampler=Sampler())),
                [str(o) for o in outcomes(loader(tensors, batch_sampler=Sampler()))],
            ]

        assert assert_programs_agree(program)[0] == [[1], LookupError, [9], [16]]

    def test_hold_nothing_once_they_are_handled(self) -> None:
        class Sample:
            pass

        kept: list[Any] = []

        class Data(Squares):
            def __getitem__(self, index: int) -> int:
                sample = Sample()
                kept.append(weakref.ref(sample))
                raise OSError(index, sample)

        loader = DataLoader(Data())
        gc.collect()  # what other tests left must not hide it
        gc.disable()
        try:
            with contextlib.suppress(OSError):  # pytest.raises would hold it itself
                next(iter(loader))
            assert kept[0]() is None, "a circle of references holds the traceback"
        finally:
            gc.enable()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_that_are_no_errors_pass_through(self, error: Any) -> None:
        with pytest.raises(error):
            list(DataLoader(Squares(_3=error()), batch_size=2))

    @pytest.mark.parametrize("where", ["getitem", "getitems", "collate", "unbatched"])
    def test_stop_iteration_is_an_error_not_the_end(self, where: str) -> None:
        class Data(Squares):
            def __getitem__(self, index: int) -> int:
                if where in ("getitem", "unbatched") and index == 4:
                    raise StopIteration
                return index

        class Many(Data):
            def __getitems__(self, indices: list[int]) -> list[int]:
                if 4 in indices:
                    raise StopIteration
                return indices

        def collate(samples: Any) -> Any:
            if where == "collate" and 4 in samples:
                raise StopIteration
            return samples

        data = Many() if where == "getitems" else Data()
        batch_size = None if where == "unbatched" else 2
        loader = DataLoader(
            data, batch_size=batch_size, collate_fn=None if where == "unbatched" else collate
        )
        seen = outcomes(loader)
        assert seen.count(DatasetStoppedError) == 1
        assert len(seen) == len(loader)
        with pytest.raises(DatasetStoppedError, match="StopIteration") as caught:
            list(loader)
        assert isinstance(caught.value, RuntimeError)
        assert "4" in caught.value.__notes__[0]


class TestSamplesThatMakeNoBatch:
    def test_shapes_name_indices_path_and_both_shapes(self) -> None:
        data = [{"image": [torch.zeros(3, 8 if i == 4 else 9)]} for i in range(6)]
        with pytest.raises(ShapeMismatchError) as caught:
            list(DataLoader(data, batch_size=3))
        message = str(caught.value)
        assert "sample['image'][0]" in message
        assert "[3, 9]" in message
        assert "[3, 8]" in message
        assert "indices 3 and 4" in message
        assert isinstance(caught.value, RuntimeError)
        assert "stack expects each tensor to be equal size" in message
        assert caught.value.indices == (3, 4)

    def test_a_missing_key_names_index_and_key(self) -> None:
        data: list[Any] = [{"x": 1.0, "meta": {"id": 1, "age": 2}} for _ in range(6)]
        del data[5]["meta"]["age"]
        with pytest.raises(MissingKeyError) as caught:
            list(DataLoader(data, batch_size=6))
        message = str(caught.value)
        assert "'age'" in message
        assert "sample['meta']" in message
        assert "index 5" in message
        assert isinstance(caught.value, KeyError)

    def test_a_key_that_only_later_samples_have_is_not_dropped(self) -> None:
        with pytest.raises(MissingKeyError, match="'y'"):
            list(DataLoader([{"x": 1}, {"x": 1, "y": 2}], batch_size=2))

    def test_lengths_name_index_and_path(self) -> None:
        data = [(0, [1, 2]), (0, [1, 2, 3])]
        with pytest.raises(ShapeMismatchError, match=r"sample\[1\].*indices 0 and 1") as caught:
            list(DataLoader(data, batch_size=2))
        assert "each element in list of batch should be of equal size" in str(caught.value)

    def test_a_type_that_makes_no_batch_names_it_and_where(self) -> None:
        data = [{"id": 3, "when": object()}] * 2
        with pytest.raises(NotCollatableError, match=r"found <class 'object'>.*\['when'\]"):
            list(DataLoader(data, batch_size=2))

    def test_object_arrays_say_what_to_write(self) -> None:
        data = [np.array([{}, {}], object)] * 2
        with pytest.raises(NotCollatableError, match=r"object.*astype"):
            list(DataLoader(data, batch_size=2))

    def test_iteration_goes_on(self) -> None:
        data = [torch.zeros(2 + (i == 3)) for i in range(8)]
        kinds = [
            o if isinstance(o, type) else "batch" for o in outcomes(DataLoader(data, batch_size=2))
        ]
        assert kinds == ["batch", ShapeMismatchError, "batch", "batch"]

    def test_of_a_stream_are_named_by_their_place(self) -> None:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                yield torch.zeros(2)
                yield torch.zeros(3)
                yield torch.zeros(2)
                yield torch.zeros(2)

        with pytest.raises(CollateError, match=r"at entry 0 and .* at entry 1"):
            next(iter(DataLoader(Stream(), batch_size=2)))
        assert len(outcomes(DataLoader(Stream(), batch_size=2))) == 2


class TestWhatADatasetIsAsked:
    def test_indices_are_exactly_ints(self) -> None:
        kinds: set[type] = set()

        class Data(Squares):
            def __getitem__(self, index: int) -> int:
                kinds.add(type(index))
                return 0

        for options in ({}, {"shuffle": True}, {"batch_size": None}, {"drop_last": True}):
            list(DataLoader(Data(), **options))
        assert kinds == {int}

    def test_getitems_gets_a_list_of_ints_and_collate_its_result(self) -> None:
        asked: list[Any] = []

        class Many(Squares):
            def __getitem__(self, index: int) -> int:
                raise AssertionError("__getitems__ is there")

            def __getitems__(self, indices: list[int]) -> Any:
                asked.append(indices)
                return ("whole", indices)

        loader = DataLoader(Many(5), batch_size=3, collate_fn=lambda made: made)
        assert list(loader) == [("whole", [0, 1, 2]), ("whole", [3, 4])]
        assert [type(i) for i in asked] == [list, list]
        assert {type(i) for indices in asked for i in indices} == {int}

    def test_a_getitems_of_none_is_no_getitems(self) -> None:
        class Data(Squares):
            __getitems__ = None

        assert outcomes(DataLoader(Data(3), batch_size=2)) == [[0, 1], [4]]

    def test_getitems_is_not_used_without_batching(self) -> None:
        class Many(Squares):
            def __getitems__(self, indices: list[int]) -> list[int]:
                raise AssertionError

        assert list(DataLoader(Many(3), batch_size=None)) == [0, 1, 4]

    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (lambda: [3, 1, 2], {}),
            (lambda: (3, 1, 2), {}),
            (lambda: range(5, 9), {}),
            (lambda: tuple("abcde"), {}),
            (lambda: torch.arange(5.0), {}),
            (lambda: torch.eye(5), {}),
            (lambda: np.arange(5), {}),
            (lambda: np.eye(5), {}),
            (lambda: {0: 1.5, 1: 2.5}, {}),
            (lambda: {"a": 1.5, "b": 2.5}, {"sampler": ["b", "a"]}),
            (lambda: {"a": 1.5, "b": 2.5}, {"batch_sampler": [["b", "a"], ["a"]]}),
            (lambda: [(1, "a", 2.5, None, b"x")][:0], {}),
        ],
    )
    @pytest.mark.parametrize("batch_size", [2, None])
    def test_anything_sized_and_indexable_is_a_dataset(
        self, data: Any, options: Any, batch_size: Any
    ) -> None:
        if "batch_sampler" not in options:
            options = {**options, "batch_size": batch_size}
        assert_programs_agree(lambda loader: list(loader(data(), **options)))

    @pytest.mark.parametrize(
        "items",
        [
            pytest.param(lambda: [torch.tensor([0, 2]), torch.tensor([1])], id="tensors"),
            pytest.param(lambda: [[0, 2], [1]], id="lists"),
            pytest.param(lambda: [slice(0, 2)], id="slices"),
            pytest.param(lambda: torch.arange(6).split(4), id="split"),
            pytest.param(
                lambda: BatchSampler(SequentialSampler(range(6)), 4, False), id="BatchSampler"
            ),
        ],
    )
    def test_without_batching_it_gets_the_samplers_items_as_they_are(self, items: Any) -> None:
        asked: list[Any] = []

        class Data:
            def __len__(self) -> int:
                return 6

            def __getitem__(self, index: Any) -> Any:
                asked.append(index)
                return torch.arange(6.0)[index]

        def program(loader: Any) -> Any:
            asked.clear()
            batches = list(loader(Data(), batch_size=None, sampler=items()))
            tensors = torch.utils.data.TensorDataset(torch.arange(6.0))
            return [
                batches,
                [repr(i) for i in asked],
                list(loader(tensors, batch_size=None, sampler=items())),
            ]

        assert_programs_agree(program)

    def test_it_may_use_a_loader_of_its_own(self) -> None:
        class Bags(Squares):
            def __getitem__(self, index: int) -> Any:
                inner = DataLoader(Squares(30), batch_size=20, sampler=range(index, 30))
                return next(iter(inner))

        for batch, first in zip(DataLoader(Bags(4), batch_size=2), (0, 2), strict=True):
            assert batch.shape == (2, 20)
            assert batch[:, 0].tolist() == [first**2, (first + 1) ** 2]

    def test_there_is_no_worker_here(self) -> None:
        class Data(Squares):
            def __getitem__(self, index: int) -> int:
                assert get_worker_info() is None
                assert threading.current_thread() is threading.main_thread()
                return 1

        assert len(list(DataLoader(Data()))) == 10


class Batch:
    """A batch type of the user's own."""

    def __init__(self, samples: list[Any]) -> None:
        self.x = torch.tensor(samples)


class TestCollation:
    def test_custom_batches_pass_untouched(self) -> None:
        made: list[Any] = []

        def collate(samples: list[Any]) -> Batch:
            made.append(Batch(samples))
            return made[-1]

        batches = list(DataLoader(Squares(), batch_size=4, collate_fn=collate))
        assert all(a is b for a, b in zip(batches, made, strict=True))
        assert len(made) == 3

    def test_custom_samples_pass_untouched(self) -> None:
        samples = [object(), object(), object()]
        batches = list(DataLoader(samples, batch_size=2, collate_fn=lambda s: s))
        assert batches == [samples[:2], samples[2:]]
        single = list(DataLoader(samples, batch_size=None))
        assert all(a is b for a, b in zip(single, samples, strict=True))

    @pytest.mark.parametrize(
        "collate",
        [
            pytest.param(lambda s: s, id="lambda"),
            pytest.param(torch.stack, id="torch.stack"),
            pytest.param(list, id="list"),
            pytest.param(lambda s: None, id="None"),
            pytest.param(lambda s: {"x": torch.stack(s), "n": len(s)}, id="dict"),
            pytest.param(lambda s: torch.utils.data.default_collate(s) * 2, id="default times two"),
        ],
    )
    @pytest.mark.parametrize("data", [lambda: torch.eye(5), lambda: list(torch.eye(5))])
    def test_functions_of_any_kind(self, collate: Any, data: Any) -> None:
        assert_programs_agree(lambda loader: list(loader(data(), batch_size=2, collate_fn=collate)))

    def test_function_gets_a_list_of_samples(self) -> None:
        kinds = set()
        list(DataLoader(Squares(), batch_size=3, collate_fn=lambda s: kinds.add(type(s))))
        assert kinds == {list}

    def test_without_batching_gets_one_sample(self) -> None:
        got = []
        list(DataLoader(Squares(3), batch_size=None, collate_fn=got.append))
        assert got == [0, 1, 4]

    def test_a_tensor_dataset_with_a_function_is_not_gathered(self) -> None:
        def program(loader: Any) -> Any:
            data = torch.utils.data.TensorDataset(torch.arange(6.0), torch.arange(6))
            return list(
                loader(data, batch_size=2, collate_fn=lambda s: [len(s), type(s[0]).__name__])
            )

        assert assert_programs_agree(program) == [[2, "tuple"]] * 3


class TestStreams:
    def test_whose_iterator_cannot_be_iterated_itself(self) -> None:
        class Next:
            def __init__(self) -> None:
                self.at = 0

            def __next__(self) -> int:
                self.at += 1
                if self.at > 5:
                    raise StopIteration
                return self.at

        class Stream(IterableDataset[int]):
            def __iter__(self) -> Any:
                return Next()

        assert outcomes(DataLoader(Stream(), batch_size=2)) == [[1, 2], [3, 4], [5]]
        assert outcomes(DataLoader(Stream(), batch_size=None)) == [1, 2, 3, 4, 5]

    def test_go_on_after_an_exception_where_they_can(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Any:
                self.at = 0
                return self

            def __next__(self) -> int:
                self.at += 1
                if self.at == 4:
                    raise OSError("lost")
                if self.at > 9:
                    raise StopIteration
                return self.at

        def program(loader: Any) -> Any:
            return outcomes(loader(Stream(), batch_size=2))

        assert OSError in assert_programs_agree(program)

    def test_begin_at_iter_and_read_no_further_than_they_must(self) -> None:
        log: list[Any] = []

        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                log.append("iter")
                return self.numbers()

            def numbers(self) -> Iterator[int]:
                for i in range(6):
                    log.append(i)
                    yield i
                log.append("end")

        def program(loader: Any) -> Any:
            log.clear()
            batches = iter(loader(Stream(), batch_size=2))
            log.append("made")
            for _ in batches:
                log.append("batch")
            return list(log)

        assert_programs_agree(program)

    def test_that_fail_at_iter_fail_there(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                raise ConnectionError("no route")

        loader = DataLoader(Stream())
        with pytest.raises(ConnectionError):
            iter(loader)

    def test_stay_at_their_end(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                return iter(range(3))

        batches = iter(DataLoader(Stream(), batch_size=2))
        assert len(list(batches)) == 2
        with pytest.raises(StopIteration):
            next(batches)

    def test_each_epoch_iterates_again(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                return iter(range(3))

        loader = DataLoader(Stream(), batch_size=2)
        assert outcomes(loader) == outcomes(loader) == [[0, 1], [2]]
        assert outcomes(DataLoader(Stream(), batch_size=2, drop_last=True)) == [[0, 1]]
