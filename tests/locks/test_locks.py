"""One holder at a time, whatever becomes of it; and the others are told who it is."""

import errno
import fcntl
import gc
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace import InUseError, locks
from headrace.locks import holder_of, take


def taken(path):
    return take(path, "the place", "Write another='one'.")


def is_free(path):
    try:
        taken(path).release()
    except InUseError:
        return False
    return True


def holds(path):
    def function(process):
        lock = taken(path)
        process.say("held")
        process.wait()
        lock.release()

    return function


@pytest.fixture
def path(tmp_path):
    return tmp_path / "writer.lock"


@pytest.fixture
def cannot_lock(monkeypatch, tmp_path):
    """A file system that cannot lock: for this process, and for its forks."""
    flock = fcntl.flock

    def refuse(file, operation):
        at = file if isinstance(file, int) else file.fileno()
        if os.readlink(f"/proc/self/fd/{at}").startswith(str(tmp_path)):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_the_second_is_told_who_holds_it_and_what_to_write(fork, path):
    holder = fork(holds(path))
    assert holder.heard() == "held"
    before = path.read_bytes()
    with pytest.raises(InUseError) as caught:
        taken(path)
    text = str(caught.value)
    assert re.search(
        rf"the place is being written by process {holder.pid} \(.+\) on "
        rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC: "
        r"nothing was changed\. Write another='one'\.$",
        text,
    )
    assert path.read_bytes() == before
    holder.go_on()
    assert holder.end() == 0
    assert not path.exists()
    assert is_free(path)


def test_a_kill_leaves_nobody_held_up(fork, path):
    holder = fork(holds(path))
    holder.heard()
    holder.kill()
    # At once: what is dying is waited for.
    assert is_free(path)
    assert not path.exists()


def test_a_stopped_holder_still_holds(fork, path):
    holder = fork(holds(path))
    holder.heard()
    os.kill(holder.pid, 19)
    assert not is_free(path)


def test_a_forked_child_neither_keeps_nor_releases_it(fork, path):
    lock = taken(path)

    def child(process):
        assert not lock.is_held()
        lock.release()
        process.say("there")
        process.wait()

    process = fork(child)
    assert process.heard() == "there"
    assert lock.is_held()
    assert not is_free(path)
    lock.release()
    assert is_free(path)
    process.go_on()
    assert process.end() == 0


def test_the_children_of_one_that_was_killed_do_not_keep_it(fork, path):
    def parent(process):
        lock = taken(path)
        if os.fork() == 0:
            process.say("child")
            process.wait()
            os._exit(0)
        process.wait()
        lock.release()

    process = fork(parent)
    assert process.heard() == "child"
    process.kill()
    assert is_free(path)


def test_a_program_that_is_started_does_not_keep_it(path):
    lock = taken(path)
    code = "import sys; print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    )
    other.stdout.readline()
    lock.release()
    assert is_free(path)
    other.communicate()


def test_threads_of_one_process_exclude_each_other(path):
    texts = []

    def second():
        with pytest.raises(InUseError) as caught:
            taken(path)
        texts.append(str(caught.value))

    with taken(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is being written by this process (" in texts[0]


def test_what_is_dropped_is_released(path):
    lock = taken(path)
    assert not is_free(path)
    del lock
    gc.collect()
    assert is_free(path)


def test_who_waits_is_told_for_whom_and_comes_next(fork, path):
    holder = fork(holds(path))
    holder.heard()
    told = []

    def tell(text):
        told.append(text)
        holder.go_on()

    take(path, "the place", "", tell).release()
    assert len(told) == 1
    assert told[0].startswith(f"the place is being written by process {holder.pid} (")
    assert holder.end() == 0


def test_a_holder_that_lost_its_place_is_told_to_whom(fork, path):
    lock = taken(path)
    path.unlink()
    assert not lock.is_held()
    assert lock.lost_to() is None
    other = fork(holds(path))
    assert other.heard() == "held"
    assert lock.lost_to().pid == other.pid
    lock.release()
    assert path.exists()  # the other's
    assert not is_free(path)


def test_a_file_that_its_holder_removes_meanwhile_is_not_the_lock(path, monkeypatch):
    flock = fcntl.flock
    path.touch()

    def removed_first(*arguments):
        monkeypatch.undo()
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    lock = taken(path)
    assert lock.is_held()
    assert not is_free(path)


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = taken(Path("writer.lock"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lock.is_held()
    lock.release()
    assert list(tmp_path.iterdir()) == [tmp_path / "elsewhere"]


def test_a_file_that_is_none_of_ours_is_no_holder(path):
    path.write_text("what somebody wrote")
    assert holder_of(path) is None
    assert is_free(path)


def test_no_room_for_the_note_leaves_nothing(fork, path):
    def no_room(process):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with pytest.raises(OSError, match="too large"):
            taken(path)
        process.say(str(path.exists()))

    process = fork(no_room)
    assert process.heard() == "False"
    assert is_free(path)


def test_no_directory_is_an_error_that_names_it(path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        taken(path.parent / "nowhere" / "writer.lock")


@pytest.mark.usefixtures("cannot_lock")
class TestWithoutLocks:
    def test_it_says_so_and_the_note_is_the_lock(self, fork, path):
        def first(process):
            with pytest.warns(UserWarning, match=r"the place is on a file system that cannot lock"):
                lock = taken(path)
            process.say("held")
            process.wait()
            lock.release()

        holder = fork(first)
        assert holder.heard() == "held"
        with pytest.raises(InUseError, match=rf"process {holder.pid} .* gone for certain, delete"):
            taken(path)
        holder.go_on()
        assert holder.end() == 0
        assert not path.exists()

    def test_a_kill_leaves_nobody_held_up(self, fork, path):
        def first(process):
            with pytest.warns(UserWarning, match="cannot lock"):
                process.lock = taken(path)
            process.say("held")
            process.wait()

        holder = fork(first)
        assert holder.heard() == "held"
        holder.kill()
        with pytest.warns(UserWarning, match="cannot lock"):
            lock = taken(path)
        lock.release()
        assert not path.exists()

    def test_nobody_knows_of_a_process_elsewhere(self, path):
        with pytest.warns(UserWarning, match="cannot lock"):
            lock = taken(path)
        note = json.loads(path.read_text())
        path.write_text(json.dumps({**note, "system": "another machine", "host": "there"}))
        with pytest.raises(InUseError, match=r"on there since .* gone for certain, delete"):
            taken(path)
        lock.release()

    def test_one_who_can_lock_sees_the_note_of_one_who_could_not(self, fork, path, monkeypatch):
        with pytest.warns(UserWarning, match="cannot lock"):
            lock = taken(path)
        monkeypatch.undo()
        assert not is_free(path)
        lock.release()
        assert is_free(path)


def test_a_process_number_that_was_given_again_is_another_process(path):
    holder = locks._me(claimed=True)
    assert not holder.is_gone()
    again = locks.Holder(**{**vars(holder), "started": holder.started + 1})
    assert again.is_gone()
