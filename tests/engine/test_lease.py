"""A buffer that is lent again too early corrupts data in silence: each rule has its test."""

import copy
import gc
import io
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from headrace import DataLoader, alloc, default_collate
from headrace.engine.lease import SMALL_LEAF_BYTES, Pool, as_tensor, size_class

ROWS, WIDTH, BATCH = 1_024, 2_048, 64  # a batch is 512 KiB, a block two of them


class Rows(Dataset[Any]):
    """The general path: a sample at a time."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]


def images() -> torch.Tensor:
    return torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH)


@pytest.fixture(params=[TensorDataset, Rows], ids=["gather", "inline"])
def dataset(request: pytest.FixtureRequest) -> Any:
    return request.param(images(), torch.arange(ROWS))


@pytest.fixture
def loader(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=BATCH)


def created(loader: DataLoader[Any]) -> int:
    return loader._session.pool.created


def in_hand(pool: Pool) -> list[Any]:
    """The buffers that nobody holds."""
    pool._sort_returned()
    return [memory for free in pool._free.values() for memory in free]


def expected(number: int) -> torch.Tensor:
    return images()[number * BATCH : (number + 1) * BATCH]


def let_all_go(loader: DataLoader[Any], epochs: int = 4) -> int:
    """Iterate without keeping anything; returns how many buffers that took."""
    before = created(loader)
    for _ in range(epochs):
        for _batch in loader:
            pass
        del _batch
    return created(loader) - before


class TestWhatNobodyHolds:
    def test_is_reused(self, loader: DataLoader[Any]) -> None:
        let_all_go(loader)
        assert 1 <= created(loader) <= 3
        assert let_all_go(loader) == 0

    def test_is_reused_across_batch_sizes(self, dataset: Any) -> None:
        """The last batch of an epoch is smaller; it must not cost a buffer an epoch."""
        loader = DataLoader(dataset, batch_size=BATCH + 1)
        let_all_go(loader)
        assert let_all_go(loader) == 0

    def test_is_reused_when_only_labels_are_kept(self, loader: DataLoader[Any]) -> None:
        labels = [label for _ in range(3) for _, label in loader]
        assert 1 <= created(loader) <= 4, "kept labels hold images"
        assert torch.equal(torch.cat(labels), torch.arange(ROWS).repeat(3))

    def test_is_reused_although_the_last_one_died_in_another_thread(
        self, loader: DataLoader[Any]
    ) -> None:
        let_all_go(loader)
        for _ in range(3):
            for batch in loader:
                holder = [batch]
                del batch
                thread = threading.Thread(target=holder.clear)
                thread.start()
                thread.join()
        assert let_all_go(loader) <= 1

    def test_is_reused_when_a_cycle_held_it(self, loader: DataLoader[Any]) -> None:
        let_all_go(loader)
        for batch in loader:
            cycle: list[Any] = [batch]
            cycle.append(cycle)
        del batch, cycle
        gc.collect()
        assert let_all_go(loader) == 0

    def test_is_released_with_the_loader(self, dataset: Any) -> None:
        loader = DataLoader(dataset, batch_size=BATCH)
        for _batch in loader:
            pass
        pool = weakref.ref(loader._session.pool)
        pages = [weakref.ref(m._keeper) for m in in_hand(loader._session.pool)]
        del loader, _batch
        gc.collect()
        assert pool() is None
        assert pages
        assert [p() for p in pages] == [None] * len(pages)

    def test_is_released_when_it_stays_unused(self) -> None:
        """One large batch must not cost its memory for the rest of the run."""
        pool = Pool()
        pool.lend(64 << 20)
        pages = weakref.ref(pool.lend(64 << 20).base._keeper)
        assert pool.created == 1
        assert pages() is not None
        for _ in range(200):
            pool.lend(1 << 20)
        assert pages() is None, "64 MiB stay although nobody asked for them in 200 loans"
        assert pool.created == 2


class TestWhatIsHeld:
    def test_every_batch(self, loader: DataLoader[Any]) -> None:
        kept = [batch for _ in range(2) for batch in loader]
        let_all_go(loader)
        for number, (image, label) in enumerate(kept):
            assert torch.equal(image, expected(number % (ROWS // BATCH)))
            assert torch.equal(label, label[0] + torch.arange(BATCH))
        before = created(loader)
        del kept, image, label
        assert let_all_go(loader) == 0
        assert created(loader) == before

    @pytest.mark.parametrize(
        "keep",
        [
            pytest.param(lambda t: t[3:5], id="a view"),
            pytest.param(lambda t: t.view(-1)[3 * WIDTH : 5 * WIDTH].view(2, -1), id="a reshape"),
            pytest.param(lambda t: t.detach()[3:5], id="detached"),
            pytest.param(lambda t: t.numpy()[3:5], id="numpy"),
            pytest.param(lambda t: memoryview(t.numpy())[3:5], id="memoryview"),
            pytest.param(lambda t: np.asarray(t)[3:5].view(), id="a view of numpy"),
            pytest.param(lambda t: t.__dlpack__(), id="a DLPack capsule"),
            pytest.param(lambda t: torch.from_dlpack(t)[3:5], id="DLPack to torch"),
            pytest.param(lambda t: np.from_dlpack(t)[3:5], id="DLPack to NumPy"),
            pytest.param(lambda t: t.untyped_storage(), id="the storage"),
            pytest.param(lambda t: t.unbind()[3:5], id="rows"),
            pytest.param(lambda t: iter(t[3:5]), id="an iterator"),
            pytest.param(lambda t: torch.nn.Parameter(t)[3:5], id="a parameter"),
        ],
    )
    def test_in_any_form(self, loader: DataLoader[Any], keep: Callable[[Any], Any]) -> None:
        kept = [keep(image) for image, _ in loader]
        let_all_go(loader)
        for number, form in enumerate(kept):
            assert torch.equal(as_rows(form), expected(number)[3:5])

    @pytest.mark.parametrize(
        "clone",
        [
            pytest.param(lambda t: pickle.loads(pickle.dumps(t)), id="pickled"),
            pytest.param(copy.deepcopy, id="deep copy"),
            pytest.param(copy.copy, id="copy"),
            pytest.param(torch.clone, id="clone"),
            pytest.param(lambda t: t.share_memory_(), id="shared"),
        ],
    )
    def test_as_a_copy(self, loader: DataLoader[Any], clone: Callable[[Any], Any]) -> None:
        kept = [clone(image) for image, _ in loader]
        let_all_go(loader)
        for number, image in enumerate(kept):
            assert torch.equal(image, expected(number))

    def test_while_it_is_written_to(self, loader: DataLoader[Any]) -> None:
        kept = []
        for image, _ in loader:
            image.mul_(2)
            kept.append(image)
        let_all_go(loader)
        for number, image in enumerate(kept):
            assert torch.equal(image, 2 * expected(number))

    def test_by_another_thread(self, loader: DataLoader[Any]) -> None:
        wrong: list[int] = []
        arrived = threading.Semaphore(0)
        queue: list[tuple[int, torch.Tensor]] = []

        def consume() -> None:
            for _ in range(2 * ROWS // BATCH):
                arrived.acquire()
                number, image = queue.pop(0)
                if not torch.equal(image, expected(number)):
                    wrong.append(number)
                del image

        thread = threading.Thread(target=consume)
        thread.start()
        for _ in range(2):
            for number, (image, _) in enumerate(loader):
                queue.append((number, image))
                del image
                arrived.release()
        thread.join()
        assert wrong == []

    def test_when_the_loader_is_dropped_first(self, dataset: Any) -> None:
        kept = list(DataLoader(dataset, batch_size=BATCH))
        gc.collect()
        other = DataLoader(dataset, batch_size=BATCH)
        let_all_go(other)
        for number, (image, _) in enumerate(kept):
            assert torch.equal(image, expected(number))

    def test_when_the_iterator_is_dropped_halfway(self, loader: DataLoader[Any]) -> None:
        kept = []
        for _ in range(20):
            image, _ = next(iter(loader))
            kept.append(image)
        let_all_go(loader)
        assert all(torch.equal(image, expected(0)) for image in kept)

    def test_in_two_epochs_at_once(self, loader: DataLoader[Any]) -> None:
        kept = list(zip(loader, loader, strict=True))
        let_all_go(loader)
        for number, ((one, _), (other, _)) in enumerate(kept):
            assert one.data_ptr() != other.data_ptr()
            assert torch.equal(one, expected(number))
            assert torch.equal(other, expected(number))

    def test_in_two_threads_that_iterate_at_once(self, loader: DataLoader[Any]) -> None:
        wrong: list[Any] = []
        start = threading.Barrier(3)

        def train() -> None:
            start.wait()
            try:
                for _ in range(3):
                    for number, (image, _) in enumerate(loader):
                        if not torch.equal(image, expected(number)):
                            wrong.append(number)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=train) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def as_rows(form: Any) -> torch.Tensor:
    if isinstance(form, torch.UntypedStorage):
        return torch.tensor([], dtype=torch.float32).set_(form, 0, (BATCH, WIDTH))[3:5]
    if type(form).__name__ == "PyCapsule":
        return torch.utils.dlpack.from_dlpack(form)[3:5]
    if isinstance(form, (tuple, Iterator)):
        return torch.stack(list(form))
    return torch.from_numpy(np.array(form)) if not isinstance(form, torch.Tensor) else form


class TestStorages:
    """Tensors of one storage share autograd's version counter, and are saved together."""

    def test_are_not_shared_between_batches_or_leaves(self, loader: DataLoader[Any]) -> None:
        pointers = set()
        kept = list(loader)
        for batch in kept:
            for tensor in batch:
                storage = tensor.untyped_storage()
                assert storage.nbytes() == tensor.nbytes
                assert tensor.storage_offset() == 0
                pointers.add(storage.data_ptr())
        assert len(pointers) == 2 * len(kept)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_let_a_batch_change_with_a_backward_pending_on_the_one_before(
        self, dtype: torch.dtype
    ) -> None:
        loader = DataLoader(TensorDataset(images().to(dtype)), batch_size=BATCH)
        weight = torch.ones(WIDTH, dtype=dtype, requires_grad=True)
        batches = iter(loader)
        (first,) = next(batches)
        loss = (first * weight).sum()
        (second,) = next(batches)
        second.zero_()
        loss.backward()
        assert torch.equal(weight.grad, expected(0).to(dtype).sum(0))

    def test_let_a_held_batch_survive_what_a_later_one_suffers(
        self, loader: DataLoader[Any]
    ) -> None:
        weight = torch.ones(WIDTH, requires_grad=True)
        losses = []
        for image, _ in loader:
            losses.append((image * weight).sum())
            if len(losses) > 1:
                losses[-2].backward()
            del image
        losses[-1].backward()
        assert torch.equal(weight.grad, images().reshape(-1, BATCH, WIDTH).sum(1).sum(0))

    def test_are_saved_one_batch_at_a_time(self, loader: DataLoader[Any]) -> None:
        image, label = next(iter(loader))
        file = io.BytesIO()
        torch.save((image, label), file)
        assert file.tell() < image.nbytes + label.nbytes + 8_192
        assert len(pickle.dumps(image)) < image.nbytes + 8_192

    def test_can_be_written_to(self, loader: DataLoader[Any]) -> None:
        image, label = next(iter(loader))
        image.numpy()[:] = 1
        label += 1
        assert float(image.sum()) == BATCH * WIDTH
        assert float(next(iter(loader))[0].sum()) == float(expected(0).sum())

    def test_can_require_a_gradient(self, loader: DataLoader[Any]) -> None:
        image, _ = next(iter(loader))
        (image.requires_grad_() ** 2).sum().backward()
        assert torch.equal(image.grad, 2 * expected(0))


class TestFork:
    """The child may go on reading what it inherited, and lends nothing of its parent's."""

    pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

    @staticmethod
    def in_child(look: Callable[[], bool]) -> int:
        """Start a child that looks; :meth:`said_yes` says what it saw."""
        child = os.fork()
        if child == 0:
            answer = 1
            try:
                torch.set_num_threads(1)  # the pool of threads did not come along
                answer = 0 if look() else 1
            finally:
                os._exit(answer)
        return child

    @staticmethod
    def said_yes(child: int) -> bool:
        return os.waitpid(child, 0)[1] == 0

    def test_child_reads_what_it_inherited_while_the_parent_goes_on(
        self, loader: DataLoader[Any]
    ) -> None:
        let_all_go(loader)
        kept = list(loader)
        go, told = os.pipe()

        def same_although_the_parent_let_go() -> bool:
            os.read(go, 1)
            return all(torch.equal(image, expected(n)) for n, (image, _) in enumerate(kept))

        child = self.in_child(same_although_the_parent_let_go)
        kept.clear()
        let_all_go(loader)
        os.write(told, b"x")
        assert self.said_yes(child)
        os.close(go)
        os.close(told)

    def test_parent_keeps_what_it_holds_while_the_child_lets_go(
        self, loader: DataLoader[Any]
    ) -> None:
        kept = list(loader)

        def let_go_and_iterate() -> bool:
            kept.clear()
            gc.collect()
            let_all_go(loader)
            return True

        assert self.said_yes(self.in_child(let_go_and_iterate))
        for number, (image, _) in enumerate(kept):
            assert torch.equal(image, expected(number))

    def test_child_goes_on_with_the_epoch_it_inherited(self, loader: DataLoader[Any]) -> None:
        batches = iter(loader)
        kept = [next(batches)]

        def rest_is_right() -> bool:
            rest = [image for image, _ in batches]
            kept.clear()
            later = [torch.equal(image, expected(n)) for n, (image, _) in enumerate(loader)]
            first = [torch.equal(image, expected(n + 1)) for n, image in enumerate(rest)]
            return len(rest) == ROWS // BATCH - 1 and all(first) and all(later)

        assert self.said_yes(self.in_child(rest_is_right))
        assert [torch.equal(image, expected(n + 1)) for n, (image, _) in enumerate(batches)].count(
            True
        ) == ROWS // BATCH - 1


class TestPool:
    def test_lends_what_came_back(self) -> None:
        pool = Pool()
        token = pool.lend(100_000)
        address = token.ctypes.data
        del token
        token = pool.lend(100_000)
        assert token.ctypes.data == address
        assert pool.created == 1

    def test_lends_a_larger_buffer_for_the_smaller_last_batch(self) -> None:
        pool = Pool()
        pool.lend(1 << 20)
        pool.lend(300 << 10)
        assert pool.created == 1
        pool.lend(100 << 10)
        assert pool.created == 2, "a buffer ten times too large is wasted on it"

    def test_never_lends_twice_at_once(self) -> None:
        pool = Pool()
        tokens = [pool.lend(100_000) for _ in range(20)]
        assert len({t.ctypes.data for t in tokens}) == 20

    def test_takes_back_only_when_the_last_slice_dies(self) -> None:
        pool = Pool()
        token = pool.lend(100_000)
        piece = token[10:20][2:4].view(np.int16)
        del token
        other = pool.lend(100_000)
        assert pool.created == 2
        del piece
        del other
        pool.lend(100_000)
        assert pool.created == 2

    def test_is_not_kept_alive_by_what_it_lent(self) -> None:
        pool = Pool()
        token = pool.lend(100_000)
        reference = weakref.ref(pool)
        del pool
        assert reference() is None, "needs the cycle collector"
        token[:] = 7
        assert int(token.sum()) == 7 * len(token)

    def test_keeps_small_tensors_off_leases(self) -> None:
        pool = Pool()
        pool.empty((SMALL_LEAF_BYTES - 1,), torch.uint8)
        assert pool.created == 0
        pool.empty((SMALL_LEAF_BYTES,), torch.uint8)
        assert pool.created == 1

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex128, torch.float8_e5m2]
    )
    def test_lends_tensors_of_any_type(self, dtype: torch.dtype) -> None:
        tensor = Pool().empty((3, 50_000), dtype)
        assert tensor.shape == (3, 50_000)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        tensor.view(torch.uint8).fill_(1)
        assert tensor.untyped_storage().nbytes() == 150_000 * dtype.itemsize

    def test_makes_tensors_without_elements(self) -> None:
        assert as_tensor(np.empty(0, np.uint8), (0, 3), torch.float32).shape == (0, 3)
        assert Pool().empty((1 << 20, 0), torch.float32).shape == (1 << 20, 0)

    @pytest.mark.parametrize("size", [0, 1, 4_096, 4_097, 65_536, 100_000, 1 << 20, 3_000_001])
    def test_size_classes_are_whole_pages_and_not_much_larger(self, size: int) -> None:
        rounded = size_class(size)
        assert rounded >= max(size, 1)
        assert rounded % 4_096 == 0
        assert rounded <= max(size * 9 / 8, 4_096) + 4_096
        assert size_class(rounded) == rounded


class TestUserCodeThatKeepsItsBatch:
    def test_in_the_collate_function(self) -> None:
        made: list[torch.Tensor] = []

        def collate(samples: list[torch.Tensor]) -> torch.Tensor:
            out = torch.stack(samples, out=alloc((len(samples), WIDTH)))
            made.append(out)
            return out

        loader = DataLoader(list(images()), batch_size=BATCH, collate_fn=collate)
        for _ in loader:
            pass
        for number, image in enumerate(made):
            assert torch.equal(image, expected(number))
        assert created(loader) == ROWS // BATCH

    def test_that_writes_into_leases_reuses_them(self) -> None:
        def collate(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"image": default_collate(samples)}

        large = list(torch.zeros(40, 64 << 10))  # smaller batches are left to torch's allocator
        loader = DataLoader(large, batch_size=BATCH, collate_fn=collate)
        let_all_go(loader)
        assert 1 <= created(loader) <= 3
