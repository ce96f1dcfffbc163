"""How a batch is packed: pickled, with its tensors, arrays and long bytes taken out.

Large ones stand in leased buffers and are replaced by a key, small ones travel in the message. The
two processes are one program, so unpickling what a worker sent adds no danger.
"""

from __future__ import annotations

import io
import math
import pickle
from functools import partial
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions

from headrace.data.gatherer import Array
from headrace.engine.lease import Memory, as_tensor
from headrace.engine.shared import LEASE_BYTES, Imports, WorkerPool
from headrace.engine.wire import MESSAGE_BYTES
from headrace.tree import NUMPY_DTYPES

_LOOKED_AT = 8  # things in each list, tuple or dict of a batch


class _Cargo:
    """The buffers that a batch travels in.

    Apart from the pickler: an object that a pickler refers to must not refer back to it, or every
    batch would wait for the cycle collector.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.buffers: list[tuple[int, int]] = []
        self.sent: set[int] = set()
        self.kept: list[Any] = []  # what was copied here lives until the message has left
        self.strings: dict[int, tuple[int, bytes]] = {}  # long ones by identity: place, and itself
        self.joined: tuple[int, list[int]] | None = None  # the buffer that they are in, their sizes

    def load(self, memory: Memory) -> None:
        self.sent.add(memory.key)
        self.pool.send_abroad(memory)

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a large buffer of a pickled object into a lease: pickle's ``buffer_callback``."""
        raw = buffer.raw()
        if raw.nbytes < LEASE_BYTES:
            return True  # leave it in the message
        token, key = self._buffer(raw.nbytes)
        token[: raw.nbytes] = np.frombuffer(raw, np.uint8)
        self.buffers.append((key, raw.nbytes))
        return False

    def _buffer(self, size_bytes: int) -> tuple[Array, int]:
        token = self.pool.lend(size_bytes)
        memory = self.pool.find(token.__array_interface__["data"][0])
        assert memory is not None
        self.load(memory)
        self.kept.append(token)
        return token, memory.key

    def number_of(self, string: bytes) -> int:
        """Return the place of a string among those that go in a buffer: each object goes once."""
        number, _ = self.strings.setdefault(id(string), (len(self.strings), string))
        return number

    def join(self) -> None:
        """Copy the long strings into one buffer."""
        if not self.strings:
            return
        strings = [string for _, string in self.strings.values()]
        sizes = list(map(len, strings))
        token, key = self._buffer(sum(sizes))
        first = 0
        for string in strings:
            token[first : first + len(string)] = np.frombuffer(string, np.uint8)
            first += len(string)
        self.joined = key, sizes

    def unload(self) -> None:
        """Take everything back: the batch could not be packed."""
        self.pool.came_home(list(self.sent))


class _Packer(pickle.Pickler):
    """Pickles a batch, with its tensors and arrays moved to leased buffers."""

    def __init__(self, stream: io.BytesIO, cargo: _Cargo) -> None:
        super().__init__(stream, 5, buffer_callback=cargo.take_buffer)
        self._cargo = cargo
        self._pool = cargo.pool

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return self._array(value) if type(value) is np.ndarray else NotImplemented
        if value.is_cuda:
            return reductions.reduce_tensor(value)  # type: ignore[no-untyped-call]
        if not _is_plain(value):
            return NotImplemented
        if value.requires_grad and not value.is_leaf:
            raise RuntimeError(
                "Cowardly refusing to serialize non-leaf tensor which requires_grad, since "
                "autograd does not support crossing process boundaries. If you just want to "
                "transfer the data, call detach() on it in the dataset or collate function."
            )
        if type(value) is not torch.Tensor:
            if type(value).__reduce_ex__ is not torch.Tensor.__reduce_ex__:
                return NotImplemented  # a class that says itself how it is pickled
            with torch._C.DisableTorchFunctionSubclass():
                plain = value.detach().as_subclass(torch.Tensor)
            return _rebuild_subclass, (plain, type(value), value.requires_grad, vars(value))
        return self._tensor(value.detach(), value.requires_grad)

    def _array(self, array: Array) -> Any:
        """Leave an array that was written into a lease where it is; others pickle as ever."""
        # What begins where a lease does, without gaps, and may be written.
        if array.nbytes < LEASE_BYTES or array.dtype.hasobject or not array.flags.carray:
            return NotImplemented
        memory = self._lease_at(array.__array_interface__["data"][0])
        if memory is None:
            return NotImplemented
        self._cargo.load(memory)
        return _rebuild_array, (memory.key, array.nbytes, array.dtype, array.shape)

    def _lease_at(self, address: int) -> Memory | None:
        """Return the lease that begins at an address and may cross."""
        memory = self._pool.find(address)
        if (
            memory is not None
            and memory.key not in self._cargo.sent
            and self._pool.is_abroad(memory)
        ):
            return None  # a batch that the dataset kept and returns again: it may be in use
        return memory

    def _tensor(self, tensor: torch.Tensor, requires_grad: bool) -> Any:
        stored = tensor.untyped_storage()
        memory = self._lease_at(stored.data_ptr())
        shape, strides, offset = tuple(tensor.shape), _strides(tensor), tensor.storage_offset()
        if memory is None:
            tensor, strides = _dense(tensor)
            if tensor.nbytes < LEASE_BYTES:
                data = _bytes(tensor)
                return _rebuild_small, (data, tensor.dtype, shape, strides, requires_grad)
            tensor = self._pool.empty(tensor.shape, tensor.dtype).copy_(tensor)
            stored, offset = tensor.untyped_storage(), 0
            memory = self._pool.find(stored.data_ptr())
            assert memory is not None
            self._cargo.kept.append(tensor)
        self._cargo.load(memory)
        place = (memory.key, stored.nbytes(), offset)
        return _rebuild_leased, (place, tensor.dtype, shape, strides, requires_grad)


class _StringPacker(_Packer):
    """Takes long bytes out too. Apart, as Python asks ``persistent_id`` for each object."""

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is bytes and len(value) >= LEASE_BYTES:
            return self._cargo.number_of(value)
        return None


def _has_strings(batch: Any, depth: int = 3) -> bool:
    """Say whether there are long bytes among the first things in a batch."""
    kind = type(batch)
    if kind is bytes:
        return len(batch) >= LEASE_BYTES
    if not depth or kind not in (list, tuple, dict):
        return False
    some = islice(batch.values() if kind is dict else batch, _LOOKED_AT)
    return any(_has_strings(one, depth - 1) for one in some)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def pack(batch: Any, pool: WorkerPool) -> tuple[Any, ...]:
    """Return a batch as what crosses: a pickle, or the buffer it is in, and its buffers.

    The last value must live until the message has left.
    """
    stream = io.BytesIO()
    cargo = _Cargo(pool)
    try:
        (_StringPacker if _has_strings(batch) else _Packer)(stream, cargo).dump(batch)
        cargo.join()
        data: Any = stream.getvalue()
        if len(data) > MESSAGE_BYTES // 2:
            cargo.take_buffer(pickle.PickleBuffer(data))
            data = cargo.buffers.pop()
    except BaseException:
        cargo.unload()
        raise
    return data, (cargo.buffers, list(cargo.sent), cargo.joined), cargo.kept


class _Unpacker(pickle.Unpickler):
    """Rebuilds a batch on the buffers of a worker."""

    def __init__(
        self,
        stream: io.BytesIO,
        buffers: list[Array],
        tokens: dict[int, Array],
        strings: list[bytes],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._strings = strings
        # Not a method of this object: what the memo refers to must not refer back (see _Cargo).
        self._rebuild = {
            "_rebuild_leased": _Rebuilder(tokens).leased,
            "_rebuild_array": partial(_array_of, tokens),
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in self._rebuild:
            return self._rebuild[name]
        return super().find_class(module, name)

    def persistent_load(self, number: int) -> bytes:
        return self._strings[number]


class _Rebuilder:
    """Makes the tensors of one batch; those that shared a storage share one again."""

    def __init__(self, tokens: dict[int, Array]) -> None:
        self._tokens = tokens
        self._storages: dict[tuple[int, int], torch.UntypedStorage] = {}

    def leased(
        self,
        place: tuple[int, int, int],
        dtype: torch.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        requires_grad: bool,
    ) -> torch.Tensor:
        key, size_bytes, offset = place
        storage = self._storages.get((key, size_bytes))
        if storage is None:
            raw = self._tokens[key][:size_bytes]
            whole = strides is None and math.prod(shape) * dtype.itemsize == size_bytes
            if whole and dtype in NUMPY_DTYPES:
                tensor = as_tensor(raw, shape, dtype)
                self._storages[key, size_bytes] = tensor.untyped_storage()
                return tensor.requires_grad_() if requires_grad else tensor
            storage = self._storages[key, size_bytes] = torch.from_numpy(raw).untyped_storage()
        tensor = torch.empty(0, dtype=dtype)
        tensor.set_(storage, offset, shape, strides or torch.empty(shape, device="meta").stride())
        return tensor.requires_grad_() if requires_grad else tensor


def unpack(packed: tuple[Any, ...], imports: Imports) -> Any:
    """Return the batch that :func:`pack` made of in a worker."""
    data, (buffers, keys, joined) = packed
    # All of them at once: they come back even when the batch cannot be put together again.
    tokens = {key: imports.token(key) for key in keys}
    if isinstance(data, tuple):
        key, size_bytes = data
        data = tokens.pop(key)[:size_bytes].tobytes()  # the buffer returns at once
    strings = [] if joined is None else _apart(tokens.pop(joined[0]), joined[1])
    arrays = [tokens[key][:size_bytes] for key, size_bytes in buffers]
    batch = _Unpacker(io.BytesIO(data), arrays, tokens, strings).load()
    _forget_sparse()
    return batch


def _apart(joined: Array, sizes: list[int]) -> list[bytes]:
    ends = accumulate(sizes)
    return [joined[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


def _forget_sparse() -> None:
    """Empty the list of sparse tensors that torch keeps while it loads a file, to check them.

    Unpickling one puts it there too, and only ``torch.load`` ever takes it out again.
    """
    _sparse_kept().clear()


def _older_sparse_kept() -> list[torch.Tensor]:
    kept: list[torch.Tensor] = torch._utils._sparse_tensors_to_validate  # type: ignore[attr-defined]
    return kept


_sparse_kept = getattr(torch._utils, "_get_sparse_tensors_to_validate", _older_sparse_kept)


def _strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    return None if tensor.is_contiguous() else tensor.stride()


def _dense(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Return the elements as they lie in memory, and the strides to find them by.

    Expanded tensors stay small and channels last stays last. What lies far apart, a column of a
    matrix for instance, is moved together: then the strides are None.
    """
    if tensor.is_contiguous():
        return tensor, None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in steps)
    if span > 2 * tensor.numel():
        return tensor.contiguous(), None
    return tensor.as_strided((span,), (1,)), tensor.stride()


def _bytes(tensor: torch.Tensor) -> bytearray:
    """Return the bytes of a contiguous tensor of any type."""
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.itemsize
    return bytearray(flat.numpy()[start : start + tensor.nbytes].tobytes())


def _rebuild_small(
    data: bytearray,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    requires_grad: bool,
) -> torch.Tensor:
    raw = np.frombuffer(data, np.uint8)
    if strides is None:
        tensor = as_tensor(raw, shape, dtype)
    else:
        tensor = as_tensor(raw, (len(raw) // dtype.itemsize,), dtype).as_strided(shape, strides)
    return tensor.requires_grad_() if requires_grad else tensor


def _array_of(
    tokens: dict[int, Array], key: int, size_bytes: int, dtype: np.dtype[Any], shape: Any
) -> Array:
    return tokens[key][:size_bytes].view(dtype).reshape(shape)


def _rebuild_array(*_: Any) -> Array:
    raise RuntimeError("a batch on leases can only be unpacked by the process it was sent to")


def _rebuild_leased(*_: Any) -> torch.Tensor:
    raise RuntimeError("a batch on leases can only be unpacked by the process it was sent to")


def _rebuild_subclass(
    plain: torch.Tensor, kind: type, requires_grad: bool, state: dict[str, Any]
) -> torch.Tensor:
    tensor: torch.Tensor = plain.as_subclass(kind)
    vars(tensor).update(state)
    return tensor.requires_grad_() if requires_grad else tensor
