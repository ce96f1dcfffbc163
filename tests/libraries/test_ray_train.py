"""Ray Train: prepare_data_loader builds a loader anew, in two workers of a local cluster."""

import json

import pytest

from .conftest import ROOT

ray = pytest.importorskip("ray")
ray_train = pytest.importorskip("ray.train")
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::ResourceWarning")]


def trainer_function():
    """Return what runs in Ray's workers: made in a function, so that it is sent by value."""

    def train(config):
        import torch
        from torch.utils.data import TensorDataset

        import headrace

        if config["ours"]:
            headrace.install(quiet=True)
        from ray.train import torch as ray_torch

        torch.manual_seed(3)
        data = TensorDataset(torch.arange(12.0))
        loader = torch.utils.data.DataLoader(data, 2, shuffle=True)
        prepared = ray_torch.prepare_data_loader(loader, move_to_device=False)

        def plus_one(batch):
            return [batch[0] + 1]

        epochs = [[batch[0].tolist() for batch in prepared] for _ in range(2)]
        with_options = ray_torch.prepare_data_loader(
            headrace.DataLoader(data, 2, batch_transform=plus_one), move_to_device=False
        )
        changed = [batch[0].tolist() for batch in with_options]
        rank = ray.train.get_context().get_world_rank()
        kind = type(prepared).__module__.partition(".")[0]
        with open(f"{config['folder']}/{config['ours']}-{rank}.json", "w") as file:
            json.dump({"kind": kind, "epochs": epochs, "changed": changed}, file)

    return train


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}},
    )
    yield
    ray.shutdown()


@pytest.mark.thorough
@pytest.mark.library("ray", "train: prepare_data_loader, two workers")
def test_prepared_loaders_in_two_workers(cluster, tmp_path):
    from ray.train.torch import TorchTrainer

    found = {}
    for ours in (False, True):
        TorchTrainer(
            trainer_function(),
            train_loop_config={"ours": ours, "folder": str(tmp_path)},
            scaling_config=ray_train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=ray_train.RunConfig(storage_path=str(tmp_path / "runs")),
        ).fit()
        found[ours] = [
            json.loads((tmp_path / f"{ours}-{rank}.json").read_text()) for rank in range(2)
        ]
    assert [rank["kind"] for rank in found[True]] == ["headrace"] * 2
    assert [rank["kind"] for rank in found[False]] == ["torch"] * 2
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert ours["epochs"] == theirs["epochs"]
        assert ours["changed"] == theirs["changed"]
    changed = sorted(value for rank in found[True] for batch in rank["changed"] for value in batch)
    assert changed == [float(value + 1) for value in range(12)]
