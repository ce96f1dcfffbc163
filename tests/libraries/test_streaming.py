"""mosaicml-streaming: its shards and its loader. It pins versions: it has its own environment."""

from pathlib import Path

import pytest
import torch

import headrace

from .conftest import assert_same

streaming = pytest.importorskip("streaming")
pytestmark = [pytest.mark.timeout(200)]

TEXTS = "mosaicml-streaming"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A hundred samples in MDS shards, written by its own writer."""
    place = tmp_path_factory.mktemp("mds")
    with streaming.MDSWriter(
        out=str(place), columns={"i": "int", "text": "str"}, size_limit=400
    ) as out:
        for number in range(100):
            out.write({"i": number, "text": f"text {number}"})
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
