"""What only a device can show: that copies are asynchronous, complete and waited for."""

import gc
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from headrace import DataLoader
from headrace.engine.ahead.pinning import CudaPages
from headrace.engine.ahead.transfer import Transfer
from headrace.engine.lease import Pool, memory_at
from headrace.errors import OptionError

pytestmark = pytest.mark.gpu

WIDTH, ROWS, BATCH = 64 << 10, 512, 16
BUSY = 200_000_000  # cycles: about 0.1 s, in which the host runs far ahead


class Numbered(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((WIDTH,), index, dtype=torch.int32)


def columns() -> TensorDataset:
    numbers = torch.arange(ROWS, dtype=torch.int32)
    return TensorDataset(numbers[:, None].repeat(1, 8_192), numbers)


def expected(number: int, device: torch.device) -> torch.Tensor:
    first = number * BATCH
    return torch.arange(first, first + BATCH, dtype=torch.int32, device=device)[:, None]


WAYS: dict[str, dict[str, Any]] = {
    "inline": {},
    "processes": {"num_workers": 2},
    "threads": {"num_workers": 2, "backend": "thread"},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_value_arrives_while_the_host_runs_ahead(way: str) -> None:
    loader: Any = DataLoader(Numbered(), batch_size=BATCH, device="cuda", **WAYS[way])
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(3):
        for number, batch in enumerate(loader):
            assert batch.device.type == "cuda"
            if number % 8 == 0:
                torch.cuda._sleep(BUSY // 10)
            wrong += (batch != expected(number, batch.device)).sum()
        torch.cuda._sleep(BUSY // 10)
    assert wrong.item() == 0


def test_gathered_batches_arrive() -> None:
    loader: Any = DataLoader(columns(), batch_size=BATCH, device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(5):
        for number, (wide, labels) in enumerate(loader):
            rows = expected(number, wide.device)
            wrong += (wide != rows).sum() + (labels != rows[:, 0]).sum()
    assert wrong.item() == 0


def test_the_users_stream_waits_whichever_it_is() -> None:
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            loader: Any = DataLoader(Numbered(), batch_size=BATCH, device="cuda")
            for number, batch in enumerate(loader):
                assert torch.equal(batch, expected(number, batch.device).expand_as(batch))


def test_memory_that_was_let_go_is_not_overwritten_under_a_kernel() -> None:
    """The user's kernels run long after the batch has died in Python: record_stream holds it."""
    loader: Any = DataLoader(Numbered(), batch_size=BATCH, device="cuda")
    sums = []
    for batch in loader:
        torch.cuda._sleep(BUSY // 50)
        sums.append(batch[:, -1].sum())
        del batch
    wanted = [sum(range(n * BATCH, (n + 1) * BATCH)) for n in range(len(loader))]
    assert [int(total) for total in sums] == wanted


def test_leases_are_page_locked_and_copied_without_waiting() -> None:
    pool = Pool()
    tensor = pool.empty((WIDTH,), torch.int32)
    assert not tensor.is_pinned()
    batches = Transfer(iter([tensor]), torch.device("cuda"), lambda: None)
    next(batches)
    assert tensor.is_pinned()
    assert memory_at(tensor.data_ptr()) is not None


def test_a_lease_that_is_released_can_be_locked_at_the_same_address_again() -> None:
    for _ in range(20):
        tensor = Pool().empty((1 << 20,), torch.uint8).fill_(3)
        (copied,) = Transfer(iter([tensor]), torch.device("cuda"), lambda: None)
        assert copied.eq(3).all()
        del tensor
        gc.collect()


def test_a_lock_that_fails_leaves_no_error_behind() -> None:
    pages = CudaPages(torch.cuda.cudart())
    assert not pages._lock(4_096, 4_096)  # nothing is mapped there
    assert torch.ones(3, device="cuda").sum().item() == 3
    torch.cuda.synchronize()


def test_pin_memory_is_safe_under_copies_on_any_stream() -> None:
    loader: Any = DataLoader(Numbered(), batch_size=BATCH, pin_memory=True, num_workers=2)
    side = torch.cuda.Stream()
    arrived = []
    for batch in loader:
        assert batch.is_pinned()
        with torch.cuda.stream(side):
            torch.cuda._sleep(BUSY // 50)
            arrived.append(batch.to("cuda", non_blocking=True))
        del batch
    side.synchronize()
    for number, batch in enumerate(arrived):
        assert torch.equal(batch, expected(number, batch.device).expand_as(batch))


def test_a_number_too_high_is_refused() -> None:
    device = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(OptionError, match="is not here"):
        DataLoader(Numbered(), device=device)  # type: ignore[call-arg]


@pytest.mark.timeout(300)
def test_the_bench_runs_and_finds_no_wrong_value() -> None:
    command = [sys.executable, "-m", "headrace.cli", "bench", "device", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)["reports"]
    soaks = [row for row in report["rows"] if row["work"].startswith("soak")]
    assert len(soaks) == 3
    assert all(row["value"]["high"] == 0 for row in soaks)
