"""Runs map_batches to a file again and again, killed at each of its steps in turn, and resumed.

A step is a call of the function, a flush to the disk or a renaming: what lies between two of them
leaves the same files. Run as ``python killed.py <directory>``; prints the calls of each second run,
as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.ipc
import torch
from safetensors.numpy import load_file
from torch.utils.data import DataLoader as TorchDataLoader

import headrace
from headrace.apply import resume

ROWS, SIZE = 22, 5
X = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)


class Killer:
    """Ends the process at the n-th step."""

    def __init__(self, at):
        self.left = at
        self.calls = 0

    def step(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def stepped(*args, **kwargs):
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        return stepped

    def call(self, batch):
        self.calls += 1
        self.step()
        return batch * 2 + 1

    def call_several(self, batch):
        return {"twice": self.call(batch), "first": batch[:, 0]}


def data_of(kind):
    if kind == "stream":
        return (row for row in torch.from_numpy(X)), {"batch_size": SIZE}
    if kind == "torch loader":
        return TorchDataLoader(torch.from_numpy(X), SIZE), {}
    if kind == "loader":
        return headrace.DataLoader(torch.from_numpy(X), SIZE), {}
    return X, {"batch_size": SIZE}


def run(out, kind, at):
    """Run in a process of its own; return the calls that it made, None if it was killed."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        killer = Killer(at)
        os.fsync, os.replace = killer.around(os.fsync), killer.around(os.replace)
        data, options = data_of(kind)
        several = out.suffix != ".npy"
        function = killer.call_several if several else killer.call
        headrace.map_batches(function, data, out=out, **options)
        os.write(outlet, str(killer.calls).encode())
        os._exit(0)
    os.close(outlet)
    with open(inlet) as file:
        calls = file.read()
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return int(calls) if status == 0 else None


def read(path):
    if path.suffix == ".npy":
        return {"twice": np.load(path), "first": X[:, 0]}
    if path.suffix == ".safetensors":
        return load_file(path)
    table = pyarrow.ipc.open_file(path).read_all()
    return {name: np.array(table[name].to_pylist(), np.float32) for name in table.column_names}


# What was killed where is the same for all kinds of input: one kind goes with each suffix in turn,
# and steps are left out where the next one leaves the same.
CASES = [
    (".npy", "array", 2),
    (".npy", "stream", 7),
    (".safetensors", "loader", 3),
    (".safetensors", "torch loader", 9),
    (".arrow", "array", 3),
    (".arrow", "stream", 7),
]


def main(folder):
    resume.COMMIT_EVERY_S = 0  # instead of a second
    report = {}
    for suffix, kind, stride in CASES:
        calls, at = [], 1
        while True:
            out = Path(folder) / f"{kind}-{at}{suffix}"
            whole = run(out, kind, at)
            if whole is not None:
                break
            at += stride
            calls.append(run(out, kind, 0))  # of 5: those before the kill are not made again
            found = read(out)
            assert np.array_equal(found["twice"], X * 2 + 1), (kind, at)
            assert np.array_equal(found["first"], X[:, 0]), (kind, at)
            left = [p.name for p in Path(folder).iterdir() if p.name.startswith(out.name + ".")]
            assert left == [], left
        assert whole == 5, whole
        report[f"{suffix} {kind}"] = calls
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
