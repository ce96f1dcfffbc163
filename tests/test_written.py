"""Files written whole or not at all; what killed writers leave; what errors say of it."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from data.forked import FORK
from headrace.written import save_figure, told, written_whole


def raises(path, error, what="nothing is left"):
    with told(path, what):
        raise error


def test_an_error_of_the_system_gets_the_path_and_keeps_its_type(tmp_path):
    path = tmp_path / "x"
    before = PermissionError(errno.EACCES, "Permission denied", str(path) + ".part")
    with pytest.raises(PermissionError) as caught:
        raises(path, before)
    assert str(caught.value) == f"[Errno 13] Permission denied; nothing is left: '{path}'"
    assert caught.value.errno == errno.EACCES
    assert caught.value.__cause__ is before


def test_the_words_are_made_when_they_are_needed(tmp_path):
    def never():
        raise AssertionError

    with told(tmp_path / "x", never):
        pass
    with pytest.raises(OSError, match="No space left on device; 3 rows are kept"):
        raises(tmp_path / "x", OSError(errno.ENOSPC, "full"), lambda: "3 rows are kept")


def test_what_a_library_in_rust_says_is_one(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(OSError, match="No space left on device; nothing is left") as caught:
        raises(tmp_path / "x", SafetensorError("Error while serializing: full (os error 28)"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/source.csv"),
        ValueError("no number"),
        OSError("no number either"),
    ],
)
def test_others_are_left_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        raises(tmp_path / "x", error)
    assert caught.value is error


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


class TestPictures:
    @staticmethod
    def figure(colour: str):
        pytest.importorskip("matplotlib")
        from matplotlib.figure import Figure

        return Figure(figsize=(4, 3), facecolor=colour)

    @pytest.mark.parametrize("name", ["x.png", "x.svg", "x.PDF", "no suffix"])
    def test_is_what_matplotlib_writes_to_a_path_of_that_name(self, tmp_path: Path, name: str):
        save_figure(self.figure("red"), tmp_path / "ours" / name)
        (tmp_path / "theirs").mkdir()
        self.figure("red").savefig(tmp_path / "theirs" / name)
        [ours], [theirs] = ([*(tmp_path / who).iterdir()] for who in ("ours", "theirs"))
        assert ours.name == theirs.name
        assert ours.read_bytes()[:8] == theirs.read_bytes()[:8]

    def test_one_that_cannot_be_finished_leaves_the_one_before(self, tmp_path: Path):
        path = tmp_path / "x.png"
        save_figure(self.figure("red"), path)
        before = path.read_bytes()

        def without_room() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            with pytest.raises(OSError, match="nothing is left behind"):
                save_figure(self.figure("blue"), path)

        process = FORK.Process(target=without_room)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert path.read_bytes() == before
        assert parts(tmp_path) == []
