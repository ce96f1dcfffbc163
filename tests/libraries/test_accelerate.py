"""accelerate: prepare() builds a loader anew; in one process and in two."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import headrace
from headrace.errors import OptionError

from .conftest import ROOT, assert_same

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.timeout(300)

DATA = TensorDataset(torch.arange(22.0))


def plus_one(batch):
    return [batch[0] + 1]


def values(loader):
    return [batch[0].tolist() for batch in loader]


@pytest.fixture
def accelerator():
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.library("accelerate", "batches equal torch's")
@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_loaders_give_torchs_batches(accelerator, workers):
    def program():
        loader = torch.utils.data.DataLoader(DATA, 4, shuffle=True, num_workers=workers)
        return [values(accelerator.prepare(loader)) for _ in range(2)]

    assert_same(program)


@pytest.mark.library("accelerate", "our options kept under install()")
def test_prepared_loaders_keep_our_options(accelerator):
    def make():
        return headrace.DataLoader(DATA, 4, shuffle=True, seed=3, batch_transform=plus_one)

    wanted = values(make())
    headrace.install(quiet=True)
    prepared = accelerator.prepare(make())
    assert prepared.seed == 3
    assert values(prepared) == wanted


@pytest.mark.library("accelerate", "without install(): said")
def test_without_install_the_data_are_the_same_and_the_rest_is_said(accelerator):
    loader = headrace.DataLoader(DATA, 4, seed=3, batch_transform=plus_one)
    with pytest.warns(UserWarning, match=r"knows no seed=: .*headrace.install\(\)"):
        prepared = accelerator.prepare(loader)
    with pytest.warns(UserWarning, match="knows no seed="):
        assert values(prepared)[0] == [1, 2, 3, 4]


@pytest.mark.library("accelerate", "resume in mid-epoch")
@pytest.mark.parametrize("workers", [0, 2])
def test_states_go_through_its_wrapper(accelerator, workers):
    headrace.install(quiet=True)

    def make():
        loader = torch.utils.data.DataLoader(DATA, 4, shuffle=True, num_workers=workers)
        return accelerator.prepare(loader)

    torch.manual_seed(1)
    seen, states = [], []
    loader = make()
    for batch in loader:
        seen.append(batch[0].tolist())
        states.append(json.loads(json.dumps(loader.state_dict())))
    *states, last = states
    for step, state in enumerate(states, start=1):
        torch.manual_seed(99)
        again = make()
        again.load_state_dict(state)
        assert values(again) == seen[step:]
    # It asks for a batch more than it hands out, so that its last state is behind the epoch, as
    # with torchdata's loader.
    again = make()
    again.load_state_dict(last)
    assert sorted(v for batch in values(again) for v in batch) == list(range(22))


@pytest.mark.library("accelerate", "skip_first_batches reads nothing twice")
def test_skipped_batches_are_not_read(accelerator):
    headrace.install(quiet=True)
    read = []

    class Reads(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            read.append(index)
            return index

    loader = accelerator.prepare(torch.utils.data.DataLoader(Reads(), 3))
    rest = accelerate.skip_first_batches(loader, 2)
    assert [batch.tolist() for batch in rest] == [[6, 7, 8], [9, 10, 11]]
    assert read == [6, 7, 8, 9, 10, 11]


TWO = """
import json, os, torch
import headrace
from torch.utils.data import TensorDataset, IterableDataset
import accelerate

data = TensorDataset(torch.arange(22.0))

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(22.0))

class Stateful(IterableDataset):
    at = 0
    def __iter__(self):
        while self.at < 22:
            self.at += 1
            yield torch.tensor(self.at - 1.0)
        self.at = 0
    def state_dict(self):
        return {"at": self.at}
    def load_state_dict(self, state):
        self.at = state["at"]

def value(batch):
    return (batch[0] if isinstance(batch, (list, tuple)) else batch).tolist()

def prepared(make_dataset, loader_options, dispatch):
    accelerate.state.AcceleratorState._reset_state()
    accelerate.state.GradientState._reset_state()
    configuration = accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    torch.manual_seed(5)
    loader = torch.utils.data.DataLoader(make_dataset(), 4, **loader_options)
    return accelerator.prepare(loader)

def share(*case):
    loader = prepared(*case)
    got = [[value(batch) for batch in loader] for _ in range(2)]
    rest = [value(batch) for batch in accelerate.skip_first_batches(loader, 1)]
    return [type(loader.base_dataloader).__module__.partition(".")[0], got, rest]

def not_exact(*case):
    # The steps of two epochs behind which a state does not lead to the rest.
    loader, wrong = prepared(*case), []
    for epoch in range(2):
        seen, states = [], []
        for batch in loader:
            seen.append(value(batch))
            states.append(json.loads(json.dumps(loader.state_dict())))
        for step, state in enumerate(states[:-1]):  # the last is behind the epoch
            again = prepared(*case)
            again.load_state_dict(state)
            if [value(batch) for batch in again] != seen[step + 1:]:
                wrong.append((epoch, step))
    return wrong

CASES = {
    "sharded": (lambda: data, {"shuffle": True}, None),
    "workers": (lambda: data, {"shuffle": True, "num_workers": 1}, None),
    "dispatched": (lambda: data, {"shuffle": True}, True),
    "stream": (Stream, {}, None),
    "a stream with a state": (Stateful, {}, None),
}
found = {name: [share(*case)] for name, case in CASES.items()}
headrace.install(quiet=True)
for name, case in CASES.items():
    found[name] += share(*case), not_exact(*case)
open(f"{os.environ['RANK']}.json", "w").write(json.dumps(found))
accelerate.Accelerator(cpu=True).end_training()
"""


CASES_OF_TWO = ["sharded", "workers", "dispatched", "stream", "a stream with a state"]


@pytest.fixture(scope="module")
def shared_by_two(tmp_path_factory):
    """What each of two ranks got in all cases, from torch's loader and from ours."""
    place = tmp_path_factory.mktemp("two")
    script = place / "script.py"
    script.write_text(TWO)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.library("accelerate", "two processes: shards equal torch's, the dispatcher too")
@pytest.mark.parametrize("case", CASES_OF_TWO)
def test_two_processes_share_as_with_torchs(shared_by_two, case):
    for rank in shared_by_two:
        (stock, *wanted), (ours, *got), _ = rank[case]
        assert (stock, ours) == ("torch", "headrace")
        assert got == wanted
    assert shared_by_two[0][case] != shared_by_two[1][case]


@pytest.mark.library("accelerate", "two processes: resume in mid-epoch, the dispatcher too")
@pytest.mark.parametrize("case", CASES_OF_TWO)
def test_two_processes_resume(shared_by_two, case):
    for rank in shared_by_two:
        assert rank[case][2] == []


def test_shard_beside_its_own_division_is_an_error(accelerator):
    headrace.install(quiet=True)
    loader = headrace.DataLoader(DATA, 4, shard=(0, 2), seed=0)
    shards = accelerate.data_loader.BatchSamplerShard(loader.batch_sampler, 2, 0)
    with pytest.raises(OptionError, match="leave shard= out"):
        torch.utils.data.DataLoader(DATA, batch_sampler=shards, collate_fn=loader.collate_fn)


def test_a_state_costs_little(accelerator):
    """accelerate takes one for each batch: it holds no list that grows with the dataset."""
    headrace.install(quiet=True)
    sizes = []
    for samples in (1_000, 100_000):
        data = TensorDataset(torch.arange(samples))
        loader = accelerator.prepare(torch.utils.data.DataLoader(data, 4, shuffle=True))
        for _ in loader:
            break
        sizes.append(len(json.dumps(loader.state_dict())))
    assert abs(sizes[1] - sizes[0]) < 200


def test_a_state_is_taken_once_a_batch_and_reads_no_data(accelerator):
    """Its wrapper asks for one before each batch: counted calls, however long the data are."""
    headrace.install(quiet=True)
    steps = []
    for samples in (1_000, 100_000):
        data = TensorDataset(torch.arange(samples))
        loader = accelerator.prepare(torch.utils.data.DataLoader(data, 4, shuffle=True))
        iterator = iter(loader)
        next(iterator)
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        loader.base_dataloader.state_dict()
        sys.setprofile(None)
        steps.append(calls)
    assert max(steps) < 400  # a call a sample, or a batch, would be thousands


@pytest.mark.parametrize("step", [1, 3])
def test_a_state_with_the_key_that_it_adds_still_loads(accelerator, step):
    headrace.install(quiet=True)

    def make():
        return accelerator.prepare(torch.utils.data.DataLoader(DATA, 4, shuffle=True))

    torch.manual_seed(1)
    loader, seen, state = make(), [], None
    for number, batch in enumerate(loader, start=1):
        seen.append(batch[0].tolist())
        if number == step:
            state = json.loads(json.dumps(loader.state_dict()))
    assert "_iterator_finished" in state
    for target in (make(), make().base_dataloader):
        target.load_state_dict(state)
        assert values(target) == seen[step:]
