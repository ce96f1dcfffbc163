"""Progress: silent for two seconds, then a bar in a terminal and lines elsewhere."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from data.forked import exit_code_of
from headrace.data import CSVDataset, progress
from headrace.data.progress import Progress
from headrace.data.tables.csv import convert
from headrace.extras import import_extra


def run(total: int | None = 10) -> None:
    with Progress("indexing x.txt", total, "bytes") as shown:
        for _ in range(10):
            shown.advance()


def test_what_is_quick_says_nothing(capsys: Any) -> None:
    run()
    assert capsys.readouterr() == ("", "")


def test_the_time_to_import_a_library_is_none_of_reading(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, loaded = [0.0], set()

    def slow_import(module: str, extra: str) -> Any:
        now[0] += 0 if module in loaded else 3
        loaded.add(module)
        return import_extra(module, extra)

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(convert, "import_extra", slow_import)
    (tmp_path / "x.csv").write_text("x\n1\n")
    CSVDataset(tmp_path / "x.csv")
    assert capsys.readouterr() == ("", "")
    assert loaded == {"polars"}


@pytest.mark.parametrize(("total", "line"), [(10, "10 of 10 bytes"), (None, "10 bytes")])
def test_lines_where_there_is_no_terminal(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, total: int | None, line: str
) -> None:
    monkeypatch.setattr(progress, "_SILENT_S", 0)
    run(total)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert lines[-1] == f"headrace: indexing x.txt: {line}"


def test_the_last_line_comes_once(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("reading", 3, "rows") as shown:
        now[0] = 60.0
        shown.advance(3)
    assert capsys.readouterr().err == "headrace: reading: 3 of 3 rows\n"


def test_nothing_is_said_to_be_done_where_it_failed(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SILENT_S", 0)
    with pytest.raises(KeyError), Progress("indexing x.txt", 10, "bytes") as shown:
        shown.advance(3)
        raise KeyError
    assert capsys.readouterr().err == "headrace: indexing x.txt: 3 of 10 bytes\n"


@pytest.mark.parametrize("rich", [True, False])
def test_a_bar_in_a_terminal_and_lines_without_rich(
    monkeypatch: pytest.MonkeyPatch, rich: bool
) -> None:
    monkeypatch.setattr(progress, "_SILENT_S", 0)
    monkeypatch.setenv("TERM", "xterm")
    mine, its = os.openpty()

    def show() -> None:
        sys.stderr = open(its, "w")  # noqa: SIM115
        if not rich:
            sys.modules["rich.console"] = sys.modules["rich"] = None  # type: ignore[assignment]
        run()
        sys.stderr.flush()

    assert exit_code_of(show) == 0
    os.close(its)
    said = b""
    while True:
        try:
            said += os.read(mine, 4096)
        except OSError:  # its end is closed, and all has been read
            break
    os.close(mine)
    assert b"indexing x.txt" in said
    assert (b"\x1b[" in said) == rich
    assert (b"headrace: " in said) != rich
