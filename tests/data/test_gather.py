"""The protocol by which a dataset joins: who is asked, who is not, and what a class must do."""

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

import headrace
from headrace import ArrayDataset, ArrayMismatchError, ArrayTypeError, DataLoader, Gatherer, Leaf
from headrace.data.gather import find_gatherer
from headrace.data.gatherer import in_range
from oracle import assert_programs_agree


class Points(Dataset[Any]):
    """A third party's dataset that joins by ``headrace.columns``."""

    def __init__(self, n: int = 20) -> None:
        self.x = torch.arange(3.0 * n).reshape(n, 3)
        self.y = np.arange(n, dtype=np.int16)
        self.samples_asked = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.samples_asked += 1
        return {"x": self.x[index], "meta": (self.y[index], self.x[index, 0])}

    def __gather__(self) -> Gatherer | None:
        return headrace.columns({"x": self.x, "meta": (self.y, self.x[:, 0])})


class Tiles:
    """A third party's gatherer, written from the protocol alone: rows that are computed."""

    spec = {"tile": Leaf((2, 2), torch.bfloat16), "number": Leaf((), torch.int64)}
    watched: Any = ()

    def __len__(self) -> int:
        return 10_000

    def gather(self, indices: Any, out: Any) -> None:
        assert indices.min() >= 0
        assert indices.max() < len(self)
        tile, number = out
        assert tile.shape == (len(indices), 2, 2)
        assert tile.flags.c_contiguous
        values = torch.from_numpy(indices % 100).to(torch.bfloat16)
        tile[...] = values.view(torch.uint16).numpy()[:, None, None]
        number[...] = indices


class Computed(Dataset[Any]):
    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Any:
        return {
            "tile": torch.full((2, 2), float(index % 100), dtype=torch.bfloat16),
            "number": torch.tensor(index),
        }

    def __gather__(self) -> Tiles:
        return Tiles()


def path_of(dataset: Any, **options: Any) -> str:
    loader = DataLoader(dataset, batch_size=4, **options)
    next(iter(loader))
    return loader.statistics().path


class TestThirdParties:
    def test_join_with_columns(self) -> None:
        def program(loader: Any) -> Any:
            data = Points()
            batches = list(loader(data, batch_size=6, shuffle=True))
            assert loader is not DataLoader or data.samples_asked == 0
            return batches

        assert_programs_agree(program)

    def test_join_with_a_gatherer_of_their_own(self) -> None:
        assert isinstance(Tiles(), Gatherer)

        def program(loader: Any) -> Any:
            return list(loader(Computed(), batch_size=1_000, shuffle=True))

        assert_programs_agree(program)
        assert path_of(Computed()) == "gather"

    def test_join_under_the_wrappers_of_torch(self) -> None:
        def program(loader: Any) -> Any:
            whole = ConcatDataset([Subset(Computed(), range(0, 900, 7)), Computed()])
            stacked = StackDataset(points=Points(20), tiles=Subset(whole, range(120, 140)))
            return [
                list(loader(Subset(whole, range(100, 400)), batch_size=64, shuffle=True)),
                list(loader(stacked, batch_size=7, shuffle=True)),
            ]

        assert_programs_agree(program)

    def test_may_decline(self) -> None:
        class Declines(Points):
            def __gather__(self) -> None:
                return None

        assert path_of(Declines()) == "inline"

    def test_get_an_error_for_something_else(self) -> None:
        class Wrong(Points):
            def __gather__(self) -> Any:
                return {"x": self.x}

        with pytest.raises(ArrayTypeError, match=r"Wrong.__gather__\(\) returned dict.*columns"):
            iter(DataLoader(Wrong()))

    def test_edits_are_seen(self) -> None:
        data = Points()
        batches = iter(DataLoader(data, batch_size=5))
        next(batches)
        data.x += 100
        assert float(next(batches)["x"][0, 0]) == 115.0


class TestWhoIsNotGathered:
    def test_a_subclass_that_overrides_getitem(self) -> None:
        class Augmented(TensorDataset):
            def __getitem__(self, index: int) -> Any:
                return tuple(t * 2 for t in super().__getitem__(index))

        class Flipped(Points):
            def __getitem__(self, index: int) -> Any:
                return super().__getitem__(len(self) - 1 - index)

        class Listed(Points):
            def __getitems__(self, indices: list[int]) -> Any:
                return [self[i] for i in reversed(indices)]

        for cls in (lambda: Augmented(torch.arange(8)), Flipped, Listed):
            assert path_of(cls()) == "inline"
            assert_programs_agree(lambda loader, cls=cls: list(loader(cls(), batch_size=3)))

    def test_a_subclass_of_torchs_datasets_whatever_it_overrides(self) -> None:
        class MyTensors(TensorDataset):
            pass

        class MySubset(Subset[Any]):
            def __getitems__(self, indices: list[int]) -> Any:
                return [-1 for _ in indices]

        assert path_of(MyTensors(torch.arange(8))) == "inline"
        assert path_of(MySubset(TensorDataset(torch.arange(8)), [1, 2, 3, 4])) == "inline"

    def test_a_subclass_that_overrides_both_is(self) -> None:
        class Both(Points):
            def __getitem__(self, index: int) -> Any:
                return self.x[index] + 1

            def __gather__(self) -> Any:
                return headrace.columns(self.x + 1)

        assert path_of(Both()) == "gather"
        assert_programs_agree(lambda loader: list(loader(Both(), batch_size=3)))

    def test_a_subclass_that_overrides_something_else_is(self) -> None:
        class Named(Points):
            name = "mine"

        assert path_of(Named()) == "gather"

    def test_an_instance_attribute_does_not_count(self) -> None:
        data: Any = torch.utils.data.Dataset()
        data.__gather__ = lambda: None
        assert find_gatherer(data) is None

    @pytest.mark.parametrize(
        "options",
        [
            {"collate_fn": list},
            {"collate_fn": lambda s: torch.utils.data.default_collate(s[:1])},
            {"batch_size": None},
        ],
    )
    def test_without_the_default_collation(self, options: Any) -> None:
        loader = DataLoader(TensorDataset(torch.arange(8)), **options)
        next(iter(loader))
        assert loader.statistics().path == "inline"

    @pytest.mark.parametrize(
        "collate", [None, torch.utils.data.default_collate, headrace.default_collate]
    )
    def test_with_the_default_collation_by_any_name_is(self, collate: Any) -> None:
        assert path_of(TensorDataset(torch.arange(8)), collate_fn=collate) == "gather"

    @pytest.mark.parametrize(
        "indices",
        [
            pytest.param([[0, 1], [2, 3]], id="lists"),
            pytest.param([slice(0, 2), slice(2, 4)], id="slices"),
            pytest.param(torch.tensor([[0, 1], [2, 3]]), id="a matrix"),
            pytest.param(list(torch.arange(4)), id="tensors"),
        ],
    )
    def test_a_subset_by_something_else_than_integers(self, indices: Any) -> None:
        def program(loader: Any) -> Any:
            return list(loader(Subset(TensorDataset(torch.arange(8)), indices), batch_size=2))

        assert_programs_agree(program)

    @pytest.mark.parametrize(
        "indices", [range(6, 0, -2), np.array([3, 1]), torch.tensor([3, 1]), (3, 1), [np.int8(3)]]
    )
    def test_a_subset_by_integers_of_any_kind_is(self, indices: Any) -> None:
        data = Subset(TensorDataset(torch.arange(8)), indices)
        loader = DataLoader(data)
        assert torch.cat([x for (x,) in loader]).tolist() == [int(i) for i in indices]
        assert loader.statistics().path == "gather"


class Pair(NamedTuple):
    x: Any
    y: Any


class Triple(NamedTuple):
    x: Any
    y: Any


class TestConcatenations:
    def test_of_different_columns_are_what_torch_makes_of_them(self) -> None:
        def program(loader: Any) -> Any:
            x, y = np.arange(4.0), np.arange(4.0) + 10
            mixed = [
                [ArrayDataset({"x": x, "y": y}), ArrayDataset({"y": y, "x": x})],
                [ArrayDataset(x), ArrayDataset(x.astype(np.float32))],
                [Named(Pair), Named(Triple)],
                [TensorDataset(torch.ones(3)), [(torch.zeros(()),)]],
            ]
            return [list(loader(ConcatDataset(parts), batch_size=8)) for parts in mixed]

        assert_programs_agree(program)

    def test_of_the_same_columns_are_gathered_across_their_borders(self) -> None:
        parts = [TensorDataset(torch.full((n, 2), float(n))) for n in (1, 3, 2, 1)]

        def program(loader: Any) -> Any:
            whole = ConcatDataset([*parts, ConcatDataset(parts)])
            return [
                list(loader(whole, batch_size=3)),
                list(loader(whole, batch_size=14, shuffle=True)),
            ]

        assert_programs_agree(program)
        assert path_of(ConcatDataset(parts)) == "gather"

    def test_with_an_empty_part(self) -> None:
        parts = [TensorDataset(torch.ones(n, 2) * n) for n in (0, 3, 0, 2, 0)]
        assert_programs_agree(lambda loader: list(loader(ConcatDataset(parts), batch_size=2)))


class Named(Dataset[Any]):
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.kind(torch.tensor(index), torch.tensor(-index))

    def __gather__(self) -> Any:
        return headrace.columns(self.kind(torch.arange(4), -torch.arange(4)))


class TestColumns:
    def test_keep_the_nesting_of_the_default_collation(self) -> None:
        x = torch.arange(6)
        tree = {"a": (x, [x, Pair(x, {"b": x})]), "c": x}

        class Nested(Dataset[Any]):
            def __len__(self) -> int:
                return 6

            def __getitem__(self, index: int) -> Any:
                i = x[index]
                return {"a": (i, [i, Pair(i, {"b": i})]), "c": i}

            def __gather__(self) -> Any:
                return headrace.columns(tree)

        assert_programs_agree(lambda loader: list(loader(Nested(), batch_size=4)))
        assert path_of(Nested()) == "gather"

    def test_of_a_mapping_that_is_no_dict(self) -> None:
        tree = collections.ChainMap({"x": torch.arange(3)})
        gatherer = headrace.columns(tree)
        assert gatherer is not None
        assert gatherer.spec == {"x": Leaf((), torch.int64)}

    def test_of_different_lengths_are_an_error(self) -> None:
        with pytest.raises(ArrayMismatchError, match=r"\[3, 4\]"):
            headrace.columns((torch.arange(3), torch.arange(4)))

    @pytest.mark.parametrize(
        "column",
        [
            pytest.param(torch.tensor(3), id="no rows"),
            pytest.param(np.array(3), id="an array without rows"),
            pytest.param(torch.eye(3).to_sparse(), id="sparse"),
            pytest.param(torch.eye(3, device="meta"), id="another device"),
            pytest.param(torch.eye(3, requires_grad=True), id="requires_grad"),
            pytest.param(np.array(["a"]), id="strings"),
            pytest.param(np.zeros(3, ">f4"), id="foreign bytes"),
            pytest.param([1, 2, 3], id="numbers"),
            pytest.param(None, id="nothing"),
        ],
    )
    def test_that_do_not_fit_decline(self, column: Any) -> None:
        assert headrace.columns(column) is None
        assert headrace.columns((torch.arange(3), column)) is None

    def test_say_how_large_a_sample_is(self) -> None:
        leaf = Leaf((3, 4), torch.complex64)
        assert leaf.size_bytes == 96
        assert leaf.carrier == np.dtype(np.complex64)
        assert Leaf((), torch.bfloat16).carrier == np.dtype(np.uint16)
        assert Leaf((), torch.float8_e5m2).carrier == np.dtype(np.uint8)


class TestInRange:
    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
    def test_takes_integers_of_any_type(self, dtype: Any) -> None:
        got = in_range(np.array([3, 0], dtype), 5, "it")
        assert got is not None
        assert got.dtype == np.intp
        assert got.tolist() == [3, 0]

    def test_counts_negative_ones_from_the_end(self) -> None:
        assert in_range([-1, -5, 2], 5, "it").tolist() == [4, 0, 2]

    @pytest.mark.parametrize("indices", [[5], [-6], [0, 99, 1], range(3, 7), torch.tensor([5])])
    def test_names_what_is_outside(self, indices: Any) -> None:
        with pytest.raises(IndexError, match=r"out of range for it with 5 samples.*0 to 4"):
            in_range(indices, 5, "it")

    @pytest.mark.parametrize(
        "indices", [[1.5], [True], ["a"], [None], [[1]], torch.tensor([True]), np.zeros((2, 2))]
    )
    def test_leaves_the_rest_to_others(self, indices: Any) -> None:
        assert in_range(indices, 5, "it") is None

    def test_of_nothing_is_nothing(self) -> None:
        assert in_range([], 0, "it").tolist() == []
