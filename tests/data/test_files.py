"""Files written whole or not at all, and what writers that were killed leave behind."""

import os
import signal
from pathlib import Path

import pytest

from data.forked import FORK
from headrace.data.files import Stamp, cache_path, written_whole
from headrace.errors import SourceChangedError


def parts(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("*.part")]


def long_ago(path: Path) -> None:
    os.utime(path, (1, 1))


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with written_whole(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert parts(path.parent) == []


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), written_whole(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert parts(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def write_half() -> None:
        with written_whole(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=write_half)
    process.start()
    process.join()
    [left] = parts(tmp_path)
    with written_whole(path) as file:  # young: it may be that of a writer that is about to lock it
        file.write(b"whole")
    assert parts(tmp_path) == [left]
    long_ago(tmp_path / left)
    with written_whole(path) as file:
        file.write(b"whole")
    assert parts(tmp_path) == []
    assert path.read_bytes() == b"whole"


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with written_whole(path) as slow:
        slow.write(b"slow")
        [part] = parts(tmp_path)
        long_ago(tmp_path / part)
        with written_whole(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"


def test_names_follow_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir("/tmp")
    path = cache_path("a/x.txt", "lines")
    assert path.parent == tmp_path / "headrace"
    assert path.name.startswith("x.txt-")
    assert path == cache_path("/tmp/a/x.txt", "lines")
    assert path != cache_path("/tmp/b/x.txt", "lines")
    assert cache_path("x" * 255, "lines", tmp_path).name.endswith(".lines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_path("x", "lines").parent == Path.home() / ".cache" / "headrace"


def test_a_stamp_tells_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    stamp = Stamp.of(path)
    stamp.check(path)
    os.utime(path, ns=(0, 1))
    with pytest.raises(SourceChangedError):
        stamp.check(path)
