"""A folder of JPEGs: beside torch's loader with Pillow, and beside loops that only decode."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.harness import Row, Say, Size, System, at_least, in_turn, ratios, spread
from headrace.bench.workers.work import (
    LOADERS,
    OURS,
    TORCH,
    Run,
    Work,
    memory_mib,
    run,
    run_epoch,
    system,
    two_bare_loops,
)
from headrace.data.images.folder import ImageFolder
from headrace.extras import import_extra

_BARE = "two bare loops"
_LATER = "headrace, later epochs"
_SMALL = "headrace, size=128"
_SIDE = 256
_BATCH = 64


def images(size: Size, say: Say) -> list[Row]:
    """Measure 2,000 photographs of 256 x 256 pixels, shuffled, batch 64, 2 processes."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        count = size.choose(2_000, 8 * _BATCH)
        say(f"writing {count:,} JPEGs of {_SIDE} x {_SIDE}")
        write_photographs(Path(directory), count)
        whole = _Folder(ImageFolder(directory), _BATCH, 2)
        small = _Folder(ImageFolder(directory, size=_SIDE // 2), _BATCH, 2)
        paths = [path for path, _ in whole.dataset.samples]
        epochs: dict[str, Any] = {
            OURS: partial(run, whole, OURS),
            TORCH: partial(run, whole, TORCH),
            _LATER: partial(run_epoch, whole, whole.loader(OURS, persistent_workers=True)),
            _SMALL: partial(run, small, OURS),
            _BARE: lambda _=None: _bare_loops(paths),
        }
        epochs[_LATER]()
        say("images: headrace, torch's loader with Pillow, two bare loops, in turn")
        runs = in_turn(epochs, size.rounds)
        systems = {
            name: system(
                name,
                spread([run.rate / 1e3 for run in of]),
                "k images/s",
                of,
                memory_mib(epochs[name]),
            )
            for name, of in runs.items()
        }
    return _rows(count, runs, systems)


def _rows(count: int, runs: dict[str, list[Run]], systems: dict[str, System]) -> list[Row]:
    work = f"{count:,} JPEGs {_SIDE}x{_SIDE}, batch {_BATCH}, shuffled, 2 processes"
    rates = {name: [run.rate for run in of] for name, of in runs.items()}

    def row(work: str, above: str, below: str, bound: float, note: str) -> Row:
        return Row(
            work=work,
            figure=f"throughput, {above} / {below}",
            value=ratios(rates[above], rates[below]),
            unit="x",
            target=at_least(bound),
            systems=(systems[above], systems[below]),
            note=note,
        )

    return [
        row(
            work,
            OURS,
            TORCH,
            2.0,
            "the rival decodes with Pillow and stacks rows (H, W, 3), which spares it a "
            "transposing copy",
        ),
        row(
            work,
            OURS,
            _BARE,
            0.9,
            "a bare loop reads and decodes half of the files with simplejpeg, each into the same "
            "memory; it makes no batches",
        ),
        row(
            "the same, later epochs of persistent workers",
            _LATER,
            _BARE,
            0.9,
            "the first epoch has 31 batches, and takes the memory of the first of them, page by "
            "page, from the system: later ones use it again",
        ),
        row(
            f"the same, decoded at size={_SIDE // 2}",
            _SMALL,
            OURS,
            1.5,
            "the JPEG's bits have to be read at any size: that part does not shrink",
        ),
    ]


def write_photographs(directory: Path, count: int) -> None:
    """Write crops of scikit-learn's two photographs, as Pillow saves JPEGs, in ten classes."""
    photographs = import_extra("sklearn.datasets", "demo").load_sample_images().images
    pillow = import_extra("PIL.Image", "images")
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top = random.integers(photograph.shape[0] - _SIDE)
        left = random.integers(photograph.shape[1] - _SIDE)
        folder = directory / f"class {number % 10}"
        folder.mkdir(exist_ok=True)
        crop = photograph[top : top + _SIDE, left : left + _SIDE]
        pillow.fromarray(crop).save(folder / f"{number}.jpg")


class PillowFolder(torch.utils.data.Dataset[Any]):
    """The rival: what people write with Pillow, without the detour over floats."""

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples = samples
        self._pillow = import_extra("PIL.Image", "images")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, target = self.samples[index]
        with self._pillow.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))), target


@dataclass(frozen=True)
class _Folder(Work):
    """A folder of images, and how it is loaded."""

    dataset: ImageFolder

    def loader(self, system: str, **more: Any) -> Any:
        dataset: Any = self.dataset if system == OURS else PillowFolder(self.dataset.samples)
        return LOADERS[system](
            dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            shuffle=True,
            drop_last=True,
            multiprocessing_context="fork",
            **more,
        )


def _bare_loops(paths: list[str]) -> Run:
    decode_jpeg = import_extra("simplejpeg", "images").decode_jpeg

    def loop(part: int, ready: Callable[[], object]) -> None:
        pixels = np.empty((_SIDE, _SIDE, 3), np.uint8)
        ready()
        for path in paths[part::2]:
            with open(path, "rb", buffering=0) as file:
                decode_jpeg(file.read(), buffer=pixels)

    return two_bare_loops(len(paths), loop)
