"""alloc: plain memory outside a loader, a lease inside one."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from headrace import DataLoader, alloc
from headrace.engine.lease import Pool
from headrace.memory import lending


class TestAlloc:
    @pytest.mark.parametrize("lender", [None, Pool()])
    @pytest.mark.parametrize(
        ("shape", "sizes"),
        [(5, (5,)), ((2, 3), (2, 3)), ([2, 3], (2, 3)), ((), ()), (0, (0,)), ((4, 0), (4, 0)),
         (torch.Size([2, 3]), (2, 3)), (200_000, (200_000,)), ((300, 400, 2), (300, 400, 2))],
    )  # fmt: skip
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.bfloat16, torch.complex64])
    def test_makes_a_tensor_of_that_shape(
        self, lender: Any, shape: Any, sizes: Any, dtype: Any
    ) -> None:
        with lending(lender):
            made = alloc(shape, dtype)
        assert made.shape == sizes
        assert made.dtype == dtype
        assert made.is_contiguous()
        assert not made.requires_grad
        made.fill_(1)
        assert made.untyped_storage().nbytes() == made.nbytes

    def test_is_float32_by_default(self) -> None:
        assert alloc(3).dtype == torch.float32

    def test_is_on_the_cpu_whatever_the_default_device(self) -> None:
        with torch.device("meta"):
            assert alloc(3).device.type == "cpu"
            with lending(Pool()):
                assert alloc(1 << 20).device.type == "cpu"

    def test_borrows_inside_a_loader_and_nowhere_else(self) -> None:
        def collate(samples: list[Any]) -> torch.Tensor:
            out = alloc((len(samples), 1 << 16))
            out[:] = torch.tensor(samples)[:, None]
            return out

        loader = DataLoader(range(20), batch_size=2, collate_fn=collate)
        for number, batch in enumerate(loader):
            assert batch[:, -1].tolist() == [2 * number, 2 * number + 1]
        created = loader._session.pool.created
        assert 1 <= created <= 3
        alloc(1 << 20)
        assert loader._session.pool.created == created

    def test_borrows_in_the_dataset_too(self) -> None:
        class Rows(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 20

            def __getitem__(self, index: int) -> torch.Tensor:
                return alloc(1 << 16).fill_(index)

        loader = DataLoader(Rows(), batch_size=None)
        assert [float(row[-1]) for row in loader] == list(range(20))
        assert loader._session.pool.created <= 3

    def test_ends_with_an_exception(self) -> None:
        pool = Pool()
        with pytest.raises(OSError, match="x"), lending(pool):
            raise OSError("x")
        alloc(1 << 20)
        assert pool.created == 0

    def test_nests(self) -> None:
        outer, inner = Pool(), Pool()
        with lending(outer):
            with lending(inner):
                alloc(1 << 20)
            with lending(None):
                alloc(1 << 20)
            alloc(1 << 20)
        assert (outer.created, inner.created) == (1, 1)

    def test_is_of_one_thread(self) -> None:
        pool = Pool()
        with lending(pool):
            thread = threading.Thread(target=alloc, args=(1 << 20,))
            thread.start()
            thread.join()
        assert pool.created == 0

    def test_memory_is_writable_by_numpy(self) -> None:
        with lending(Pool()):
            made = alloc((100, 1_000))
        made.numpy()[:] = np.arange(1_000)
        assert float(made[7, 9]) == 9
