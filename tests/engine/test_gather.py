"""What is gathered ahead must not be seen."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DistributedSampler,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from headrace import ArrayDataset, DataLoader, Leaf, SampleIndexError
from headrace.engine.making.gather import BLOCK_BYTES, MAX_BLOCK_BATCHES
from oracle import assert_programs_agree

N = 40


def wide() -> torch.Tensor:
    """Rows of 4 KiB: a block holds all of them."""
    return torch.arange(N * 1_024, dtype=torch.float32).reshape(N, -1)


class Asked:
    """A sampler that notes when it was asked, and answers with what the training last said."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.wanted = 0
        self.asked: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.n):
            self.asked.append(self.wanted)
            yield [self.wanted, (self.wanted + 1) % N]

    def __len__(self) -> int:
        return self.n


class TestEditsBetweenBatches:
    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(lambda x: x.add_(1), id="in-place method"),
            pytest.param(lambda x: x.__setitem__(slice(7, 30), 5.0), id="assignment"),
            pytest.param(lambda x: x[3].zero_(), id="through a view"),
            pytest.param(lambda x: x.view(-1)[::3].mul_(2), id="through a strided view"),
            pytest.param(lambda x: torch.sub(x, 1, out=x), id="out="),
            pytest.param(lambda x: x.copy_(x.flip(0)), id="copy_"),
            pytest.param(lambda x: x.normal_(generator=torch.Generator().manual_seed(1)), id="rng"),
            pytest.param(lambda x: x.index_fill_(0, torch.tensor([1, 38]), 9.0), id="index_fill_"),
        ],
    )
    @pytest.mark.parametrize("every", [1, 3])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_show_in_the_next_batch(self, edit: Any, every: int, shuffle: bool) -> None:
        def program(loader: Any) -> Any:
            x = wide()
            seen = []
            for step, batch in enumerate(loader(TensorDataset(x), batch_size=3, shuffle=shuffle)):
                seen.append(batch)
                if step % every == 0:
                    edit(x)
            return seen

        assert_programs_agree(program)

    def test_under_no_grad_and_inference_mode(self) -> None:
        def program(loader: Any) -> Any:
            x = wide()
            seen = []
            for step, batch in enumerate(loader(TensorDataset(x), batch_size=3)):
                seen.append(batch)
                with torch.inference_mode() if step % 2 else torch.no_grad():
                    x += step
            return seen

        assert_programs_agree(program)

    def test_of_one_of_several_wrapped_tensors(self) -> None:
        def program(loader: Any) -> Any:
            parts = [TensorDataset(wide(), torch.arange(N)) for _ in range(2)]
            whole = Subset(ConcatDataset(parts), range(1, 2 * N, 2))
            seen = []
            for batch in loader(whole, batch_size=4, shuffle=True):
                seen.append(batch)
                parts[1].tensors[1].add_(100)
            return seen

        assert_programs_agree(program)

    def test_of_a_base_show_in_a_dataset_of_its_view(self) -> None:
        def program(loader: Any) -> Any:
            base = torch.arange(200.0)
            seen = []
            for batch in loader(TensorDataset(base[50:150].view(20, 5)), batch_size=2):
                seen.append(batch)
                base.mul_(-1)
            return seen

        assert_programs_agree(program)

    def test_never_reach_a_batch_that_was_handed_out(self) -> None:
        x = wide()
        kept = []
        for batch in DataLoader(TensorDataset(x), batch_size=3):
            kept.append((batch[0], batch[0].clone()))
            x.add_(1)
        assert all(torch.equal(one, other) for one, other in kept)

    def test_of_tensors_made_in_inference_mode_are_seen_although_they_have_no_version(
        self,
    ) -> None:
        def program(loader: Any) -> Any:
            with torch.inference_mode():
                x = wide()
                seen = []
                for batch in loader(TensorDataset(x), batch_size=3):
                    seen.append(batch)
                    x.add_(1)
            return seen

        assert_programs_agree(program)

    def test_leave_the_generators_where_torch_leaves_them(self) -> None:
        def program(loader: Any) -> Any:
            x = wide()
            noise = []
            for _ in loader(TensorDataset(x), batch_size=3, shuffle=True):
                noise.append(torch.rand(2))
                x[0] += noise[-1][0]
            return noise

        assert_programs_agree(program)


class TestSamplersThatListen:
    def test_are_asked_exactly_when_a_batch_is_due(self) -> None:
        def program(loader: Any) -> Any:
            sampler = Asked(12)
            seen = []
            for step, (x,) in enumerate(loader(TensorDataset(wide()), batch_sampler=sampler)):
                seen.append(x[:, 0])
                sampler.wanted = int(x[0, 0]) // 1_024 % 30 + 2 + step % 5
                seen.append(list(sampler.asked))
            return seen

        assert_programs_agree(program)

    def test_under_a_batch_sampler_of_torch(self) -> None:
        def program(loader: Any) -> Any:
            hard = [0]

            class Hard:
                def __iter__(self) -> Iterator[int]:
                    while len(hard) < 9:
                        yield hard[-1]

                def __len__(self) -> int:
                    return 9

            seen = []
            for (x,) in loader(TensorDataset(wide()), sampler=Hard(), batch_size=2):
                seen.append(x[:, 0])
                hard.append(int(x[-1, 0]) // 1_024 % 30 + 3)
            return seen

        assert_programs_agree(program)

    def test_a_subclass_of_a_known_sampler_is_asked_too(self) -> None:
        def program(loader: Any) -> Any:
            class Backwards(RandomSampler):
                def __iter__(self) -> Iterator[int]:
                    return reversed(list(super().__iter__()))

            class Doubled(BatchSampler):
                def __iter__(self) -> Iterator[list[int]]:
                    for batch in super().__iter__():
                        yield batch * 2

            data = TensorDataset(wide())
            sampler = Backwards(data)
            return [
                list(loader(data, sampler=sampler, batch_size=3)),
                list(loader(data, batch_sampler=Doubled(sampler, 3, False))),
            ]

        assert_programs_agree(program)

    def test_epoch_set_after_iter_counts(self) -> None:
        def program(loader: Any) -> Any:
            data = TensorDataset(torch.arange(20))
            sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=3)
            batches = iter(loader(data, sampler=sampler, batch_size=3))
            sampler.set_epoch(7)
            return list(batches)

        assert_programs_agree(program)

    def test_seed_set_after_iter_counts(self) -> None:
        def program(loader: Any) -> Any:
            batches = iter(loader(TensorDataset(torch.arange(20)), shuffle=True, batch_size=3))
            torch.manual_seed(9)
            return list(batches)

        assert_programs_agree(program)

    @pytest.mark.parametrize(
        "batch",
        [
            pytest.param(lambda: [2, 1], id="list"),
            pytest.param(lambda: (2, 1), id="tuple"),
            pytest.param(lambda: {1, 2}, id="set"),
            pytest.param(lambda: range(3, 0, -1), id="range"),
            pytest.param(lambda: iter([2, 1]), id="iterator"),
            pytest.param(lambda: map(int, "21"), id="map"),
            pytest.param(lambda: np.array([2, -1]), id="array"),
            pytest.param(lambda: np.array([2, 1], np.uint8), id="unsigned array"),
            pytest.param(lambda: torch.tensor([2, -1]), id="tensor"),
            pytest.param(lambda: [np.int64(2), 1], id="NumPy integers"),
            pytest.param(lambda: [torch.tensor(2), torch.tensor(1)], id="tensors"),
            pytest.param(lambda: [slice(0, 2), slice(2, 4)], id="slices"),
            pytest.param(lambda: [True, True], id="booleans"),
            pytest.param(lambda: [None], id="None"),
            pytest.param(lambda: [[0, 1], [1, 2]], id="lists"),
        ],
    )
    def test_may_yield_batches_of_any_kind(self, batch: Any) -> None:
        def program(loader: Any) -> Any:
            return list(loader(TensorDataset(torch.arange(8.0)), batch_sampler=[batch(), batch()]))

        assert_programs_agree(program)


class TestIndicesOutsideTheDataset:
    """Torch's own samplers may have been made for another dataset: never a wrong row."""

    @pytest.mark.parametrize(
        "sampler",
        [
            pytest.param(lambda: SubsetRandomSampler([1, 3, 8, 2]), id="SubsetRandomSampler"),
            pytest.param(lambda: [1, 8, 2], id="a list"),
            pytest.param(lambda: [1, -9, 2], id="a negative one"),
            pytest.param(lambda: RandomSampler(range(9)), id="RandomSampler"),
            pytest.param(
                lambda: WeightedRandomSampler([0.0] * 8 + [1.0], 4), id="WeightedRandomSampler"
            ),
        ],
    )
    def test_are_an_error_that_names_them(self, sampler: Any) -> None:
        loader = DataLoader(TensorDataset(torch.arange(8)), sampler=sampler(), batch_size=2)
        with pytest.raises(SampleIndexError, match=r"index (8|-9) is out of range.*8 samples") as e:
            list(loader)
        assert isinstance(e.value, IndexError)
        assert "from 0 to 7" in str(e.value)

    @pytest.mark.parametrize("known", [True, False])
    def test_cost_their_own_batch_only(self, known: bool) -> None:
        def program(loader: Any) -> Any:
            wanted = [0, 1, 99, 3, 4, 5, 6, -99, 2]
            sampler = SubsetRandomSampler(wanted) if known else wanted
            batches = iter(loader(TensorDataset(torch.arange(8)), sampler=sampler, batch_size=2))
            seen: list[Any] = []
            while True:
                try:
                    seen.append(next(batches))
                except IndexError:
                    seen.append("IndexError")
                except StopIteration:
                    return seen

        seen = assert_programs_agree(program)
        assert seen.count("IndexError") in (1, 2)

    def test_that_are_negative_count_from_the_end(self) -> None:
        def program(loader: Any) -> Any:
            data = TensorDataset(torch.arange(8))
            return [
                list(loader(data, sampler=SubsetRandomSampler([-1, -8, 3]), batch_size=2)),
                list(loader(Subset(data, [-1, -2, 3]), sampler=[-1, 0, -3], batch_size=2)),
                list(loader(ConcatDataset([data, data]), sampler=[-1, -9, -16, 8], batch_size=3)),
            ]

        assert_programs_agree(program)

    def test_in_a_subset_fail_only_when_asked_for(self) -> None:
        data = Subset(TensorDataset(torch.arange(3)), [0, 7, 2])
        batches = iter(DataLoader(data))
        assert next(batches)[0].tolist() == [0]
        with pytest.raises(IndexError):
            next(batches)
        assert next(batches)[0].tolist() == [2]


class Failing:
    """A gatherer whose row 5 cannot be read."""

    watched: Sequence[torch.Tensor] | None = ()

    def __init__(self) -> None:
        self.spec = Leaf((), torch.int64)

    def __len__(self) -> int:
        return 12

    def gather(self, indices: Any, out: Any) -> None:
        if 5 in indices:
            raise OSError("row 5 is on a bad sector")
        out[0][...] = indices


class Readable(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        raise AssertionError("a dataset that gathers was asked for a sample")

    def __gather__(self) -> Failing:
        return Failing()


class TestErrors:
    @pytest.mark.parametrize("sampler", [None, range(12)])
    def test_of_a_gatherer_cost_one_batch(self, sampler: Any) -> None:
        batches = iter(DataLoader(Readable(), batch_size=2, sampler=sampler))
        assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
        with pytest.raises(OSError, match="bad sector"):
            next(batches)
        assert [b.tolist() for b in batches] == [[6, 7], [8, 9], [10, 11]]

    def test_of_a_gatherer_that_change_sides_are_found_after_an_edit(self) -> None:
        """A block that can be gathered the first time, and not again after an edit."""
        x = torch.arange(12)
        broken: list[bool] = []

        class Later(Failing):
            watched = [x]

            def gather(self, indices: Any, out: Any) -> None:
                if broken and 7 in indices:
                    raise OSError("gone")
                out[0][...] = x.numpy()[indices]

        class Data(Readable):
            def __gather__(self) -> Failing:
                return Later()

        batches = iter(DataLoader(Data(), batch_size=2))
        assert next(batches).tolist() == [0, 1]
        broken.append(True)
        x += 1
        assert next(batches).tolist() == [3, 4]
        assert next(batches).tolist() == [5, 6]
        with pytest.raises(OSError, match="gone"):
            next(batches)
        assert [b.tolist() for b in batches] == [[9, 10], [11, 12]]

    def test_of_the_iteration_end_it_for_good(self) -> None:
        batches = iter(DataLoader(TensorDataset(torch.arange(4)), batch_size=2))
        assert len(list(batches)) == 2
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(batches)


class TestBlocks:
    def test_hold_about_a_mebibyte_and_no_more_than_are_worth_it(self) -> None:
        asked: list[int] = []

        class Counting(Failing):
            def gather(self, indices: Any, out: Any) -> None:
                asked.append(len(indices))
                out[0][...] = 0

            def __len__(self) -> int:
                return 100_000

        class Data(Readable):
            shape: tuple[int, ...] = ()

            def __len__(self) -> int:
                return 100_000

            def __gather__(self) -> Failing:
                gatherer = Counting()
                gatherer.spec = Leaf(self.shape, torch.int64)
                return gatherer

        next(iter(DataLoader(Data())))
        assert asked == [MAX_BLOCK_BATCHES]
        wide_rows = Data()
        wide_rows.shape = (1_024,)
        asked.clear()
        next(iter(DataLoader(wide_rows, batch_size=10)))
        assert asked == [BLOCK_BYTES // 81_920 * 10]
        asked.clear()
        next(iter(DataLoader(wide_rows, batch_size=1_000)))
        assert asked == [1_000], "a batch that is larger than a block is one block"

    def test_are_single_batches_where_changes_cannot_be_seen(self) -> None:
        asked: list[int] = []

        class Unwatched(Failing):
            watched = None

            def gather(self, indices: Any, out: Any) -> None:
                asked.append(len(indices))
                out[0][...] = indices

        class Data(Readable):
            def __gather__(self) -> Failing:
                return Unwatched()

        for step, _ in enumerate(DataLoader(Data(), batch_size=5)):
            assert len(asked) == step + 1
        assert asked == [5, 5, 2]

    def test_are_made_for_the_first_batch_not_before(self) -> None:
        x = torch.arange(10)
        batches = iter(DataLoader(TensorDataset(x), batch_size=5))
        x.add_(1)
        assert next(batches)[0].tolist() == [1, 2, 3, 4, 5]

    def test_of_columns_of_very_different_width(self) -> None:
        def program(loader: Any) -> Any:
            data = TensorDataset(wide(), torch.arange(N, dtype=torch.uint8), torch.empty(N, 0))
            return list(loader(data, batch_size=7, shuffle=True))

        assert_programs_agree(program)


class TestModes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_batches_made_in_inference_mode_are_inference_tensors(self, dtype: Any) -> None:
        def program(loader: Any) -> Any:
            batches = iter(loader(TensorDataset(wide().to(dtype)), batch_size=4))
            with torch.inference_mode():
                first = next(batches)
            return [first, next(batches)]

        assert_programs_agree(program)

    def test_an_array_dataset_follows_the_default_device(self) -> None:
        data = ArrayDataset(np.arange(6.0))
        with torch.device("meta"):
            assert data.__gather__() is None
        assert data.__gather__() is not None

    @pytest.mark.parametrize(
        "tensor",
        [
            pytest.param(lambda: torch.arange(6.0).requires_grad_(), id="requires_grad"),
            pytest.param(lambda: torch.nn.Parameter(torch.arange(6.0)), id="parameter"),
            pytest.param(lambda: torch.arange(6.0).as_subclass(Tagged), id="subclass"),
            pytest.param(lambda: torch.tensor([1j] * 6).conj(), id="conjugate"),
            pytest.param(lambda: torch.tensor([1j] * 6).conj().imag, id="negative"),
        ],
    )
    def test_tensors_that_cannot_be_gathered_go_the_general_way(self, tensor: Any) -> None:
        def program(loader: Any) -> Any:
            made = loader(TensorDataset(tensor()), batch_size=4)
            batches = list(made)
            if isinstance(made, DataLoader):
                assert made.statistics().path == "inline"
            return [[x.detach() * 1 for x in batch] for batch in batches]

        assert_programs_agree(program)

    def test_a_gradient_reaches_the_dataset(self) -> None:
        x = torch.arange(6.0).requires_grad_()
        for (batch,) in DataLoader(TensorDataset(x), batch_size=4):
            (batch**2).sum().backward()
        assert torch.equal(x.grad, 2 * torch.arange(6.0))

    def test_sparse_tensors_are_torchs_error(self) -> None:
        data = TensorDataset(torch.eye(3).to_sparse())
        with pytest.raises(RuntimeError, match="sparse tensors are not currently supported"):
            next(iter(DataLoader(data)))


class Tagged(torch.Tensor):
    pass
