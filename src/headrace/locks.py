"""One writer for each place: a lock of the operating system, and a note of who holds it.

::

    with take(folder / "writer.lock", f"the folder {folder}", "Write folder='another'."):
        ...  # one thread of one process on all machines is here

The lock is on a file: it ends with its process, however that ends, and a file left behind by a kill
holds nobody up. Forked children let go of it at once, so that they neither keep nor release it. Two
takers in one process exclude each other like two processes. Taking and releasing take less
than a millisecond: a lock for each file of many is fine.

The note in the file says who holds it; it also tells a holder whose lock was lost (a network file
system gives up those of a machine that it takes for dead) that another came: a program that holds a
place for long asks :meth:`Lock.is_held` before it writes.

Where the file system cannot lock, a warning says so, and the note itself is the lock: the file is
made exclusively, and taken over when its process, on this machine, is known to be gone.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.errors import InUseError
from headrace.notices import warn_user

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PATIENCE_S = 0.2  # another's lock may be of a moment only
_DYING_S = 10.0  # a process that was killed lets go of its memory first, and then of its files
_POLL_S = 0.01
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_EXITING = 0x4  # PF_EXITING among the flags of a process
_BEHIND_THE_NOTE = 1 << 30  # Windows: nobody else can read the bytes that are locked

_guard = threading.RLock()  # no fork while a descriptor is open and not yet in the list, or closed
_descriptors: list[int] = []


@dataclass(frozen=True)
class Holder:
    """Who holds a place, as its note says.

    Attributes:
        pid: of the process.
        program: what it runs.
        host: the name of its machine.
        since: when it came, in UTC.
        token: of this one time that the place was taken.
        system: the boot of the machine and the namespace that ``pid`` belongs to.
        started: when the process started, in ticks of the clock since that boot.
        claimed: the note is the lock.
    """

    pid: int
    program: str
    host: str
    since: str
    token: str
    system: str
    started: int
    claimed: bool = False

    def __str__(self) -> str:
        here = self.system == _system() and self.pid == os.getpid()
        who = "this process" if here else f"process {self.pid}"
        return f"{who} ({self.program}) on {self.host} since {self.since}"

    def is_gone(self) -> bool:
        """Say whether the process is known to have ended, or to be about to."""
        if self.system != _system():
            return False  # another machine or container: nobody can tell
        found = _process(self.pid)
        return found is None or found[0] != self.started or found[1]


class Lock:
    """A place that this process holds; see :func:`take`."""

    def __init__(self, path: Path, holder: Holder, descriptor: int | None) -> None:
        self.path = path
        self._holder = holder
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        """Return the lock, for a ``with`` block that releases it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        """Release what an interrupt left behind."""
        with suppress(Exception):
            self.release()

    def lost_to(self) -> Holder | None:
        """Return who has taken the place meanwhile."""
        found = holder_of(self.path)
        return None if found is None or found.token == self._holder.token else found

    def is_held(self) -> bool:
        """Say whether the place is still ours: the file is there, and the note in it."""
        found = holder_of(self.path)
        return (
            self._holder.pid == os.getpid()
            and found is not None
            and found.token == self._holder.token
        )

    def release(self) -> None:
        """Let go, and leave no file; a child of the process that took it does nothing."""
        if self._holder.pid != os.getpid():
            return
        if self.is_held():  # removed first: whoever opened it before sees that it is gone
            with suppress(OSError):
                self.path.unlink()
        if self._descriptor is not None:
            _close(self._descriptor)
            self._descriptor = None


def take(path: Path, place: str, advice: str, waiting: Callable[[str], None] | None = None) -> Lock:
    """Hold a place, alone among all programs, until :meth:`Lock.release` or the process's end.

    Args:
        path: of the lock's file; its directory is there.
        place: what is held, for the error.
        advice: what to write instead, for the error.
        waiting: wait for the holder, and call this with the reason once; None refuses.

    Raises:
        InUseError: another holds it.
        OSError: the file cannot be made.
    """
    path = Path(os.path.abspath(path))  # the same one if the program changes its directory
    began, patience_s = time.monotonic(), _PATIENCE_S
    while True:
        lock = _attempt(path, place)
        if lock is not None:
            return lock
        holder = holder_of(path)
        if holder is not None and holder.is_gone():
            patience_s = _DYING_S
        if time.monotonic() - began >= patience_s:
            if waiting is None:
                raise InUseError(_refusal(path, place, advice, holder))
            waiting(f"{place} is being written by {holder or 'another program'}")
            waiting, patience_s = _silence, 0.0
        time.sleep(_POLL_S)


def holder_of(path: Path) -> Holder | None:
    """Return who holds a place by the note in its lock's file; None where it says nothing."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _silence(_: str) -> None:
    pass


def _refusal(path: Path, place: str, advice: str, holder: Holder | None) -> str:
    text = f"{place} is being written by {holder or 'another program'}: nothing was changed. "
    if holder is None or holder.claimed:
        advice += f" If that program is gone for certain, delete {path}."
    elif holder.is_gone():
        advice += " That process has ended, but one that it started keeps the lock: end it too."
    return text + advice


def _attempt(path: Path, place: str) -> Lock | None:
    with _guard:
        descriptor, made = _open(path)
        _descriptors.append(descriptor)
    kept = False
    try:
        problem = _lock_file(descriptor)
        if isinstance(problem, BlockingIOError) or not _is_at(path, descriptor):
            return None
        before = holder_of(path)
        if problem is not None and not made:
            _remove_if_gone(path, before)
            return None
        if before is not None and before.claimed and not before.is_gone():
            return None  # taken at a time when locks failed
        me = _me(claimed=problem is not None)
        try:
            _write(descriptor, me)
        except OSError:
            path.unlink()  # the disk is full: nothing stays
            raise
        kept = problem is None
    finally:
        if not kept:
            _close(descriptor)
    if problem is None:
        return Lock(path, me, descriptor)
    warn_user(
        f"{place} is on a file system that cannot lock ({problem.strerror}). The note in {path} "
        f"keeps other programs away instead; it stays if this machine fails: delete it then."
    )
    return Lock(path, me, None)


def _open(path: Path) -> tuple[int, bool]:
    """Open the lock's file; say whether it was not there before."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _lock_file(descriptor: int) -> OSError | None:
    """Lock it; return why not: held by another (BlockingIOError), or not possible."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _BEHIND_THE_NOTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        return error
    except PermissionError as error:
        return BlockingIOError(error.errno, error.strerror)  # what Windows says
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return error
    return None


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(asdict(holder)).encode())


def _is_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file still has its name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _remove_if_gone(path: Path, seen: Holder | None) -> None:
    """Remove a note whose process has ended, one process of this machine at a time."""
    if seen is None or not seen.is_gone():
        return
    name = blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).hexdigest()
    with suppress(OSError), open(Path(tempfile.gettempdir()) / f"headrace-{name}.lock", "wb") as at:
        if _lock_file(at.fileno()) is None:
            now = holder_of(path)
            if now is not None and now.token == seen.token:
                path.unlink()


def _me(claimed: bool) -> Holder:
    found = _process(os.getpid())
    return Holder(
        pid=os.getpid(),
        program=os.path.basename(sys.argv[0] if sys.argv else "") or "python",
        host=socket.gethostname(),
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        token=os.urandom(8).hex(),
        system=_system(),
        started=0 if found is None else found[0],
        claimed=claimed,
    )


def _system() -> str:
    """Return what tells the processes of this boot and container from all others."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} without /proc"


def _process(pid: int) -> tuple[int, bool] | None:
    """Return when a process started and whether it is ending; None where there is none."""
    if not Path("/proc/self/stat").exists():
        return _signalled(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = fields.rpartition(")")[2].split()
    return int(rest[18]), state in "ZXx" or bool(int(rest[5]) & _EXITING)


def _signalled(pid: int) -> tuple[int, bool] | None:
    if os.name == "posix":
        with suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return None
    return 0, False


def _close(descriptor: int) -> None:
    with _guard:
        if descriptor in _descriptors:  # an interrupt may have come right behind this
            _descriptors.remove(descriptor)
            os.close(descriptor)


def _let_go_in_child() -> None:
    """Close what the parent holds: the lock is of the open file, and lives as long as any copy."""
    global _guard
    _guard = threading.RLock()
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


def _before_fork() -> None:
    _guard.acquire()


def _after_fork() -> None:
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_let_go_in_child
    )
