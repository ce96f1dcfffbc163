"""``headrace bench device``: copies to a device against its link, behind a step, and for truth."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from headrace import DataLoader
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    Spread,
    System,
    at_least,
    at_most,
    environment,
    in_turn,
    ratios,
    spread,
)
from headrace.engine.ahead.transfer import Transfer
from headrace.engine.lease import Pool

OURS = "headrace"
LINK = "bare pinned copy"
TORCH = "pin_memory() and .to(non_blocking=True)"
_OF_LINK = 0.9
_HIDDEN = 0.9
_HOST_BATCHES = 4  # leases that take turns, as a loader's do
_SOAK_WIDTH = 64 << 10

_MEANING = (
    "of the link: batches that are ready on leases, to the device, in GB/s, as a share of copies "
    "from one page-locked buffer to one device buffer that do nothing else",
    "hidden: 1 - (step and copies - step alone) / copies alone; the step is a chain of matrix "
    "products that takes twice as long as a copy",
    "soak: every value of every batch is compared on the device, while leases are used again and "
    "the host runs ahead",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows on a CUDA device; takes about a minute, and some seconds when quick."""
    where = {**environment(), "device": torch.cuda.get_device_name()}
    device = torch.device("cuda")
    bench = _Copies(device, size)
    rows = (bench.of_link(say), bench.hidden(say), *_soaks(device, size, say))
    return Report("device", _MEANING, rows, size, where)


class _Copies:
    """Copies of batches that are made already: what is measured is the way to the device."""

    def __init__(self, device: torch.device, size: Size) -> None:
        self.device = device
        self.size = size
        self.count = size.choose(200, 10)
        self.bytes = size.choose(64 << 20, 4 << 20)
        pool = Pool()
        self.leased = [pool.empty((self.bytes,), torch.uint8) for _ in range(_HOST_BATCHES)]
        self.plain = [torch.zeros(self.bytes, dtype=torch.uint8) for _ in range(_HOST_BATCHES)]
        for tensor in self.leased:
            tensor.zero_()
        self.matrix = torch.rand(4_096, 4_096, device=device)

    def ours(self) -> Iterator[torch.Tensor]:
        """Yield the leased batches on the device, as a loader with ``device=`` does."""
        ready = deque(self.leased[n % _HOST_BATCHES] for n in range(self.count))

        def batches() -> Iterator[torch.Tensor]:
            while ready:
                yield ready.popleft()

        return Transfer(batches(), self.device, lambda: ready[0] if ready else None)

    def torchs(self) -> Iterator[torch.Tensor]:
        """Yield batches as torch's loader and its user bring them to the device."""
        for number in range(self.count):
            pinned = self.plain[number % _HOST_BATCHES].pin_memory()
            yield pinned.to(self.device, non_blocking=True)

    def bare(self) -> Iterator[None]:
        """Copy one page-locked buffer to one buffer on the device."""
        source = torch.zeros(self.bytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(source, device=self.device)
        for _ in range(self.count):
            target.copy_(source, non_blocking=True)
            yield

    def seconds(
        self, batches: Callable[[], Iterator[Any]], step: Callable[[], object] | None = None
    ) -> float:
        """Return what a loop over the batches takes, on the device too."""
        for _, _ in zip(range(3), batches(), strict=False):  # page-locks, and allocates
            pass
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in batches():
            if step is not None:
                step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def of_link(self, say: Say) -> Row:
        say(f"{self.count} copies of {self.bytes >> 20} MiB")
        runs: dict[str, Callable[[], float]] = {
            name: partial(self.seconds, batches)
            for name, batches in ((OURS, self.ours), (TORCH, self.torchs), (LINK, self.bare))
        }
        seconds = in_turn(runs, self.size.rounds)
        total = self.count * self.bytes / 1e9
        systems = tuple(
            System(name, spread([total / s for s in taken]), "GB/s")
            for name, taken in seconds.items()
        )
        share = ratios(seconds[LINK], seconds[OURS])
        return Row("ready batches", "of the link", share, "x", at_least(_OF_LINK), systems)

    def hidden(self, say: Say) -> Row:
        say("copies behind a step")
        products = self._products_of(2 * self.seconds(self.bare) / self.count)

        def step() -> None:
            for _ in range(products):
                torch.mm(self.matrix, self.matrix)

        def nothing() -> Iterator[None]:
            return iter([None] * self.count)

        runs: dict[str, Callable[[], float]] = {
            "step": partial(self.seconds, nothing, step),
            "copies": partial(self.seconds, self.bare),
            OURS: partial(self.seconds, self.ours, step),
            TORCH: partial(self.seconds, self.torchs, step),
        }
        seconds = in_turn(runs, self.size.rounds)

        def share(name: str) -> Spread:
            rounds = zip(seconds[name], seconds["step"], seconds["copies"], strict=True)
            return spread([1 - (both - step_s) / copies for both, step_s, copies in rounds])

        systems = tuple(System(name, share(name), "x") for name in (OURS, TORCH))
        return Row("behind a step", "hidden", share(OURS), "x", at_least(_HIDDEN), systems)

    def _products_of(self, seconds: float) -> int:
        """Return how many matrix products take so long."""
        for _ in range(2):  # the first one loads the library
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                torch.mm(self.matrix, self.matrix)
            torch.cuda.synchronize()
            one = (time.perf_counter() - started) / 10
        return max(1, round(seconds / one))


class _Numbered(torch.utils.data.Dataset[torch.Tensor]):
    """Samples that hold their index."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((_SOAK_WIDTH,), index, dtype=torch.int32)


def _soaks(device: torch.device, size: Size, say: Say) -> Iterator[Row]:
    columns = torch.arange(size.choose(4_096, 512), dtype=torch.int32)
    rows = torch.utils.data.TensorDataset(columns[:, None].repeat(1, _SOAK_WIDTH >> 3))
    kinds: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("2 worker processes", _Numbered(len(columns)), {"num_workers": 2}),
        ("this process", _Numbered(len(columns)), {}),
        ("gathered columns", rows, {}),
    )
    for name, dataset, options in kinds:
        say(f"soak: {name}")
        yield _soak(name, dataset, {**options, "device": device}, size.choose(5, 1))


def _soak(name: str, dataset: Any, options: dict[str, Any], epochs: int) -> Row:
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=16, **options)
    wrong = torch.zeros((), dtype=torch.int64, device=options["device"])
    values = 0
    started = time.perf_counter()
    for _ in range(epochs):
        for number, batch in enumerate(loader):
            tensor = batch[0] if isinstance(batch, (list, tuple)) else batch
            first = number * 16
            expected = torch.arange(first, first + len(tensor), device=tensor.device)
            wrong += (tensor != expected[:, None]).sum()  # no wait here: the host runs ahead
            values += tensor.numel()
    count = spread([float(wrong.item())])
    seconds = time.perf_counter() - started
    rate = System(OURS, spread([values * 4 / 1e9 / seconds]), "GB/s")
    note = f"{values:,} values compared"
    return Row(f"soak: {name}", "wrong values", count, "", at_most(0), (rate,), note)
