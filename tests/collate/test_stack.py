"""The default collation: torch's result for everything torch collates, on leases."""

import array
import collections
import copy
import enum
import pickle
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import _utils
from torch.utils.data import default_collate as torch_collate

from headrace import (
    CollateError,
    DataLoader,
    MissingKeyError,
    NotCollatableError,
    ShapeMismatchError,
    default_collate,
    numpy_collate,
)
from headrace.engine.lease import Pool
from headrace.memory import lending
from oracle import assert_same


class Point(NamedTuple):
    x: Any
    y: Any


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 2


class Tagged(torch.Tensor):
    pass


class Keyed(collections.UserDict[str, Any]):
    """A mutable mapping with an attribute of its own."""

    tag = "none"


class Rigid(collections.abc.Mapping[str, Any]):
    """A mapping that cannot be built from a dict."""

    def __init__(self, a: Any, b: Any) -> None:
        self.held = {"a": a, "b": b}

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return 2


class Frozen(collections.abc.Sequence[Any]):
    """A sequence that cannot be built from a list."""

    def __init__(self, a: Any, b: Any) -> None:
        self.held = (a, b)

    def __getitem__(self, index: Any) -> Any:
        return self.held[index]

    def __len__(self) -> int:
        return 2


class Row(list[Any]):
    pass


def tagged() -> Keyed:
    made = Keyed({"x": 1})
    made.tag = "kept"
    return made


SAMPLES: dict[str, Any] = {
    "tensors": lambda: [torch.arange(3.0), torch.ones(3)],
    "scalar tensors": lambda: [torch.tensor(1), torch.tensor(2)],
    "empty tensors": lambda: [torch.empty(0, 3), torch.empty(0, 3)],
    "tensors of two types": lambda: [torch.ones(2), torch.ones(2, dtype=torch.int64)],
    "integers first": lambda: [torch.ones(2, dtype=torch.int32), torch.ones(2)],
    "bfloat16": lambda: [torch.ones(2, dtype=torch.bfloat16)] * 3,
    "complex": lambda: [torch.tensor([1j, 2])] * 2,
    "conjugates": lambda: [torch.tensor([1j, 2]).conj()] * 2,
    "negatives": lambda: [torch.tensor([1j, 2]).conj().imag] * 2,
    "strided tensors": lambda: list(torch.arange(12.0).reshape(3, 4).t()),
    "expanded tensors": lambda: [torch.ones(1).expand(4)] * 2,
    "tensors that require a gradient": lambda: [torch.ones(2, requires_grad=True), torch.ones(2)],
    "a later tensor that does": lambda: [torch.ones(2), torch.ones(2, requires_grad=True)],
    "parameters": lambda: [torch.nn.Parameter(torch.ones(2))] * 2,
    "a subclass of Tensor": lambda: [torch.ones(2).as_subclass(Tagged)] * 2,
    "a later subclass of Tensor": lambda: [torch.ones(2), torch.ones(2).as_subclass(Tagged)],
    "channels last": lambda: [torch.ones(2, 3, 4).permute(2, 0, 1)] * 2,
    "arrays": lambda: [np.arange(3.0), np.ones(3)],
    "arrays of two types": lambda: [np.arange(3.0), np.ones(3, np.float32)],
    "zero-dimensional arrays": lambda: [np.array(1.5), np.array(2.5)],
    "empty arrays": lambda: [np.empty((0, 2))] * 2,
    "uint16 arrays": lambda: [np.ones(3, np.uint16)] * 2,
    "bool arrays": lambda: [np.array([True, False])] * 2,
    "Fortran arrays": lambda: [np.asfortranarray(np.arange(6.0).reshape(2, 3))] * 2,
    "strided arrays": lambda: list(np.arange(12.0).reshape(3, 4).T),
    "array and tensor": lambda: [np.ones(2), torch.ones(2)],
    "NumPy numbers": lambda: [np.float32(1), np.float32(2)],
    "NumPy float64": lambda: [np.float64(1), np.float64(2)],
    "NumPy bool": lambda: [np.True_, np.False_],
    "NumPy int16": lambda: [np.int16(1), np.int16(2)],
    "NumPy complex": lambda: [np.complex64(1j)] * 2,
    "NumPy string": lambda: [np.str_("a"), np.str_("b")],
    "NumPy bytes": lambda: [np.bytes_(b"a"), np.bytes_(b"b")],
    "floats": lambda: [1.0, 2.5],
    "nan": lambda: [float("nan"), float("inf")],
    "ints": lambda: [1, 2],
    "ints and floats": lambda: [1, 2.5],
    "floats and ints": lambda: [2.5, 1],
    "bools": lambda: [True, False],
    "bools and ints": lambda: [True, 7],
    "negative ints": lambda: [-(2**63), 2**63 - 1],
    "enums": lambda: [Colour.RED, Colour.BLUE],
    "strings": lambda: ["a", "b"],
    "bytes": lambda: [b"a", b"b"],
    "strings and others": lambda: ["a", 1],
    "tuples": lambda: [(1, "a", 2.5), (2, "b", 3.5)],
    "lists": lambda: [[1, "a"], [2, "b"]],
    "nested": lambda: [{"x": [(1, {"y": torch.ones(2)})]}] * 3,
    "empty tuples": lambda: [(), ()],
    "empty dicts": lambda: [{}, {}],
    "dicts": lambda: [{"a": 1, "b": "x"}, {"b": "y", "a": 2}],
    "keys that are no strings": lambda: [{1: 1.0, (2, 3): 2}] * 2,
    "ordered": lambda: [collections.OrderedDict(b=1, a=2)] * 2,
    "defaultdict": lambda: [collections.defaultdict(int, a=1)] * 2,
    "Counter": lambda: [collections.Counter(a=1)] * 2,
    "a dict with an attribute": lambda: [tagged()] * 2,
    "mappingproxy": lambda: [types.MappingProxyType({"a": 1})] * 2,
    "a mapping of its own kind": lambda: [Rigid(1, 2)] * 2,
    "named tuples": lambda: [Point(1, "a"), Point(2, "b")],
    "nested named tuples": lambda: [Point(Point(1, 2), [3])] * 2,
    "a subclass of list": lambda: [Row([1, 2])] * 2,
    "deque": lambda: [collections.deque([1, 2])] * 2,
    "a sequence of its own kind": lambda: [Frozen(1, 2)] * 2,
    "ranges": lambda: [range(3), range(3)],
    "bytearrays": lambda: [bytearray(b"ab")] * 2,
    "torch.Size": lambda: [torch.Size([1, 2])] * 2,
    "one sample": lambda: [{"x": torch.ones(2)}],
}


class TestSameAsTorch:
    @pytest.mark.parametrize("name", SAMPLES)
    @pytest.mark.parametrize("leased", [False, True])
    def test_batch(self, name: str, leased: bool) -> None:
        samples = SAMPLES[name]()
        with lending(Pool() if leased else None):
            ours = default_collate(samples)
        theirs = torch_collate(samples)
        compare(ours, theirs)

    def test_mutable_mappings_keep_their_attributes(self) -> None:
        assert default_collate([tagged(), tagged()]).tag == "kept"

    def test_samples_are_not_changed(self) -> None:
        for name, make in SAMPLES.items():
            samples = make() if name != "mappingproxy" else []  # which cannot be copied
            if not samples:
                continue
            before = [copy.copy(sample) for sample in samples]
            default_collate(samples)
            assert repr(samples) == repr(before) or "0x" in repr(samples), name

    def test_large_leaves_lie_on_leases(self) -> None:
        pool = Pool()
        with lending(pool):
            batch = default_collate(
                [(torch.ones(500, 500), np.ones((500, 500), np.float32), 1.0)] * 2
            )
        assert pool.created == 2
        assert float(batch[0].sum()) == float(batch[1].sum()) == 500_000
        assert torch.get_default_dtype() == torch.float32

    def test_gradients_flow(self) -> None:
        x = torch.ones(2, requires_grad=True)
        default_collate([x, x * 2]).sum().backward()
        assert x.grad.tolist() == [3, 3]

    def test_under_no_grad_nothing_requires_one(self) -> None:
        x = torch.ones(2, requires_grad=True)
        with torch.no_grad():
            assert not default_collate([x, x]).requires_grad

    @pytest.mark.parametrize(
        "sample", [torch.ones(2), np.ones(2), 1.5, 1, np.float32(1), (np.ones(2), torch.ones(2))]
    )
    def test_on_another_default_device(self, sample: Any) -> None:
        """What torch makes anew goes to the default device, what it stacks stays."""
        with torch.device("meta"), lending(Pool()):
            ours, theirs = default_collate([sample] * 2), torch_collate([sample] * 2)
        if not isinstance(theirs, list):
            ours, theirs = [ours], [theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert (our.device, our.dtype, our.shape) == (their.device, their.dtype, their.shape)


def compare(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, collections.abc.Sequence) and not isinstance(theirs, (list, tuple, str)):
        assert type(ours) is type(theirs)
        ours, theirs = list(ours), list(theirs)
    elif isinstance(theirs, collections.abc.Mapping) and not isinstance(theirs, dict):
        assert type(ours) is type(theirs)
        ours, theirs = dict(ours), dict(theirs)
    assert_same(ours, theirs)


def error_of(collate: Any, samples: Any) -> Exception:
    try:
        collate(samples)
    except Exception as error:
        return error
    raise AssertionError("it made a batch")


class TestSameErrorsAsTorch:
    @pytest.mark.parametrize(
        "samples",
        [
            pytest.param([torch.ones(2), torch.ones(3)], id="shapes"),
            pytest.param([torch.ones(2), torch.ones(2, 1)], id="dimensions"),
            pytest.param([np.ones(2), np.ones(3)], id="shapes of arrays"),
            pytest.param([(1, 2), (1,)], id="lengths"),
            pytest.param([[1], [1, 2]], id="lengths of lists"),
            pytest.param([{"a": 1, "b": 2}, {"a": 1}], id="a missing key"),
            pytest.param([None, None], id="None"),
            pytest.param([object()], id="an object"),
            pytest.param([{1, 2}], id="a set"),
            pytest.param([1j], id="complex"),
            pytest.param([np.array([{}])], id="objects in an array"),
            pytest.param([np.array(["a"])], id="strings in an array"),
            pytest.param([np.array([b"a"])], id="bytes in an array"),
            pytest.param([np.zeros(2, ">f4")], id="foreign bytes"),
            pytest.param([np.array(["2020-01-01"], "M8[D]")], id="dates"),
            pytest.param([np.zeros(2, [("a", "f4")])], id="a structured array"),
            pytest.param([np.datetime64("2020-01-01")], id="a date"),
            pytest.param([torch.eye(2).to_sparse()], id="sparse"),
            pytest.param(
                [torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)], id="nested"
            ),
            pytest.param([torch.ones(2), 1.5], id="a number among tensors"),
            pytest.param([torch.ones(2), None], id="None among tensors"),
            pytest.param([1, "a"], id="a string among numbers"),
            pytest.param([1.5, None], id="None among numbers"),
            pytest.param([np.ones(2), None], id="None among arrays"),
            pytest.param([(1,), 2], id="a number among tuples"),
            pytest.param([{"a": 1}, 2], id="a number among dicts"),
            pytest.param([2**65], id="too large"),
            pytest.param([array.array("d", [1, 2])] * 2, id="arrays of the array module"),
            pytest.param([], id="nothing"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_type_and_words(self, samples: Any) -> None:
        theirs = error_of(torch_collate, samples)
        ours = error_of(default_collate, samples)
        assert isinstance(ours, type(theirs))
        searched = ("stack expects", "each element in", "default_collate:", "Batches of")
        if str(theirs).startswith(searched):
            assert str(theirs)[:40] in str(ours)

    def test_a_key_that_only_a_later_sample_has_is_an_error_here(self) -> None:
        """torch drops it without a word."""
        samples = [{"a": 1}, {"a": 1, "b": 2}]
        assert list(torch_collate(samples)) == ["a"]
        with pytest.raises(MissingKeyError, match=r"'b' is in sample 1 .* not in sample 0"):
            default_collate(samples)

    def test_a_dict_that_makes_what_it_lacks_is_an_error_here(self) -> None:
        """As many keys, others, and a subclass that answers for any of them."""
        samples = [defaultdict(float, {"a": 1.0}), defaultdict(float, {"b": 2.0})]
        with pytest.raises(MissingKeyError, match="'a'"):
            default_collate(samples)
        assert [list(sample) for sample in samples] == [["a"], ["b"]]

    def test_named_tuples_of_different_lengths_are_an_error_here(self) -> None:
        class Longer(NamedTuple):
            x: Any
            y: Any
            z: Any

        with pytest.raises(ShapeMismatchError, match="2 entries and sample 1 has 3"):
            default_collate([Point(1, 2), Longer(1, 2, 3)])


class TestErrorMessages:
    def test_give_the_path_outermost_key_first(self) -> None:
        samples = [{"a": [Point(0, torch.ones(n))]} for n in (2, 3)]
        with pytest.raises(ShapeMismatchError) as caught:
            default_collate(samples)
        assert caught.value.path == ("a", 0, "y")
        assert "sample['a'][0]['y']" in str(caught.value)

    def test_say_what_to_write(self) -> None:
        for samples, line in (
            ([torch.ones(2), torch.ones(3)], "pad_collate"),
            ([{"a": 1}, {}], "setdefault('a'"),
            ([object()], "collate_fn="),
            ([np.array([{}])], "astype"),
        ):
            with pytest.raises(CollateError) as caught:
                default_collate(samples)
            assert line in str(caught.value)

    @pytest.mark.parametrize("kind", [ShapeMismatchError, MissingKeyError, NotCollatableError])
    def test_survive_pickling(self, kind: Any) -> None:
        error = kind("a problem", "a remedy", (0, 1))
        error.path, error.indices = ("x", 0), (5, 6)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.indices == (5, 6)


class TestTheUsersTable:
    """``default_collate_fn_map`` is documented for users to add to."""

    @pytest.fixture(autouse=True)
    def _restored(self) -> Iterator[None]:
        table = _utils.collate.default_collate_fn_map
        before = dict(table)
        yield
        table.clear()
        table.update(before)

    class Image:
        def __init__(self, number: int) -> None:
            self.number = number

    def test_a_type_that_was_added_is_collated(self) -> None:
        def join(images: Any, *, collate_fn_map: Any = None) -> str:
            return "+".join(str(i.number) for i in images)

        _utils.collate.default_collate_fn_map[self.Image] = join
        samples = [{"image": self.Image(i), "x": 1.0} for i in range(4)]
        assert default_collate(samples)["image"] == "0+1+2+3"
        batches = list(DataLoader(samples, batch_size=2))
        assert [b["image"] for b in batches] == ["0+1", "2+3"]

    def test_a_function_that_was_replaced_is_called_and_nothing_is_gathered(self) -> None:
        def doubled(tensors: Any, *, collate_fn_map: Any = None) -> torch.Tensor:
            return torch.stack(tensors) * 2

        _utils.collate.default_collate_fn_map[torch.Tensor] = doubled
        data = torch.utils.data.TensorDataset(torch.arange(4))
        loader = DataLoader(data, batch_size=4)
        assert next(iter(loader))[0].tolist() == [0, 2, 4, 6]
        assert loader.statistics().path == "inline"

    def test_its_functions_draw_from_the_tasks_generators(self) -> None:
        def noisy(tensors: Any, *, collate_fn_map: Any = None) -> torch.Tensor:
            return torch.stack(tensors) + torch.rand(())

        _utils.collate.default_collate_fn_map[torch.Tensor] = noisy
        data = torch.utils.data.TensorDataset(torch.zeros(4))
        torch.manual_seed(0)
        loader = DataLoader(data, batch_size=2, generator=torch.Generator().manual_seed(1))
        list(loader)
        after = torch.rand(())
        torch.manual_seed(0)
        assert torch.equal(torch.rand(()), after), "the collation moved the user's generator"

    def test_restored_it_is_the_default_again(self) -> None:
        table = _utils.collate.default_collate_fn_map
        table[self.Image] = lambda batch, *, collate_fn_map=None: None
        del table[self.Image]
        loader = DataLoader(torch.utils.data.TensorDataset(torch.arange(4)))
        next(iter(loader))
        assert loader.statistics().path == "gather"


def test_rows_of_a_memory_map_that_may_not_be_written_stack_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "rows.npy", np.arange(12.0).reshape(4, 3))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    batch = default_collate([rows[3], rows[1]])
    assert batch.tolist() == [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("shapes", "advice"),
    [
        ([(3, 30, 40), (3, 31, 40)], "ImageFolder(..., size="),
        ([(5, 8), (7, 8)], "pad_collate()"),
    ],
)
def test_advice_for_shapes_that_differ_is_one_that_works(shapes, advice):
    with pytest.raises(ShapeMismatchError) as raised:
        default_collate([torch.zeros(shape) for shape in shapes])
    assert advice in str(raised.value)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        (torch.ones(2), None, "expected Tensor as element 1"),
        ((1, 2), None, "is not iterable"),
        ({"a": 1}, None, ""),
        (np.ones(2), None, "Could not infer dtype"),
        (1, None, "Could not infer dtype"),
        ((torch.ones(2), 1), (None, 1), "at sample[0]"),
        ({"a": [1]}, {"a": None}, "at sample['a']"),
    ],
)
def test_none_among_samples_is_named_by_its_index_with_the_way_to_skip_it(good, bad, says):
    order = [4, 2, 0, 1, 3]
    data = [good, good, bad, good, good]
    with pytest.raises(CollateError) as raised:
        next(iter(DataLoader(data, batch_size=5, sampler=order)))
    said = str(raised.value)
    assert raised.value.indices == (2,)
    assert "(dataset index 2)" in said
    assert "on_error='skip'" in said
    assert says in said
    skipping = DataLoader(data, batch_size=5, sampler=order, on_error="skip")
    with pytest.warns(UserWarning, match="left 1 sample out"):
        assert len(list(skipping)) == 1
    assert skipping.statistics().skipped_samples[0].index == 2


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({"a": 1}, (1,), "types dict and tuple make no batch (dataset indices 5 and 3)"),
        ((1,), 2, "types tuple and int make no batch (dataset indices 5 and 3)"),
        ([1], ["x"], "types int and str make no batch at sample[0] (dataset indices 5 and 3)"),
        (torch.ones(2), [1.0, 1.0], "types Tensor and list make no batch"),
    ],
)
def test_samples_of_two_kinds_are_named_in_the_order_of_their_indices(one, other, says):
    data = [one, one, one, other, one, one]
    with pytest.raises(CollateError) as raised:
        next(iter(DataLoader(data, batch_size=3, sampler=[5, 4, 3])))
    assert says in str(raised.value)


def test_what_is_not_the_fault_of_mixed_samples_is_torchs_error():
    samples = [(torch.eye(2).to_sparse(), 1), [torch.eye(2).to_sparse(), 1.5]]
    with pytest.raises(RuntimeError, match="Batches of sparse") as raised:
        default_collate(samples)
    assert not isinstance(raised.value, CollateError)


def test_a_pillow_image_gets_the_end_of_the_transform_as_advice():
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 4))
    with pytest.raises(NotCollatableError) as raised:
        default_collate([(image, 1), (image, 2)])
    for line in ("v2.ToImage()", "transforms.ToTensor()", "decode='tensor'"):
        assert line in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("samples", "where"),
    [
        ([1, 2**63], "dataset index 1"),
        ([1, 2, -(2**63) - 1], "dataset index 2"),
        ([1.5, 10**400], "dataset index 1"),
        ([{"id": 1}, {"id": 2**64}], r"sample\['id'\] \(dataset index 1\)"),
        ([(1, [2, 3]), (1, [2, 2**70])], r"sample\[1\]\[1\] \(dataset index 1\)"),
        ([True, 2**65], "dataset index 1"),
    ],
)
def test_an_integer_beyond_64_bits_is_named(samples: list[Any], where: str, workers: int) -> None:
    loader = DataLoader(samples, batch_size=3, num_workers=workers)
    with pytest.raises(NotCollatableError, match=where):
        next(iter(loader))
    if isinstance(samples[0], int):
        arrays = DataLoader(samples, batch_size=3, collate_fn=numpy_collate)
        with pytest.raises(NotCollatableError, match=where):
            next(iter(arrays))
