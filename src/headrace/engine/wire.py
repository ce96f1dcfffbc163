"""What crosses between the user's process and a worker, and how a batch is packed.

One socket a worker, of whole messages (``SOCK_SEQPACKET``), so nothing is ever half read::

    to the worker      (RUN, task, free, retired)      make a batch; these buffers came back
                       (REPLAY, tasks)                 make these and forget them
                       (EPOCH, epoch seed)             begin another epoch
                       (STOP,)
    to the user        (BUFFERS, [(key, size)...])     with their descriptors
                       (RESULT, result, forgotten)     a packed Done, a Failed or an Exhausted
                       (NOTICE, text)                  to be shown as a warning

A message too large for a socket goes through an anonymous file, whose descriptor it carries.

A batch is pickled, with its tensors taken out: large ones stand in leased buffers and are replaced
by a key, small ones travel in the message. The two processes are one program, so unpickling what a
worker sent adds no danger.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import socket
import weakref
from array import array
from collections import deque
from collections.abc import Callable
from itertools import starmap
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions

from headrace.data.gatherer import Array
from headrace.engine.lease import Memory, as_tensor
from headrace.engine.shared import LEASE_BYTES, Imports, WorkerPool
from headrace.tree import NUMPY_DTYPES

RUN, REPLAY, EPOCH, STOP = "run", "replay", "epoch", "stop"
BUFFERS, RESULT, NOTICE = "buffers", "result", "notice"

_MESSAGE_BYTES = 64 << 10  # what fits a socket's buffer with room to spare
_DESCRIPTORS = 64  # a message, at most (the kernel allows 253)
_IN_FILE = b"\0file"


_open_ends: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class End(socket.socket):
    """A socket that closes without a warning: the cycle collector finalizes it before its owner."""

    def __del__(self) -> None:
        self.close()


class File(io.FileIO):
    """Owns a descriptor, and closes it without a warning when it dies: also when interrupted."""

    def __del__(self) -> None:
        self.close()


def opened(call: Callable[..., int], *arguments: Any) -> File:
    """Return the owner of the descriptor that a call opens: one step, with no bytecode between."""
    return next(map(File, starmap(call, [arguments])))


reduction.register(End, getattr(reduction, "_reduce_socket"))  # noqa: B009 - untyped


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a message socket."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = End(fileno=mine.detach()), End(fileno=its.detach())
    _open_ends.update(ends)
    return ends


def close_inherited(*keep: socket.socket) -> None:
    """In a fork: close the ends that belong to others, or nobody would notice when they leave."""
    for end in list(_open_ends):
        if end not in keep:
            end.close()


class Descriptor:
    """A file descriptor that can be an argument of a process, whatever its start method."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> Descriptor:
    return Descriptor(duplicate.detach())


def send(end: socket.socket, message: Any, descriptors: list[int], flags: int = 0) -> None:
    """Send one message; a large one through an anonymous file.

    Raises:
        BlockingIOError: with ``MSG_DONTWAIT``, when the other side has not read enough.
    """
    data = pickle.dumps(message, 5)
    if len(data) > _MESSAGE_BYTES:
        file = opened(os.memfd_create, "headrace-message", os.MFD_CLOEXEC)
        with open(file.fileno(), "wb", closefd=False) as stream:
            stream.write(data)
        data, descriptors = _IN_FILE, [file.fileno(), *descriptors]
    # Not socket.send_fds: it drops the flags, and would block.
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
    end.sendmsg([data], rights if descriptors else [], flags)


class Receiver:
    """Reads messages from one end of a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = bytearray(_MESSAGE_BYTES + 64)
        self._got: deque[Any] = deque()  # what has arrived, until somebody has its descriptors

    def __call__(self, flags: int = 0) -> tuple[Any, list[int]]:
        """Return the next message and its descriptors.

        Raises:
            EOFError: the other side is gone.
            BlockingIOError: with ``MSG_DONTWAIT``, when there is none.
        """
        self._close_unclaimed()
        space = socket.CMSG_SPACE(4 * (_DESCRIPTORS + 1))
        arguments = [self._buffer], space, flags | socket.MSG_CMSG_CLOEXEC
        # To receive and to keep is one step: an interruption comes between bytecodes.
        self._got.extend(starmap(self._end.recvmsg_into, [arguments]))
        size = self._got[0][0]
        if size == 0:
            raise EOFError("the other side of a worker's socket is closed")
        descriptors = _numbers(self._got[0][1])
        in_file = size == len(_IN_FILE) and self._buffer.startswith(_IN_FILE)
        if in_file:
            with open(descriptors[0], "rb", closefd=False) as stream:
                stream.seek(0)
                message = pickle.load(stream)
        else:
            message = pickle.loads(memoryview(self._buffer)[:size])
        self._got.clear()
        if in_file:
            os.close(descriptors.pop(0))
        return message, descriptors

    def _close_unclaimed(self) -> None:
        while self._got:
            for descriptor in _numbers(self._got.pop()[1]):
                os.close(descriptor)

    def __del__(self) -> None:
        self._close_unclaimed()


def _numbers(ancillary: Any) -> list[int]:
    return [
        int(fd)
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in np.frombuffer(data, np.int32)
    ]


def send_buffers(end: socket.socket, pool: WorkerPool) -> None:
    """Send the descriptors of buffers that the other side has not mapped yet."""
    while pool.unsent:
        some, pool.unsent[:_DESCRIPTORS] = pool.unsent[:_DESCRIPTORS], []
        descriptors = [descriptor for _, _, descriptor in some]
        try:
            send(end, (BUFFERS, [(key, size) for key, size, _ in some]), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


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

    def load(self, memory: Memory) -> None:
        self.sent.add(memory.key)
        self.pool.send_abroad(memory)

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a large buffer of a pickled object into a lease: pickle's ``buffer_callback``."""
        raw = buffer.raw()
        if raw.nbytes < LEASE_BYTES:
            return True  # leave it in the message
        token = self.pool.lend(raw.nbytes)
        token[: raw.nbytes] = np.frombuffer(raw, np.uint8)
        memory = self.pool.find(token.__array_interface__["data"][0])
        assert memory is not None
        self.load(memory)
        self.kept.append(token)
        self.buffers.append((memory.key, raw.nbytes))
        return False

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
            return NotImplemented
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

    def _tensor(self, tensor: torch.Tensor, requires_grad: bool) -> Any:
        stored = tensor.untyped_storage()
        memory = self._pool.find(stored.data_ptr())
        if (
            memory is not None
            and memory.key not in self._cargo.sent
            and self._pool.is_abroad(memory)
        ):
            memory = None  # a batch that the dataset kept and returns again: it may be in use
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
        _Packer(stream, cargo).dump(batch)
        data: Any = stream.getvalue()
        if len(data) > _MESSAGE_BYTES // 2:
            cargo.take_buffer(pickle.PickleBuffer(data))
            data = cargo.buffers.pop()
    except BaseException:
        cargo.unload()
        raise
    return data, (cargo.buffers, list(cargo.sent)), cargo.kept


class _Unpacker(pickle.Unpickler):
    """Rebuilds a batch on the buffers of a worker."""

    def __init__(self, stream: io.BytesIO, buffers: list[Array], tokens: dict[int, Array]) -> None:
        super().__init__(stream, buffers=buffers)
        # Not a method of this object: what the memo refers to must not refer back (see _Cargo).
        self._rebuild = _Rebuilder(tokens).leased

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == "_rebuild_leased":
            return self._rebuild
        return super().find_class(module, name)


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
    data, (buffers, keys) = packed
    # All of them at once: they come back even when the batch cannot be put together again.
    tokens = {key: imports.token(key) for key in keys}
    if isinstance(data, tuple):
        key, size_bytes = data
        data = tokens.pop(key)[:size_bytes].tobytes()  # the buffer returns at once
    arrays = [tokens[key][:size_bytes] for key, size_bytes in buffers]
    batch = _Unpacker(io.BytesIO(data), arrays, tokens).load()
    _forget_sparse()
    return batch


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


def _rebuild_leased(*_: Any) -> torch.Tensor:
    raise RuntimeError("a batch on leases can only be unpacked by the process it was sent to")


def _rebuild_subclass(
    plain: torch.Tensor, kind: type, requires_grad: bool, state: dict[str, Any]
) -> torch.Tensor:
    tensor: torch.Tensor = plain.as_subclass(kind)
    vars(tensor).update(state)
    return tensor.requires_grad_() if requires_grad else tensor
