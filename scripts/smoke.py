"""What a wheel must do where only it and its dependencies are installed: run by `make dist`."""

import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import torch
from torch.utils.data import DataLoader as TorchLoader

import headrace

ROWS = torch.arange(600.0).reshape(200, 3)


class Squares(headrace.Dataset):
    """Samples that are made one by one."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index] ** 2, index


def batches_of(kind, dataset, **options):
    """Return the batches of an epoch in torch's order for the seed 0."""
    order = torch.Generator().manual_seed(0)
    return list(kind(dataset, 32, shuffle=True, generator=order, **options))


def check_the_installation():
    """The wheel's own files, and all of its names."""
    environment = Path(sys.prefix)
    assert environment in Path(headrace.__file__).parents, headrace.__file__
    assert metadata.version("headrace") == headrace.__version__
    assert resources.files("headrace").joinpath("py.typed").is_file()
    missing = [name for name in headrace.__all__ if not hasattr(headrace, name)]
    assert not missing, missing


def check_the_batches():
    """Torch's batches, whoever makes them."""
    ways = [{}, {"num_workers": 2}, {"num_workers": 2, "multiprocessing_context": "spawn"}]
    ways.append({"num_workers": 2, "backend": "thread"})
    for dataset in (headrace.TensorDataset(ROWS), Squares()):
        wanted = batches_of(TorchLoader, dataset)
        for way in ways:
            found = batches_of(headrace.DataLoader, dataset, **way)
            for (ours, *_), (theirs, *_) in zip(found, wanted, strict=True):
                assert torch.equal(ours, theirs), (dataset, way)


def check_the_resume():
    """The rest of an epoch, in another loader."""

    def loader():
        return headrace.DataLoader(Squares(), 32, shuffle=True, seed=7)

    first = loader()
    iterator = iter(first)
    next(iterator)
    state, wanted = first.state_dict(), list(iterator)
    second = loader()
    second.load_state_dict(state)
    for (ours, _), (theirs, _) in zip(second, wanted, strict=True):
        assert torch.equal(ours, theirs)


def check_the_command():
    """Without its extra, the command says which one it needs."""
    command = [sys.executable, "-m", "headrace.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert 'pip install "headrace[cli]"' in done.stderr, done.stderr


if __name__ == "__main__":
    check_the_installation()
    check_the_batches()
    check_the_resume()
    check_the_command()
    print(f"smoke: headrace {headrace.__version__}, torch {torch.__version__}: all is well")
