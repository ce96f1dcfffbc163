"""mosaicml-streaming: its shards and its loader. It pins versions: it has its own environment."""

from pathlib import Path

import numpy as np
import pytest
import torch

import headrace
from headrace.data import MDSDataset

from .conftest import assert_same

streaming = pytest.importorskip("streaming")
Image = pytest.importorskip("PIL.Image")
pytestmark = [pytest.mark.timeout(200)]

TEXTS = "mosaicml-streaming"


def write(place, columns, samples, **options):
    """Write MDS shards by its own writer."""
    with streaming.MDSWriter(out=str(place), columns=columns, **options) as out:
        for sample in samples:
            out.write(sample)
    return str(place)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    place = tmp_path_factory.mktemp("mds")
    rows = ({"i": number, "text": f"text {number}"} for number in range(100))
    write(place, {"i": "int", "text": "str"}, rows, size_limit=400)
    assert len(list(Path(place).glob("*.mds"))) > 3
    return str(place)


def dataset(shards):
    streaming.base.util.clean_stale_shared_memory()
    return streaming.StreamingDataset(local=shards, shuffle=True, shuffle_seed=3, batch_size=8)


def values(loader):
    return [(batch["i"].tolist(), batch["text"]) for batch in loader]


@pytest.mark.library(TEXTS, "StreamingDataset in a loader")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_of_its_shards(shards, workers):
    assert_same(
        lambda: values(
            torch.utils.data.DataLoader(dataset(shards), batch_size=8, num_workers=workers)
        )
    )


@pytest.mark.library(TEXTS, "StreamingDataLoader: resume in mid-epoch")
@pytest.mark.parametrize("workers", [0, 2])
def test_its_own_loader_resumes(shards, workers):
    def make():
        data = dataset(shards)
        return streaming.StreamingDataLoader(data, batch_size=8, num_workers=workers)

    def program():
        loader = make()
        batches = iter(loader)
        first = [next(batches)["i"].tolist() for _ in range(4)]
        state = loader.state_dict()
        rest = values(batches)
        del batches
        again = make()
        again.load_state_dict(state)
        assert values(again) == rest
        return first, state, rest

    assert_same(program)
    with headrace.installed():
        assert isinstance(make(), headrace.DataLoader)


@pytest.mark.library(TEXTS, "StreamingDataset: states of ours")
@pytest.mark.filterwarnings("ignore:.*has no state")
def test_states_of_ours_are_made_by_its_stream(shards):
    """Its state_dict() wants arguments that only its own loader has: the stream is made again."""

    def make():
        return headrace.DataLoader(dataset(shards), batch_size=8)

    loader = make()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    rest = values(batches)
    del batches
    again = make()
    again.load_state_dict(state)
    assert values(again) == rest


def samples():
    """A sample of each kind of column that both read."""
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 255, (8, 12, 3), np.uint8)
        yield {
            "any": generator.random((number % 3 + 1, 2)).astype(np.float32),
            "bytes": bytes([number]) * number,
            "fixed": generator.integers(0, 9, (2, 3)),
            "half": np.float16(number / 3),
            "int": number,
            "json": {"n": [number, None]},
            "many": [Image.fromarray(pixels)] * (number % 3),
            "pil": Image.fromarray(pixels),
            "png": Image.fromarray(pixels),
            "text": "ä" * number,
            "typed": generator.integers(0, 9, (number % 2 + 1, 300)).astype(np.uint16),
        }


KINDS = {
    "any": "ndarray",
    "bytes": "bytes",
    "fixed": "ndarray:int64:2,3",
    "half": "float16",
    "int": "int",
    "json": "json",
    "many": "list[png]",
    "pil": "pil",
    "png": "png",
    "text": "str",
    "typed": "ndarray:uint16",
}


@pytest.mark.library(TEXTS, "its shards in MDSDataset, equal in all values")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files it leaves
@pytest.mark.parametrize("compression", [None, "zstd:3", "gz", "bz2"])
def test_its_shards_hold_for_us_what_they_hold_for_it(tmp_path, compression):
    place = write(tmp_path / "mds", KINDS, samples(), size_limit=5_000, compression=compression)
    streaming.base.util.clean_stale_shared_memory()
    theirs = list(streaming.StreamingDataset(local=place, shuffle=False, batch_size=1))
    ours = MDSDataset(place, cache_dir=tmp_path / "cache")
    assert len(ours.urls) > 2
    assert len(ours) == len(theirs) == 20
    for one, other in zip(ours, theirs, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            _same(one[name], value)


def _same(ours, theirs):
    if isinstance(theirs, Image.Image):
        assert torch.equal(ours, torch.from_numpy(np.array(theirs.convert("RGB"))).permute(2, 0, 1))
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _same(one, other)
    elif isinstance(theirs, (np.ndarray, np.generic)):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs
