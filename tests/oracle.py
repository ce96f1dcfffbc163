"""torch as the oracle: run the same program with both loaders, and compare all that can be seen."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

import headrace

LOADERS = {"torch": torch_data.DataLoader, "headrace": headrace.DataLoader}


def assert_same(ours: Any, theirs: Any, path: str = "batch") -> None:
    """Values, types at every depth, element types, shapes, and what autograd sees."""
    assert type(ours) is type(theirs), f"{path}: {type(ours)} is not {type(theirs)}"
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, f"{path}: {ours.dtype} is not {theirs.dtype}"
        assert ours.shape == theirs.shape, f"{path}: {ours.shape} is not {theirs.shape}"
        for attribute in ("layout", "device", "requires_grad", "is_leaf"):
            assert getattr(ours, attribute) == getattr(theirs, attribute), f"{path}.{attribute}"
        assert ours.is_inference() == theirs.is_inference(), f"{path}.is_inference()"
        assert ours.is_contiguous() == theirs.is_contiguous(), f"{path}.is_contiguous()"
        assert as_bytes(ours) == as_bytes(theirs), f"{path}: {ours} is not {theirs}"
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), path
        for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(our, their, f"{path}[{place}]")
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), path


def as_bytes(tensor: torch.Tensor) -> bytes:
    """Bits, so that a NaN equals itself."""
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states(*more: torch.Generator | None) -> list[Any]:
    """The states of all generators of the process, and of those given, as comparable values."""
    numpy_state = np.random.get_state(legacy=False)
    return [
        bytes(torch.get_rng_state().numpy()),
        repr((numpy_state["state"], numpy_state["has_gauss"], numpy_state["gauss"])),
        bytes(numpy_state["state"]["key"]),
        random.getstate(),
        *(bytes(g.get_state().numpy()) for g in more if g is not None),
    ]


def trace(loader: Any, generator: torch.Generator | None = None) -> Iterator[tuple[Any, Any]]:
    """Each batch of an epoch with the generators at that moment, then the end's."""
    for batch in loader:
        yield batch, generator_states(generator)
    yield "end", generator_states(generator)


def assert_programs_agree(program: Callable[[Any], Any], seed: int = 0) -> Any:
    """Run ``program(DataLoader)`` with both loaders from one seed: results and generators agree."""
    results = {}
    for name, loader in LOADERS.items():
        seed_everything(seed)
        results[name] = program(loader), generator_states()
    assert_same(results["headrace"][0], results["torch"][0], "result")
    assert results["headrace"][1] == results["torch"][1], "the generators differ afterwards"
    return results["headrace"][0]


class Listening:
    """A sampler of the user's own: draws from torch's generator, an index at a time."""

    def __init__(self, n: int, length: int) -> None:
        self.n, self.length = n, length

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.length):
            yield int(torch.randint(self.n, ()))

    def __len__(self) -> int:
        return self.length


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of a loader as plain values, so that two equal loaders can be built from them."""

    order: str = "sequential"
    batch_size: int | None = 3
    drop_last: bool = False
    generator_seed: int | None = None
    order_seed: int = 0

    def generator(self) -> torch.Generator | None:
        if self.generator_seed is None:
            return None
        return torch.Generator().manual_seed(self.generator_seed)

    def build(self, loader: Any, dataset: Any, generator: torch.Generator | None) -> Any:
        n = len(dataset)
        options: dict[str, Any] = {"batch_size": self.batch_size, "generator": generator}
        if self.batch_size is not None:
            options["drop_last"] = self.drop_last
        draw = np.random.default_rng(self.order_seed)
        some = draw.integers(0, n, 1 + self.order_seed % 9).tolist() if n else []
        match self.order:
            case "shuffle":
                options["shuffle"] = n > 0
            case "list":
                options["sampler"] = some
            case "negative":
                options["sampler"] = [i - n for i in some]
            case "numpy":
                options["sampler"] = np.array(some, np.int64)
            case "tensor":
                options["sampler"] = torch.tensor(some, dtype=torch.int64)
            case "custom":
                options["sampler"] = Listening(n, len(some))
            case "subset":
                options["sampler"] = SubsetRandomSampler(some, generator=generator)
            case "weighted" if n:
                weights = draw.random(n) + 0.01
                options["sampler"] = WeightedRandomSampler(
                    weights.tolist(), 2 * n, generator=generator
                )
            case "replacement" if n:
                options["sampler"] = RandomSampler(
                    range(n), replacement=True, num_samples=n + 33, generator=generator
                )
            case "many" if n:
                options["sampler"] = RandomSampler(
                    range(n), num_samples=2 * n + n // 2, generator=generator
                )
            case "batches" if n:
                for name in ("batch_size", "drop_last"):
                    options.pop(name, None)
                options["batch_sampler"] = [[i, (i + 1) % n] for i in some]
        return loader(dataset, **options)


ORDERS = (
    *("sequential", "shuffle", "list", "negative", "numpy", "tensor", "custom"),
    *("subset", "weighted", "replacement", "many", "batches"),
)


def assert_plan_agrees(plan: Plan, dataset: Callable[[], Any], seed: int, epochs: int = 2) -> str:
    """Both loaders over equal datasets: batches, generators at each batch, in each epoch.

    Returns the way that headrace went.
    """
    recorded: dict[str, list[Any]] = {}
    path = ""
    for name, cls in LOADERS.items():
        seed_everything(seed)
        generator = plan.generator()
        loader = plan.build(cls, dataset(), generator)
        recorded[name] = [step for _ in range(epochs) for step in trace(loader, generator)]
        assert name == "torch" or len(loader) >= 0
        path = loader.statistics().path if name == "headrace" else path
    assert len(recorded["headrace"]) == len(recorded["torch"]), "the number of batches differs"
    for number, (ours, theirs) in enumerate(
        zip(recorded["headrace"], recorded["torch"], strict=True)
    ):
        assert_same(ours[0], theirs[0], f"batch {number}")
        assert ours[1] == theirs[1], f"the generators differ at batch {number}"
    return path
