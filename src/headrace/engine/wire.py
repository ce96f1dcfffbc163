"""What crosses between the user's process and a worker.

One socket a worker, of whole messages (``SOCK_SEQPACKET``), so nothing is ever half read::

    to the worker      (RUN, task, free, retired)      make a batch; these buffers came back
                       (REPLAY, tasks)                 make these and forget them
                       (EPOCH, epoch seed)             begin another epoch
                       (STOP,)
    to the user        (BUFFERS, [(key, size)...])     with their descriptors
                       (RESULT, result, forgotten)     a packed Done, a Failed or an Exhausted
                       (NOTICE, text)                  to be shown as a warning

A message too large for a socket goes through an anonymous file, whose descriptor it carries.

What a batch looks like in a result: :mod:`headrace.engine.cargo`.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
from array import array
from collections import deque
from collections.abc import Callable
from itertools import starmap
from multiprocessing import reduction
from typing import Any

import numpy as np

from headrace.engine.forks import Alive
from headrace.engine.shared import WorkerPool

RUN, REPLAY, EPOCH, STOP = "run", "replay", "epoch", "stop"
BUFFERS, RESULT, NOTICE = "buffers", "result", "notice"

MESSAGE_BYTES = 64 << 10  # what fits a socket's buffer with room to spare
_DESCRIPTORS = 64  # a message, at most (the kernel allows 253)
_IN_FILE = b"\0file"


_open_ends: Alive[socket.socket] = Alive()


class End(socket.socket):
    """A socket that closes without a warning: the cycle collector finalizes it before its owner."""

    __del__ = socket.SocketType.close  # not of Python's: no interruption comes within


class File(io.FileIO):
    """Owns a descriptor, and closes it without a warning when it dies: also when interrupted."""

    __del__ = io.FileIO.close


def opened(call: Callable[..., int], *arguments: Any) -> File:
    """Return the owner of the descriptor that a call opens: one step, with no bytecode between."""
    return next(map(File, starmap(call, [arguments])))


reduction.register(End, getattr(reduction, "_reduce_socket"))  # noqa: B009 - untyped


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a message socket."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = End(fileno=mine.detach()), End(fileno=its.detach())
    for end in ends:
        _open_ends.add(end)
    return ends


def close_inherited(*keep: socket.socket) -> None:
    """In a fork: close the ends that belong to others, or nobody would notice when they leave."""
    for end in _open_ends:
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
    if len(data) > MESSAGE_BYTES:
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
        self._buffer = bytearray(MESSAGE_BYTES + 64)
        self._got: deque[Any] = deque()  # what has arrived, until its descriptors have owners
        self._files: list[File] = []

    def __call__(self, flags: int = 0) -> tuple[Any, list[File]]:
        """Return the next message, and the owners of its descriptors.

        Raises:
            EOFError: the other side is gone.
            BlockingIOError: with ``MSG_DONTWAIT``, when there is none.
        """
        self._drop()
        space = socket.CMSG_SPACE(4 * (_DESCRIPTORS + 1))
        arguments = [self._buffer], space, flags | socket.MSG_CMSG_CLOEXEC
        # To receive and to keep is one step: an interruption comes between bytecodes.
        self._got.extend(starmap(self._end.recvmsg_into, [arguments]))
        size = self._got[0][0]
        if size == 0:
            raise EOFError("the other side of a worker's socket is closed")
        numbers = _numbers(self._got[0][1])
        self._files[:] = map(File, numbers)  # one step too
        self._got.clear()
        files, self._files = self._files, []
        if size != len(_IN_FILE) or not self._buffer.startswith(_IN_FILE):
            return pickle.loads(memoryview(self._buffer)[:size]), files
        file = files.pop(0)
        with open(file.fileno(), "rb", closefd=False) as stream:
            stream.seek(0)
            return pickle.load(stream), files

    def _drop(self) -> None:
        """Close the descriptors of a message whose reading was interrupted."""
        if not self._files:
            for descriptor in (number for got in self._got for number in _numbers(got[1])):
                os.close(descriptor)
        self._got.clear()  # before their owners go, or they would be closed twice
        self._files.clear()

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # or it was interrupted before it had begun
            self._drop()


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
