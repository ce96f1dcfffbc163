"""``on_error="skip"``: what is left out, where it is listed, and when it is too much."""

import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data.datapipes.iter import IterableWrapper

import headrace
from headrace import DataLoader, IterableDataset, TooManySkippedError

WAYS = [{}, {"num_workers": 2}, {"num_workers": 2, "backend": "thread"}]


class Partly(headrace.Dataset):
    """Its samples are their indices; some cannot be read."""

    def __init__(self, bad=(), length=20):
        self.bad, self.length = frozenset(bad), length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f"cannot read file {index}")
        return index


def read(dataset, **options):
    """All batches, the loader, and what was warned of."""
    loader = DataLoader(dataset, batch_size=4, on_error="skip", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = [batch.tolist() for batch in loader]
    return batches, loader.statistics(), [str(w.message) for w in caught], caught


@pytest.mark.parametrize("options", WAYS, ids=str)
class TestEveryBackend:
    def test_samples_that_raise_are_left_out_and_listed(self, options):
        batches, stats, told, caught = read(Partly({1, 6, 7}), **options)
        assert batches == [[0, 2, 3], [4, 5], *([n, n + 1, n + 2, n + 3] for n in (8, 12, 16))]
        assert (stats.samples, stats.batches, stats.skipped) == (17, 5, 3)
        assert [s.index for s in stats.skipped_samples] == [1, 6, 7]
        assert [str(s.exception) for s in stats.skipped_samples] == [
            f"cannot read file {n}" for n in (1, 6, 7)
        ]
        assert all(type(s.exception) is OSError for s in stats.skipped_samples)
        assert len(told) == 1
        assert "left 3 samples out of this epoch: index 1 (OSError: cannot read file 1)" in told[0]
        assert caught[0].filename == __file__

    def test_a_batch_that_loses_all_is_left_out(self, options):
        batches, stats, *_ = read(Partly(range(4, 8)), **options)
        assert batches == [[0, 1, 2, 3], *([n, n + 1, n + 2, n + 3] for n in (8, 12, 16))]
        assert stats.batches == 4

    def test_where_nothing_can_be_read_there_are_no_batches(self, options):
        batches, stats, told, _ = read(Partly(range(20)), **options)
        assert batches == []
        assert stats.skipped == 20
        assert "and 17 more" in told[0]

    @pytest.mark.filterwarnings("ignore:on_error='skip' left")
    def test_last_indices_are_those_of_the_samples_that_came(self, options):
        loader = DataLoader(
            Partly({1, 6, 7, 8, 9, 10, 11}), batch_size=4, on_error="skip", shuffle=True, **options
        )
        for batch in loader:
            assert loader.last_indices() == batch.tolist()

    def test_more_than_max_errors_is_an_error(self, options):
        loader = DataLoader(
            Partly({1, 5, 9}), batch_size=4, on_error="skip", max_errors=2, **options
        )
        iterator = iter(loader)
        assert next(iterator).tolist() == [0, 2, 3]
        assert next(iterator).tolist() == [4, 6, 7]
        with pytest.raises(TooManySkippedError, match="3 samples of this epoch raised") as caught:
            next(iterator)
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(TooManySkippedError):
            next(iterator)

    def test_persistent_workers_are_there_again_after_it(self, options):
        kept = {"persistent_workers": True} if options else {}
        dataset = Partly({1, 2})
        loader = DataLoader(dataset, batch_size=4, on_error="skip", max_errors=1, **options, **kept)
        for _ in range(2):
            with pytest.raises(TooManySkippedError):
                list(loader)
        dataset.bad = ()
        assert len(list(loader)) == 5

    def test_as_many_as_max_errors_are_not(self, options):
        batches, *_ = read(Partly({1, 5, 9}), max_errors=3, **options)
        assert sum(map(len, batches)) == 17

    @pytest.mark.parametrize("given", [1, 2])
    def test_max_errors_counts_over_a_resume(self, options, given):
        def loader():
            return DataLoader(
                Partly({1, 5, 9}), batch_size=4, on_error="skip", max_errors=2, **options
            )

        first = loader()
        iterator = iter(first)
        for _ in range(given):
            next(iterator)
        for _ in range(2):  # and over a state that was loaded, and saved again
            first, state = loader(), first.state_dict()
            first.load_state_dict(json.loads(json.dumps(state)))
        with pytest.raises(TooManySkippedError, match="3 samples of this epoch raised"):
            list(first)
        assert first.statistics().skipped == 3 - given  # of this program

    def test_the_next_epoch_counts_anew(self, options):
        def loader():
            return DataLoader(
                Partly({1, 5}), batch_size=4, on_error="skip", max_errors=2, **options
            )

        first = loader()
        iterator = iter(first)
        next(iterator)
        second = loader()
        second.load_state_dict(first.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [sum(len(batch) for batch in second) for _ in range(2)] == [15, 18]

    def test_the_place_in_the_epoch_counts_steps_not_batches(self, options):
        def loader():
            return DataLoader(
                Partly({0, 1, 2, 3, 9}), batch_size=4, on_error="skip", shuffle=False, **options
            )

        whole = read(Partly({0, 1, 2, 3, 9}), **options)[0]
        first = loader()
        iterator = iter(first)
        taken = [next(iterator).tolist(), next(iterator).tolist()]
        second = loader()
        second.load_state_dict(first.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert taken + [batch.tolist() for batch in second] == whole


def test_each_epoch_warns_of_its_own():
    loader = DataLoader(Partly({3}), on_error="skip")
    for _ in range(2):
        with pytest.warns(UserWarning, match="left 1 sample out"):
            list(loader)
    assert loader.statistics().skipped == 2


def test_getitems_is_asked_again_one_by_one():
    class Many(Partly):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    assert read(Many({2}))[0][0] == [0, 1, 3]


def test_a_dataset_that_only_has_getitems():
    class Only:
        def __len__(self):
            return 8

        def __getitems__(self, indices):
            if 2 in indices:
                raise OSError("cannot read 2")
            return indices

    batches, stats, *_ = read(Only())
    assert batches == [[0, 1, 3], [4, 5, 6, 7]]
    assert [(s.index, type(s.exception)) for s in stats.skipped_samples] == [(2, OSError)]


def test_each_sample_is_asked_for_once():
    class Asked(Partly):
        asked = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    read(Asked({2}))
    assert Asked.asked == list(range(20))


def test_a_sample_that_fits_no_other_is_left_out():
    class Shapes(Partly):
        def __getitem__(self, index):
            if index == 5:
                return {"x": None}
            if index == 10:
                return {}
            return {"x": torch.zeros(3 if index in (0, 18) else 2)}

    loader = DataLoader(Shapes(), batch_size=4, on_error="skip")
    with pytest.warns(UserWarning, match="left 4 samples out"):
        sizes = [len(batch["x"]) for batch in loader]
    assert sizes == [3, 3, 3, 4, 3]
    listed = loader.statistics().skipped_samples
    assert [s.index for s in listed] == [0, 5, 10, 18]
    assert listed[0].key == "sample['x']"
    assert loader.last_indices() is None


def test_single_samples_without_batching():
    loader = DataLoader(Partly({1}, length=3), batch_size=None, on_error="skip")
    with pytest.warns(UserWarning, match="left 1 sample out"):
        assert list(loader) == [0, 2]


def test_errors_of_a_collate_function_are_not_skipped():
    def collate(samples):
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        list(DataLoader(Partly(), on_error="skip", collate_fn=collate))


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return Items(self.items)


class Items:
    def __init__(self, items):
        self.left = list(items)

    def __next__(self):
        if not self.left:
            raise StopIteration
        item = self.left.pop(0)
        if item is None:
            raise OSError("broken record")
        return item


@pytest.mark.parametrize("options", [*WAYS[:1], {"num_workers": 1}], ids=str)
def test_a_stream_that_can_go_on_does(options):
    batches, stats, told, _ = read(Stream([0, None, 1, 2, 3, None, 4]), **options)
    assert batches == [[0, 1, 2, 3], [4]]
    assert [s.index for s in stats.skipped_samples] == [None, None]
    assert "a sample (OSError: broken record)" in told[0]


def test_a_stream_leaves_out_what_does_not_fit():
    items = [torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(2)]
    loader = DataLoader(Stream(items), batch_size=3, on_error="skip")
    with pytest.warns(UserWarning, match="left 1 sample out"):
        assert [len(batch) for batch in loader] == [2, 1]
    assert loader.statistics().skipped_samples[0].index is None


def test_a_generator_cannot_and_that_is_an_error():
    class Generates(IterableDataset):
        def __iter__(self):
            yield 1
            raise OSError("broken")

    with pytest.raises(OSError, match="broken") as caught:
        list(DataLoader(Generates(), on_error="skip"))
    assert "a generator ends when it raises" in str(caught.value.__notes__)


def test_a_state_says_how_many_were_left_out_where_some_were():
    loader = DataLoader(Partly({5}), batch_size=4, on_error="skip", max_errors=1)
    iterator = iter(loader)
    next(iterator)
    assert "skipped" not in loader.state_dict()  # it is what older versions write
    next(iterator)
    state = loader.state_dict()
    assert state["skipped"] == 1
    for damaged in ({**state, "skipped": 0}, {**state, "skipped": -1}, {**state, "skipped": "1"}):
        with pytest.raises(headrace.StateError, match=r"skipped|checksum"):
            loader.load_state_dict(damaged)
    without = {key: value for key, value in state.items() if key != "skipped"}
    with pytest.raises(headrace.StateError, match="checksum"):
        loader.load_state_dict(without)


def test_wrong_options_say_what_to_write():
    with pytest.raises(headrace.OptionError, match="on_error='ignore' is not one of"):
        DataLoader(Partly(), on_error="ignore")
    with pytest.raises(headrace.OptionError, match="on_error='skip', max_errors=3"):
        DataLoader(Partly(), max_errors=3)
    with pytest.raises(headrace.OptionError, match="is no count"):
        DataLoader(Partly(), on_error="skip", max_errors=-1)


def test_what_torch_iterates_itself_knows_none_of_it():
    pipe = IterableWrapper(range(4))
    assert len(list(DataLoader(pipe))) == 4
    with pytest.raises(headrace.OptionError, match="knows no on_error="):
        iter(DataLoader(pipe, on_error="skip"))
    with pytest.raises(headrace.OptionError, match="knows no device="):
        iter(DataLoader(pipe, device="meta"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    length=st.integers(1, 30),
    bad=st.sets(st.integers(0, 29)),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_exactly_the_others_come_in_their_order(length, bad, batch_size, seed):
    def order(dataset, **options):
        torch.manual_seed(seed)
        loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [batch.tolist() for batch in loader], loader.statistics()

    whole, _ = order(Partly(length=length))
    kept, stats = order(Partly(bad, length), on_error="skip")
    wanted = [[n for n in batch if n not in bad] for batch in whole]
    assert kept == [batch for batch in wanted if batch]
    assert [s.index for s in stats.skipped_samples] == [n for b in whole for n in b if n in bad]
