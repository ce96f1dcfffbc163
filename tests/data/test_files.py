"""Where derived files are kept, and what tells that a source has changed."""

import os
from pathlib import Path

import pytest

from headrace.data.files import Stamp, cache_path
from headrace.errors import SourceChangedError


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
