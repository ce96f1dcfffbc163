"""Errors of the system say what was being written; other errors are left as they are."""

import errno

import pytest

from headrace.written import told


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
