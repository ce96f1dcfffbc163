"""Lightning and Fabric: a loader of ours is kept, and resumes where a checkpoint was written."""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import headrace
from headrace.errors import OptionError

from .conftest import ROOT, assert_same, seed_all

lightning = pytest.importorskip("lightning")
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::UserWarning")]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, number):
        self.seen.append(batch[0][:, 0].tolist())
        return (self.layer(batch[0]) - 1).square().mean()

    def validation_step(self, batch, number):
        self.log("val_loss", self.layer(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def data():
    return TensorDataset(torch.arange(12.0)[:, None])


def trainer(folder, **options):
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"enable_checkpointing": False, **options},
    )


@pytest.mark.library("lightning", "Trainer: batches equal torch's")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches(tmp_path, workers):
    def program():
        loader = torch.utils.data.DataLoader(data(), 4, shuffle=True, num_workers=workers)
        model = Model()
        trainer(tmp_path).fit(model, loader, torch.utils.data.DataLoader(data(), 4))
        return model.seen, model.layer.weight.item()

    assert len(assert_same(program)[0]) == 6


@pytest.mark.library("lightning", "our options kept")
def test_a_loader_of_ours_is_kept(tmp_path):
    loader = headrace.DataLoader(
        data(), 4, shuffle=True, seed=3, batch_transform=_plus_one, on_error="skip"
    )
    wanted = [b[0][:, 0].tolist() for _ in range(2) for b in copy.copy(loader)][:3]
    model = Model()
    trainer(tmp_path).fit(model, loader)
    assert model.seen[:3] == wanted
    assert loader.statistics().batches == 6


def _plus_one(batch):
    return [batch[0] + 1]


class SaveAt(lightning.pytorch.callbacks.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.library("lightning", "resume in mid-epoch")
@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_resume_in_mid_epoch(tmp_path, step):
    def loader():
        return headrace.DataLoader(data(), 4, shuffle=True, seed=5)

    path = tmp_path / "middle.ckpt"
    seed_all()
    whole = Model()
    trainer(tmp_path, callbacks=[SaveAt(step, path)]).fit(whole, loader())
    rest = Model()
    trainer(tmp_path).fit(rest, loader(), ckpt_path=path)
    assert rest.seen == whole.seen[step:]
    assert torch.equal(rest.layer.weight, whole.layer.weight)


@pytest.mark.library("lightning", "Fabric: batches equal torch's")
def test_fabric():
    def program():
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        loader = torch.utils.data.DataLoader(data(), 4, shuffle=True, num_workers=2)
        return list(fabric.setup_dataloaders(loader))

    assert_same(program)


def test_its_checks_of_torchs_iterators_are_harmless(tmp_path):
    """It asks whether an iterator is one of torch's private ones, to end and to save it."""
    loader = headrace.DataLoader(data(), 4, num_workers=2, persistent_workers=True)
    model = Model()
    trainer(tmp_path).fit(model, loader, headrace.DataLoader(data(), 4, num_workers=1))
    assert len(model.seen) == 6
    del loader  # its workers with it: the fixture looks
    with pytest.raises(NotImplementedError, match="cannot be pickled"):
        copy.deepcopy(iter(headrace.DataLoader(data())))


def test_shard_names_its_option():
    with pytest.raises(OptionError, match="use_distributed_sampler=False"):
        headrace.DataLoader(
            data(),
            shard=(0, 2),
            seed=0,
            sampler=torch.utils.data.DistributedSampler(data(), num_replicas=2, rank=0),
        )


def goes_on_in_two_processes(fabric, folder):
    """Stop in the second epoch, under the DistributedSampler that Fabric adds, and go on."""

    def loader():
        made = headrace.DataLoader(torch.arange(40.0), 2, shuffle=True)
        return fabric.setup_dataloaders(made, move_to_device=False)

    whole = loader()
    list(whole)
    batches = iter(whole)
    first = [next(batches).tolist() for _ in range(4)]
    state = json.dumps(whole._dataloader.state_dict())
    rest = [batch.tolist() for batch in batches]
    again = loader()
    again._dataloader.load_state_dict(json.loads(state))
    later = [batch.tolist() for batch in whole]
    with pytest.warns(UserWarning, match=r"this is the rest of epoch 1"):
        found = [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in again] == later
    sampler = type(again._dataloader.sampler).__name__
    text = json.dumps([sampler, first, rest, found])
    (folder / f"{fabric.global_rank}.json").write_text(text)


@pytest.mark.library("lightning", "Fabric: resume in mid-epoch in two processes")
def test_fabric_resumes_in_two_processes(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn")
    fabric.launch(goes_on_in_two_processes, tmp_path)
    seen = []
    for rank in (0, 1):
        sampler, first, rest, found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert sampler == "DistributedSampler"
        assert found == rest
        seen += [value for batch in first + found for value in batch]
    assert sorted(seen) == list(range(40))


TWO = """
import json, os, sys, torch, lightning, headrace, warnings, logging
from torch import nn
from torch.utils.data import TensorDataset
warnings.simplefilter("ignore")
what, sharded, step = sys.argv[1], sys.argv[2] == "shard", int(sys.argv[3])

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []
    def training_step(self, batch, number):
        self.seen.append(batch[0][:, 0].tolist())
        return (self.layer(batch[0]) - 1).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

class SaveAt(lightning.pytorch.callbacks.Callback):
    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step == step:
            trainer.save_checkpoint("middle.ckpt")

data = TensorDataset(torch.arange(16.0)[:, None])
options = {"shard": "auto"} if sharded else {}
loader = headrace.DataLoader(data, 2, shuffle=True, seed=5, num_workers=1, **options)
lightning.seed_everything(1, verbose=False)
model = Model()
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    use_distributed_sampler=not sharded, callbacks=[SaveAt()] if what == "whole" else [],
)
trainer.fit(model, loader, ckpt_path=None if what == "whole" else "middle.ckpt")
with open(f"{what}-{trainer.global_rank}.json", "w") as file:
    json.dump([model.seen, model.layer.weight.item()], file)
"""


@pytest.mark.thorough
@pytest.mark.library("lightning", "Trainer, two processes: resume in mid-epoch")
@pytest.mark.parametrize("how", ["sampler", "shard"])
def test_two_processes_resume_in_mid_epoch(tmp_path, how):
    """With the DistributedSampler that Lightning adds, and with shard="auto" in its place."""
    script = tmp_path / "train.py"
    script.write_text(TWO)
    seen = {}
    for what in ("whole", "rest"):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script, what,
             how, "3"],
            capture_output=True, text=True, timeout=250, check=False, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        seen[what] = [json.loads((tmp_path / f"{what}-{rank}.json").read_text()) for rank in (0, 1)]
    for whole, rest in zip(seen["whole"], seen["rest"], strict=True):
        assert rest[0] == whole[0][3:]
        assert rest[1] == whole[1]
    first = [value for rank in seen["whole"] for batch in rank[0][:4] for value in batch]
    assert sorted(first) == list(range(16))
