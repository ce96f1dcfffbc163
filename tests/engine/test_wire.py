"""Batches that cross: whatever they are made of, they arrive as they left."""

import collections
import contextlib
import dataclasses
import gc
import io
import os
import pickle
import resource
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from headrace import DataLoader
from headrace.engine import cargo, wire
from headrace.engine.shared import LEASE_BYTES, Home, Imports, WorkerPool
from headrace.tree import leaves
from interrupts.injector import Injector, describe
from oracle import as_bytes, assert_same

tv_tensors = pytest.importorskip("torchvision.tv_tensors")

LARGE = (100, 1000)
few = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


class Way:
    """Both ends of a worker's pipe, in one process: what is packed here is unpacked there."""

    def __init__(self) -> None:
        self.pool = WorkerPool([])
        self.imports = Imports(Home(), [])
        self.near, self.far = wire.pair()
        self.receive = wire.Receiver(self.far)

    def cross(self, batch: Any) -> Any:
        data, buffers, kept = cargo.pack(batch, self.pool)
        del batch
        self.deliver_buffers()
        packed = pickle.loads(pickle.dumps((data, buffers), 5))
        del kept
        return cargo.unpack(packed, self.imports)

    def deliver_buffers(self) -> None:
        while self.pool.unsent:
            some, self.pool.unsent[:64] = self.pool.unsent[:64], []
            for key, size, descriptor in some:
                self.imports.add(key, size, descriptor)
                os.close(descriptor)

    def bring_home(self) -> int:
        """Tell the worker's side what the user has let go of; return how many that were."""
        free, retired = self.imports.to_return()
        self.pool.came_home(free)
        self.pool.keep_out(retired)
        return len(free) + len(retired)

    def close(self) -> None:
        for _, _, descriptor in self.pool.unsent:
            os.close(descriptor)
        self.near.close()
        self.far.close()


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way()
    yield made
    made.close()


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    names: list[str]


class Tagged(torch.Tensor):
    pass


DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), LARGE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type(way: Way, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    tensor = (torch.arange(count) % 120).reshape(shape).to(dtype)
    assert_same(way.cross(tensor), tensor)


LAYOUTS = {
    "transposed": torch.arange(100_000.0).reshape(LARGE).t(),
    "channels last": torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last),
    "channels last, small": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "every second row": torch.rand(LARGE)[::2],
    "a small part of each row": torch.rand(LARGE)[:, ::50],
    "a column": torch.rand(20_000, 50)[:, 3],
    "from the middle": torch.rand(LARGE)[7:50],
    "from the middle, across": torch.rand(LARGE)[7:50].t(),
    "expanded": torch.arange(8.0).expand(10_000, 8),
    "expanded, large inside": torch.rand(1, 80_000).expand(3, 80_000),
    "expanded, small": torch.arange(8.0).expand(3, 8),
    "one number, expanded": torch.tensor(3.0).expand(300, 300),
    "no elements, permuted": torch.empty(3, 0, 5).transpose(0, 2),
    "overlapping": torch.arange(60_000.0).unfold(0, 10, 1),
}

# Their elements lie far apart: they arrive contiguous.
MOVED_TOGETHER = ("a small part of each row", "a column", "no elements, permuted")


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_of_every_layout(way: Way, name: str) -> None:
    tensor = LAYOUTS[name]
    arrived, part = way.cross([tensor, tensor[:1]])
    assert torch.equal(arrived, tensor)
    assert torch.equal(part, tensor[:1])
    assert arrived.untyped_storage().nbytes() <= 2 * max(tensor.nbytes, 1)
    if name not in MOVED_TOGETHER:
        assert arrived.stride() == tensor.stride()


@few
@given(st.data())
def test_any_view_of_any_tensor(data: st.DataObject) -> None:
    way = Way()
    try:
        shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
        tensor = torch.arange(int(np.prod(shape))).reshape(shape)
        for axis in range(tensor.dim()):
            start, step = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
            tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
        tensor = tensor.permute(data.draw(st.permutations(range(tensor.dim()))))
        if data.draw(st.booleans()):
            tensor = tensor.unsqueeze(0).expand(data.draw(st.integers(1, 50)), *tensor.shape)
        arrived = way.cross(tensor)
        assert torch.equal(arrived, tensor)
    finally:
        way.close()


def test_lazy_conjugates_and_negatives(way: Way) -> None:
    numbers = torch.randn(10_000, dtype=torch.complex64)
    batch = [numbers.conj(), numbers.conj().imag, numbers[:3].conj()]
    for arrived, sent in zip(way.cross(batch), batch, strict=True):
        assert torch.equal(arrived, sent)


@pytest.mark.filterwarnings("ignore:Sparse")  # torch's own, in other words in each version
@pytest.mark.parametrize("size", [3, 300])
def test_sparse_layouts(way: Way, size: int) -> None:
    coo = torch.eye(size).to_sparse()
    twice = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.ones(2), (size, size), check_invariants=True
    )
    assert torch.equal(way.cross(coo).to_dense(), coo.to_dense())
    assert way.cross(coo).is_coalesced()
    assert not way.cross(twice).is_coalesced()
    csr = torch.eye(size).to_sparse_csr()
    arrived = way.cross(csr)
    assert arrived.layout is torch.sparse_csr
    assert torch.equal(arrived.to_dense(), csr.to_dense())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(way: Way, layout: torch.layout) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested")
        rows = [torch.rand(3, 4000), torch.rand(2, 4000)]
        nested = torch.nested.nested_tensor(rows, layout=layout)
        arrived = way.cross(nested)
        assert arrived.layout is layout
        assert all(map(torch.equal, arrived.unbind(), rows))


def test_quantized_tensors(way: Way) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on their way out of torch
        quantized = torch.quantize_per_tensor(torch.rand(LARGE), 0.1, 0, torch.qint8)
        arrived = way.cross(quantized)
    assert torch.equal(arrived.int_repr(), quantized.int_repr())


def test_packed_sequences(way: Way) -> None:
    packed = pack_sequence([torch.rand(5, 3000), torch.rand(3, 3000)])
    arrived = way.cross(packed)
    assert type(arrived) is type(packed)
    assert torch.equal(arrived.data, packed.data)
    assert torch.equal(arrived.batch_sizes, packed.batch_sizes)


@pytest.mark.parametrize("shape", [(3, 4), (300, 400)])
class TestTensorsThatAreMore:
    def test_parameters(self, way: Way, shape: tuple[int, ...]) -> None:
        for grad in (True, False):
            parameter = nn.Parameter(torch.rand(shape), requires_grad=grad)
            assert_same(way.cross(parameter), parameter)

    def test_leaves_that_require_grad(self, way: Way, shape: tuple[int, ...]) -> None:
        tensor = torch.rand(shape, requires_grad=True)
        arrived = way.cross([tensor, tensor.detach()])
        assert_same(arrived, [tensor, tensor.detach()])
        arrived[0].sum().backward()
        assert torch.equal(arrived[0].grad, torch.ones(shape))

    def test_results_of_a_computation_are_an_error(self, way: Way, shape: tuple[int, ...]) -> None:
        with pytest.raises(RuntimeError, match=r"non-leaf tensor which requires_grad.*detach"):
            way.cross([torch.rand(shape), torch.rand(shape, requires_grad=True) * 2])

    def test_subclasses_keep_their_attributes(self, way: Way, shape: tuple[int, ...]) -> None:
        tagged = torch.rand(shape).as_subclass(Tagged)
        tagged.label = "seven"
        arrived = way.cross(tagged)
        assert_same(arrived, tagged)
        assert arrived.label == "seven"

    def test_subclasses_that_require_grad(self, way: Way, shape: tuple[int, ...]) -> None:
        tagged = torch.rand(shape).as_subclass(Tagged).requires_grad_()
        assert_same(way.cross(tagged), tagged)

    def test_images_and_boxes_of_torchvision(self, way: Way, shape: tuple[int, ...]) -> None:
        image = tv_tensors.Image(torch.rand(3, *shape))
        boxes = tv_tensors.BoundingBoxes(
            torch.rand(shape[0], 4), format="XYWH", canvas_size=(10, 20)
        )
        arrived = way.cross({"image": image, "boxes": boxes})
        assert type(arrived["image"]) is tv_tensors.Image
        assert torch.equal(arrived["image"], image)
        assert arrived["boxes"].format == boxes.format
        assert arrived["boxes"].canvas_size == (10, 20)


ARRAYS = {
    "small": np.arange(6.0).reshape(2, 3),
    "large": np.arange(100_000.0).reshape(LARGE),
    "Fortran order": np.asfortranarray(np.arange(100_000.0).reshape(LARGE)),
    "strided": np.arange(100_000.0).reshape(LARGE)[::2],
    "objects": np.array(["a", None, 3], dtype=object),
    "many objects": np.array(["a", None, 3] * 9000, dtype=object),
    "strings": np.array(["abc", "d"] * 9000),
    "big-endian": np.arange(20_000, dtype=">f4"),
    "records": np.zeros(9000, [("a", "i4"), ("b", "f8")]),
    "dates": np.arange(9000).astype("datetime64[s]"),
    "number": np.float32(3),
    "0-d": np.array(3.0),
    "empty": np.empty((0, 4)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(way: Way, name: str) -> None:
    sent = ARRAYS[name]
    arrived = way.cross({"x": sent})["x"]
    np.testing.assert_array_equal(arrived, sent)
    assert type(arrived) is type(sent)
    assert arrived.dtype == sent.dtype
    assert arrived.flags.f_contiguous == sent.flags.f_contiguous
    if isinstance(sent, np.ndarray):
        assert arrived.flags.writeable
        arrived[...] = sent


def test_arrays_that_are_read_only_stay_so(way: Way) -> None:
    sent = np.arange(20_000.0)
    sent.flags.writeable = False
    assert not way.cross(sent).flags.writeable


def test_masked_arrays(way: Way) -> None:
    sent = np.ma.masked_greater(np.arange(20_000.0), 5)
    arrived = way.cross(sent)
    assert isinstance(arrived, np.ma.MaskedArray)
    np.testing.assert_array_equal(arrived.mask, sent.mask)
    np.testing.assert_array_equal(arrived.data, sent.data)


@pytest.mark.parametrize("size", [3, 30_000])
def test_containers_of_all_kinds(way: Way, size: int) -> None:
    x = torch.arange(size)
    batch = {
        "list": [x, (x + 1, "text", None)],
        "point": Point(x + 2, {"deep": [x + 3]}),
        "ordered": collections.OrderedDict(b=x + 4, a=1.5),
        "default": collections.defaultdict(list, k=[b"bytes", True, 2**70]),
        1: {("a", "tuple"): frozenset({1, 2})},
    }
    arrived = way.cross(batch)
    assert_same(arrived, batch)
    assert arrived["default"].default_factory is list


def test_batches_of_a_class_of_the_users(way: Way) -> None:
    arrived = way.cross(Batch(torch.ones(LARGE), ["a"]))
    assert type(arrived) is Batch
    assert_same([arrived.image, arrived.names], [torch.ones(LARGE), ["a"]])
    assert way.pool.created == 1, "the tensor inside went through the message"


def test_a_large_batch_without_tensors(way: Way) -> None:
    batch = {"text": ["word " * 40 + str(n) for n in range(3000)], "numbers": list(range(50_000))}
    assert way.cross(batch) == batch
    assert way.bring_home() == 1, "the pickle's own buffer is free at once"


def test_more_leaves_than_one_message_may_carry(way: Way) -> None:
    batch = [torch.full((5000,), n) for n in range(300)]
    assert_same(way.cross(batch), batch)


class TestSharing:
    def test_one_tensor_twice_is_one_tensor(self, way: Way) -> None:
        x = torch.ones(LARGE)
        first, second = way.cross([x, x])
        assert first is second

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
    def test_views_of_a_lease_go_without_a_copy(self, way: Way, order: tuple[int, ...]) -> None:
        whole = way.pool.empty(LARGE, torch.float32).normal_()
        views = [whole, whole[3:], whole.view(torch.int32), whole[:, 5]]
        expected = [view.clone() for view in views]
        arrived = way.cross([views[n] for n in order])
        for number, tensor in zip(order, arrived, strict=True):
            assert_same(tensor.clone(), expected[number])
        assert way.pool.created == 1
        assert len({tensor.untyped_storage().data_ptr() for tensor in arrived}) == 1

    @pytest.mark.parametrize("kind", ["float32", "M8[s]", "S8", "i4,f8"])
    def test_arrays_on_a_lease_go_without_a_copy(self, way: Way, kind: str) -> None:
        whole = way.pool.empty_array((100, 1000), np.dtype(kind))
        whole.view(np.uint8).fill(7)
        there = way.cross({"whole": whole, "front": whole[:50]})
        assert way.pool.created == 1
        assert np.shares_memory(there["whole"], there["front"])
        assert there["whole"].tobytes() == whole.tobytes()
        assert (there["front"].dtype, there["front"].shape) == (whole.dtype, (50, 1000))
        assert there["whole"].flags.writeable

    def test_read_only_arrays_on_a_lease_stay_so(self, way: Way) -> None:
        array = way.pool.empty_array((100, 1000), np.dtype(np.float32))
        array.flags.writeable = False
        assert not way.cross(array).flags.writeable

    def test_an_array_sent_again_is_a_copy_while_the_user_has_the_first(self, way: Way) -> None:
        kept = way.pool.empty_array((100, 1000), np.dtype(np.float32))
        kept.fill(1)
        first = way.cross(kept)
        first += 1
        kept.fill(5)
        second = way.cross(kept)
        assert not np.shares_memory(first, second)
        assert (second == 5).all()

    def test_a_lease_through_numpy_in_pieces(self, way: Way) -> None:
        whole = way.pool.empty(LARGE, torch.float32).normal_()
        front = torch.from_numpy(whole.numpy()[:50])
        for batch in ([front, whole], [whole, front]):
            assert_same(way.cross(batch), batch)

    def test_views_of_plain_memory_arrive_with_their_values(self, way: Way) -> None:
        x = torch.rand(LARGE)
        batch = [x, x[1:], x[:50], x[0, 0], x.t()]
        assert all(map(torch.equal, way.cross(batch), batch))

    def test_leaves_have_storages_of_their_own(self, way: Way) -> None:
        first, second = way.cross(list(torch.rand(2, *LARGE)))
        assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
        stream = io.BytesIO()
        torch.save(first, stream)
        assert len(stream.getvalue()) < first.nbytes + 4096

    def test_what_travels_in_the_message_can_be_written(self, way: Way) -> None:
        arrived = way.cross([torch.zeros(3), torch.zeros(3)])
        arrived[0] += 1
        assert arrived[1].tolist() == [0, 0, 0]


class Fragile:
    """Cannot be put together again."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


class TestReuse:
    def test_a_buffer_serves_batch_after_batch(self, way: Way) -> None:
        for number in range(20):
            arrived = way.cross([torch.full(LARGE, number), np.full(LARGE, number)])
            assert int(arrived[0].sum()) == int(arrived[1].sum()) == number * 100_000
            del arrived
            assert way.bring_home() == 2
        assert way.pool.created == 2

    def test_what_the_user_keeps_is_never_written(self, way: Way) -> None:
        kept = []
        for number in range(20):
            kept.append(way.cross({"x": torch.full(LARGE, number)})["x"][number])
            way.bring_home()
        assert [int(row[0]) for row in kept] == list(range(20))
        assert way.pool.created == 20

    def test_keeping_one_leaf_keeps_no_other(self, way: Way) -> None:
        labels = []
        for number in range(20):
            batch = way.cross({"x": torch.full(LARGE, number), "y": torch.full((8,), number)})
            labels.append(batch["y"])
            del batch
            way.bring_home()
        assert [int(label[0]) for label in labels] == list(range(20))
        assert way.pool.created == 1

    def test_what_the_worker_keeps_is_never_written(self, way: Way) -> None:
        kept = []
        for number in range(20):
            made = way.pool.empty(LARGE, torch.int64).fill_(number)
            kept.append(made)
            way.cross(made)
            way.bring_home()
        assert [int(made[0, 0]) for made in kept] == list(range(20))

    def test_a_batch_sent_again_is_a_copy_while_the_user_has_the_first(self, way: Way) -> None:
        made = way.pool.empty(LARGE, torch.int64).fill_(1)
        first = way.cross(made)
        second = way.cross(made)
        first += 5
        assert int(second.sum()) == 100_000
        del first, second
        way.bring_home()

    def test_a_batch_sent_again_after_the_user_changed_it(self, way: Way) -> None:
        # The same in PyTorch: what is sent is shared memory, and the worker sees the change.
        made = way.pool.empty(LARGE, torch.int64).fill_(1)
        for _ in range(3):
            assert int(way.cross(made).sum()) == 100_000
            way.bring_home()
        assert way.pool.created == 1

    def test_a_batch_that_cannot_be_packed_gives_its_buffers_back(self, way: Way) -> None:
        for _ in range(5):
            with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
                way.cross([torch.ones(LARGE), np.ones(LARGE), lambda: None])
            gc.collect()
        assert way.pool.created == 2

    def test_a_batch_that_cannot_be_unpacked_gives_its_buffers_back(self, way: Way) -> None:
        for _ in range(5):
            for batch in ([torch.ones(LARGE), Fragile()], [Fragile(), torch.ones(LARGE)]):
                with pytest.raises(ValueError, match="not a number"):
                    way.cross(batch)
                assert way.bring_home() == 1
        assert way.pool.created == 1

    def test_batches_are_freed_without_the_cycle_collector(self, way: Way) -> None:
        gc.disable()
        try:
            arrived = way.cross({"x": [torch.ones(LARGE), np.ones(LARGE)], "y": ["text"] * 20_000})
            assert len(leaves(arrived)) > 2
            del arrived
            assert way.bring_home() == 3
            assert way.pool.empty((1,), torch.float32) is not None
            again = way.cross([torch.ones(LARGE), np.ones(LARGE)])
            assert way.pool.created == 3
            del again
        finally:
            gc.enable()


class TestMessages:
    def test_of_all_sizes_in_order(self, way: Way) -> None:
        sizes = [0, 1, 60_000, 65_519, 65_520, 65_530, 65_536, 70_000, 3_000_000, 5]
        for size in sizes:
            wire.send(way.near, ("message", bytes(size)), [])
            assert way.receive()[0] == ("message", bytes(size))

    def test_carry_descriptors_beside_a_file(self, way: Way) -> None:
        read_end, write_end = os.pipe()
        os.write(write_end, b"!")
        for size in (10, 1_000_000):
            wire.send(way.near, bytes(size), [read_end])
            message, (file,) = way.receive()
            assert message == bytes(size)
            assert os.fstat(file.fileno()).st_ino == os.fstat(read_end).st_ino
        os.close(read_end)
        os.close(write_end)

    def test_never_block_when_told_not_to(self, way: Way) -> None:
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                wire.send(way.near, (sent, bytes(50_000)), [], wire.socket.MSG_DONTWAIT)
                sent += 1
        assert [way.receive()[0][0] for _ in range(sent)] == list(range(sent))
        with pytest.raises(BlockingIOError):
            way.receive(wire.socket.MSG_DONTWAIT)

    def test_end_with_the_other_side(self, way: Way) -> None:
        wire.send(way.near, "last", [])
        way.near.close()
        assert way.receive()[0] == "last"
        with pytest.raises(EOFError, match="closed"):
            way.receive()

    def test_leave_no_descriptor_behind(self, way: Way) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(50):
            batch = way.cross([torch.full((9000,), number), "x" * 100_000])
            assert int(batch[0][0]) == number
            wire.send(way.near, bytes(100_000), [])
            way.receive()
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("size", [10, 100_000])
    def test_leave_no_descriptor_behind_wherever_an_interruption_comes(
        self, way: Way, size: int
    ) -> None:
        def interrupted(at: tuple[str, int, int] | None) -> Injector:
            wire.send(way.near, bytes(size), [0, 1, 2])
            injector = Injector(at, each_instruction=True)
            with contextlib.suppress(KeyboardInterrupt):
                injector.run(way.receive)
            with contextlib.suppress(BlockingIOError):
                way.receive(wire.socket.MSG_DONTWAIT)  # what came is dropped now, if not before
            return injector

        before = sorted(os.listdir("/proc/self/fd"))
        places = [
            (*place, time)
            for place, times in interrupted(None).reached.items()
            for time in range(1, times + 1)
        ]
        assert len(places) > 20
        for place in places:
            assert interrupted(place).raised
            assert sorted(os.listdir("/proc/self/fd")) == before, describe(place)


class Bytes(bytes):
    """A kind of bytes of a user's own."""


LONG = bytes(range(256)) * (LEASE_BYTES // 256)
STRINGS = {
    "at the limit": LONG,
    "below it": LONG[:-1],
    "of several lengths": [LONG * n + b"x" * n for n in range(5)],
    "as the shards give them": [{"__key__": str(n), "jpg": LONG * n, "cls": n} for n in range(9)],
    "beside tensors": {"x": torch.ones(LARGE), "raw": (LONG, b"short", None), "y": [LONG + b"y"]},
    "behind many other things": [*range(20), LONG],
    "of another type": [LONG, Bytes(LONG), bytearray(LONG)],
    "deep": [[[[[LONG]]]]],
}


class TestLongBytes:
    @pytest.mark.parametrize("name", STRINGS)
    def test_arrive_as_they_left(self, way: Way, name: str) -> None:
        batch = STRINGS[name]
        for _ in range(3):  # on memory that was used before
            arrived = way.cross(batch)
            assert_same(arrived, batch)
            if name == "of another type":
                assert [type(one) for one in arrived] == [bytes, Bytes, bytearray]

    def test_one_object_arrives_as_one(self, way: Way) -> None:
        first, second, third = way.cross([LONG, LONG + b"x", LONG])
        assert first is third
        assert second == LONG + b"x"

    def test_are_no_part_of_the_pickle(self, way: Way) -> None:
        for batch in ([LONG, {"jpg": LONG * 3}], LONG, ({"a": [LONG]},), ["x", LONG * 9]):
            data, (buffers, sent, joined), kept = cargo.pack(batch, way.pool)
            assert len(data) < 200
            assert not buffers
            assert joined is not None
            assert sent == [joined[0]]
            assert sum(joined[1]) % len(LONG) == 0
            del kept
            way.pool.came_home(sent)

    def test_hold_no_memory_once_they_are_there(self, way: Way) -> None:
        arrived = way.cross([LONG * 4, LONG])
        assert way.bring_home() == 1, "their buffer is free at once, though they are kept"
        assert arrived == [LONG * 4, LONG]

    def test_that_are_followed_by_what_cannot_be_packed_leave_nothing_lent(self, way: Way) -> None:
        with pytest.raises(TypeError):
            cargo.pack([LONG, (n for n in ())], way.pool)
        assert way.cross([LONG]) == [LONG]


def test_a_batch_larger_than_the_files_it_may_open() -> None:
    """Buffers are sent on the way, so that their descriptors do not pile up."""
    way = Way()
    way.pool.ship = way.deliver_buffers
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 80, before[1]))
    try:
        batch = [torch.full((LEASE_BYTES // 8,), n) for n in range(400)]
        arrived = way.cross(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert all(as_bytes(a) == as_bytes(b) for a, b in zip(arrived, batch, strict=True))
    way.close()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_torch_keeps_no_sparse_tensor_that_was_unpacked() -> None:
    samples = [torch.eye(3).to_sparse() for _ in range(4)]
    assert len(list(DataLoader(samples, batch_size=None, num_workers=1))) == 4  # type: ignore[arg-type]
    assert len(cargo._sparse_kept()) == 0  # else torch.load() would go through them, and warn
