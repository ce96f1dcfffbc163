"""Batches in JAX's hands: taken without a copy, and never written again while JAX has them.

A program of its own, which test_jax.py starts: JAX starts threads, and warns of each fork after it.
"""

import jax
import numpy as np
import torch

from headrace import DataLoader, TensorDataset, numpy_collate

WAYS = ({}, {"num_workers": 2, "backend": "thread"})
TAKING = (jax.dlpack.from_dlpack, jax.device_put, jax.numpy.asarray)


class Numbered:
    """Samples whose batch fills a lease: 256 KiB."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"x": np.full((128, 128), index, np.float32), "y": index}


def dlpack_takes_a_batch_where_it_lies(ways):
    for batch in DataLoader(Numbered(), 4, collate_fn=numpy_collate, **ways):
        x = jax.dlpack.from_dlpack(batch["x"])
        assert x.unsafe_buffer_pointer() == batch["x"].ctypes.data
        assert x.dtype == np.float32


def what_jax_keeps_is_not_written_again(ways):
    for take in TAKING:
        loader = DataLoader(Numbered(), 4, shuffle=True, collate_fn=numpy_collate, **ways)
        kept = [(take(batch["x"]), batch["y"]) for _ in range(2) for batch in loader]
        for x, y in kept:
            wanted = np.broadcast_to(y[:, None, None], x.shape)
            np.testing.assert_array_equal(np.asarray(x), wanted)


def batches_of_workers_are_taken_where_they_lie():
    """The workers come from a server without JAX's threads, so that nothing warns of a fork."""
    loader = DataLoader(
        Numbered(),
        4,
        num_workers=1,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        collate_fn=numpy_collate,
    )
    kept = []
    for number, batch in enumerate([*loader, *loader]):
        x = jax.dlpack.from_dlpack(batch["x"])
        assert x.unsafe_buffer_pointer() == batch["x"].ctypes.data
        kept.append((x, 4 * (number % 6)))
    for x, first in kept:
        assert np.asarray(x)[:, 0, 0].tolist() == list(range(first, first + 4))


def gathered_columns_are_not_either():
    x = torch.arange(4096.0 * 64).reshape(4096, 64)
    data = TensorDataset(x, torch.arange(4096))
    loader = DataLoader(data, 256, shuffle=True, collate_fn=numpy_collate)
    kept = [(jax.dlpack.from_dlpack(rows), numbers) for rows, numbers in loader]
    for rows, numbers in kept:
        np.testing.assert_array_equal(np.asarray(rows), x.numpy()[numbers])


def arrays_of_jax_are_collated():
    batch = numpy_collate([{"a": jax.numpy.full(3, n)} for n in range(2)])
    assert type(batch["a"]) is np.ndarray
    assert batch["a"].tolist() == [[0, 0, 0], [1, 1, 1]]


if __name__ == "__main__":
    jax.numpy.zeros(3).block_until_ready()  # its threads run before the workers start
    for way in WAYS:
        dlpack_takes_a_batch_where_it_lies(way)
        what_jax_keeps_is_not_written_again(way)
    batches_of_workers_are_taken_where_they_lie()
    gathered_columns_are_not_either()
    arrays_of_jax_are_collated()
    print("all of it holds")
