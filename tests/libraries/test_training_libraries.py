"""Libraries that run the loop, or many of them: the same is learnt, and nothing is left behind."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import headrace

from .conftest import ROOT, assert_same, plain

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def data(length=12):
    x = torch.arange(float(length))[:, None]
    return TensorDataset(x, 2 * x)


class Numbers(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([float(index)]), torch.tensor([2.0 * index])


@pytest.mark.library("skorch", "fit and predict")
def test_skorch():
    skorch = pytest.importorskip("skorch")

    def program():
        net = skorch.NeuralNetRegressor(
            nn.Linear, module__in_features=1, module__out_features=1, max_epochs=2, lr=0.001,
            batch_size=4, iterator_train__shuffle=True, verbose=0, train_split=None,
        )  # fmt: skip
        x = torch.arange(12.0)[:, None]
        net.fit(x, 2 * x)
        return net.history[:, "train_loss"], plain(net.predict(x))

    assert_same(program)


@pytest.mark.library("pytorch-ignite", "an engine over a loader, auto_dataloader")
def test_ignite():
    pytest.importorskip("ignite")
    import ignite.distributed as idist
    from ignite.engine import Engine

    def program():
        seen = []
        loader = idist.auto_dataloader(Numbers(), batch_size=4, shuffle=True, num_workers=1)
        Engine(lambda engine, batch: seen.append(plain(batch))).run(loader, max_epochs=2)
        return seen

    assert len(assert_same(program)) == 6


@pytest.mark.library("torchmetrics", "a metric over an epoch")
def test_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")

    def program():
        metric = torchmetrics.MeanSquaredError()
        for x, y in torch.utils.data.DataLoader(Numbers(), 4, num_workers=2):
            metric.update(x, y)
        return metric.compute().item()

    assert_same(program)


@pytest.mark.library("optuna", "trials in threads, a loader in each")
def test_optuna_with_threads():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    headrace.install(quiet=True)

    def objective(trial):
        size = trial.suggest_int("size", 2, 5)
        loader = torch.utils.data.DataLoader(data(), size, num_workers=1)
        return sum(x.sum().item() for x, _ in loader)

    study = optuna.create_study()
    study.optimize(objective, n_trials=6, n_jobs=2)
    assert {trial.value for trial in study.trials} == {66.0}


def _sum(number):
    loader = torch.utils.data.DataLoader(Numbers(), 4, num_workers=1)
    return number + sum(x.sum().item() for x, _ in loader)


@pytest.mark.library("joblib", "loaders in its threads")
def test_joblib():
    joblib = pytest.importorskip("joblib")
    headrace.install(quiet=True)
    found = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(_sum)(n) for n in range(4)
    )
    assert found == [66.0, 67.0, 68.0, 69.0]


@pytest.mark.library("torch", "asyncio.to_thread and thread pools")
def test_asyncio_and_thread_pools():
    headrace.install(quiet=True)

    async def main():
        return await asyncio.gather(*(asyncio.to_thread(_sum, n) for n in range(3)))

    assert asyncio.run(main()) == [66.0, 67.0, 68.0]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(_sum, range(3))) == [66.0, 67.0, 68.0]


@pytest.mark.thorough
@pytest.mark.library("torch", "torch.compile over batches")
def test_torch_compile():
    def program():
        step = torch.compile(lambda x, y: (x * 3 - y).square().sum(), backend="eager")
        loader = torch.utils.data.DataLoader(Numbers(), 4, shuffle=True, num_workers=1)
        return [step(x, y).item() for x, y in loader]

    assert_same(program)


DDP = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
if sys.argv[1] == "ours":
    import headrace
    headrace.install(quiet=True)
    from torch.utils.data import DataLoader
dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.arange(12.0)[:, None]
data = TensorDataset(x, 2 * x)
sampler = DistributedSampler(data)
loader = DataLoader(data, 2, sampler=sampler, num_workers=1)
model = nn.Linear(1, 1)
if sys.argv[2] == "fsdp":
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
else:
    model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), 0.001)
losses = []
for epoch in range(2):
    sampler.set_epoch(epoch)
    for a, b in loader:
        loss = (model(a) - b).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
if dist.get_rank() == 0:
    print(type(loader).__module__.partition(".")[0], losses)
dist.destroy_process_group()
"""


@pytest.mark.thorough
@pytest.mark.library("torch", "DDP and FSDP2 under torchrun, on gloo")
@pytest.mark.parametrize("wrapped", ["ddp", "fsdp"])
def test_ddp_and_fsdp(tmp_path, wrapped):
    script = tmp_path / "train.py"
    script.write_text(DDP)

    def run(kind):
        done = run_program(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node=2",
                script,
                kind,
                wrapped,
            ]
        )
        return done.stdout.split(None, 1)

    ours, theirs = run("ours"), run("torch")
    assert (ours[0], theirs[0]) == ("headrace", "torch")
    assert ours[1] == theirs[1]


def run_program(command):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.thorough
@pytest.mark.library("nbconvert", "a notebook whose loader has workers")
def test_a_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    cells = [
        "import headrace, torch; headrace.install()",
        textwrap.dedent(
            """
            from torch.utils.data import DataLoader, Dataset
            class Mine(Dataset):
                def __len__(self): return 6
                def __getitem__(self, index): return index
            """
        ),
        "loader = DataLoader(Mine(), 2, num_workers=2)\nprint([b.tolist() for b in loader])",
        "loader",
        "print(loader.statistics().path)",
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    preprocessors.ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}}
    )
    shown = [output.get("text", "") for cell in notebook.cells for output in cell.outputs]
    assert "[[0, 1], [2, 3], [4, 5]]\n" in shown
    assert shown[-1] == "process\n"


def test_a_loader_in_a_child_process_of_the_users():
    headrace.install(quiet=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_sum, [1, 2])) == [67.0, 68.0]
