"""What a training shows: bars on a terminal, lines in logs, nothing on other ranks."""

import io
import math
import re
import sys
import types
import warnings

import pytest

from headrace.train import progress as module
from headrace.train.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def train(progress, epochs=2, first=0, steps=4, seconds=1.0, clock=None):
    with progress:
        for epoch in range(first, epochs):
            progress.begin_epoch(epoch, steps)
            for step in range(4):
                if clock is not None:
                    clock.now += seconds
                progress.step(loss=0.5 / (step + 1))
            progress.begin_validation(None)
            progress.validation_step()
            progress.end_epoch({"loss": 0.25, "val_loss": 1e-5, "samples": 1234})


def test_a_line_for_each_epoch_in_a_log(capsys, clock):
    train(Progress(12, first_epoch=10), epochs=12, first=10, clock=clock)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "epoch 11/12  loss 0.2500  val_loss 1.00e-05  samples 1,234  4.0 s",
        "epoch 12/12  loss 0.2500  val_loss 1.00e-05  samples 1,234  4.0 s",
    ]


def test_a_line_within_a_long_epoch(capsys, clock):
    train(Progress(1), epochs=1, steps=1000, seconds=20.0, clock=clock)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/1  training: step 2 of 1,000  loss 0.2500",
        "epoch 1/1  training: step 4 of 1,000  loss 0.1250",
        "epoch 1/1  loss 0.2500  val_loss 1.00e-05  samples 1,234  1:20 min",
    ]


def test_steps_of_unknown_number_and_a_long_validation(capsys, clock):
    with Progress(1) as progress:
        progress.begin_epoch(0, None)
        clock.now += 31
        progress.step(3)
        progress.begin_validation(10)
        clock.now += 31
        progress.validation_step()
        progress.message("hello [bold]")
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/1  training: step 3",
        "epoch 1/1  validation: step 1 of 10",
        "hello [bold]",
    ]


def test_many_quick_epochs_are_thinned_out(capsys, clock):
    train(Progress(1000), epochs=1000, seconds=0.025, clock=clock)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == pytest.approx(100, abs=2)
    assert lines[-1].startswith("epoch 1000/1000 ")
    train(Progress(50), epochs=50, seconds=0.0, clock=clock)
    assert len(capsys.readouterr().err.splitlines()) == 50


def test_quick_epochs_are_not_all_drawn(terminal, clock):
    stream = terminal()
    train(Progress(1000), epochs=1000, seconds=0.0025, clock=clock)
    assert stream.getvalue().count("training") < 250
    assert len(screen_of(stream.getvalue())) == pytest.approx(11, abs=1)


def test_other_ranks_show_nothing(capsys):
    train(Progress(2, show=False))
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen_of(text):
    """Return the lines that are on a terminal after ``text``; its cursor only goes up and down."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture
def terminal(monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def begin():  # in the test itself: pytest has a stderr of its own for each phase
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return begin


def test_nested_bars_on_a_terminal(terminal, clock):
    stream = terminal()
    with Progress(3) as progress:
        progress.begin_epoch(1, 8)
        for _ in range(4):
            clock.now += 1
            progress.step(loss=0.25)
        lines = screen_of(stream.getvalue())
        assert len(lines) == 2
        assert re.search(r"^epochs +[━╸╺ ]+ 1/3", lines[0])
        assert re.search(r"^training +[━╸╺ ]+ 4/8 .* loss 0\.2500$", lines[1])
        progress.begin_validation(5)
        clock.now += 1
        progress.validation_step()
        assert re.search(r"^validation .* 1/5", screen_of(stream.getvalue())[1])
        progress.begin_validation(None)
        clock.now += 1
        progress.validation_step()
        assert re.search(r"^validation .* 1/\?", screen_of(stream.getvalue())[1])
        clock.now += 1
        progress.end_epoch({"loss": 0.5})
        progress.message("[saved]")
        lines = screen_of(stream.getvalue())
        assert lines[0].startswith("epoch 2/3  loss 0.5000")
        assert lines[1] == "[saved]"
        assert " 2/3" in screen_of(stream.getvalue())[2]
    assert screen_of(stream.getvalue()) == lines[:2]  # the bars are gone
    assert stream.getvalue().rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_warnings_stand_above_the_bars(terminal, clock):
    stream = terminal()
    with Progress(1) as progress:
        progress.begin_epoch(0, 8)
        sys.stderr.write("a warning\n")
        clock.now += 1
        progress.step()
        lines = screen_of(stream.getvalue())
    assert lines[0] == "a warning"
    assert len(lines) == 3


def test_an_error_takes_the_bars_away(terminal):
    stream = terminal()
    with pytest.raises(ZeroDivisionError), Progress(1) as progress:
        progress.begin_epoch(0, 8)
        progress.step()
        1 / 0
    assert screen_of(stream.getvalue()) == []
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch, clock):
    monkeypatch.setenv("TERM", "dumb")
    stream = terminal()
    train(Progress(1), epochs=1, clock=clock)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("epoch 1/1  loss")


def test_bars_can_be_asked_for_where_there_is_no_terminal(capsys):
    train(Progress(1, show=True), epochs=1)
    assert "━" in capsys.readouterr().err


def test_without_rich_there_are_lines(capsys, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "rich":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    train(Progress(1), epochs=1)
    assert capsys.readouterr().err.startswith("epoch 1/1  loss 0.2500")


def test_a_notebook_without_widgets_gets_lines_on_stdout(capsys, monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, __spec__=None)
    )
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Progress(1), epochs=1)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("epoch 1/1  loss 0.2500")


def test_drawing_is_bound_to_time_not_to_steps(clock):
    drawn = []

    class View(module._Nothing):
        def begin(self, epoch, what, steps):
            return 0.1

        def draw(self, done, steps, what, shown):
            drawn.append((done, dict(shown)))
            return 0.1

    progress = Progress(1, show=False)
    progress._view = View()
    progress.begin_epoch(0, 1000)
    for step in range(1000):
        clock.now += 0.001
        progress.step(loss=float(step))
    assert len(drawn) == pytest.approx(10, abs=1)
    assert drawn[0][0] == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0.0000"),
        (1234567, "1,234,567"),
        (0.12345, "0.1235"),
        (1e-7, "1.00e-07"),
        (123.456, "123.5"),
        (1e9, "1.00e+09"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_short(value, text):
    assert module._number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1:01 min"), (3700, "1:01:40 h")]
)
def test_durations_are_short(seconds, text):
    assert module._duration(seconds) == text
