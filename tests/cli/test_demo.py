"""``headrace demo`` on the real digits, as a newcomer runs it."""

import os
import pty
import re
import signal
import subprocess
from contextlib import closing

import pytest
from matplotlib.image import imread

from .conftest import COMMAND

EPOCH_LINE = re.compile(
    r"epoch +(\d+)/(\d+)   train loss \d+\.\d{4}   "
    r"validation accuracy (\d\.\d{4})   [\d,]+ samples/s"
)


def test_the_default_run_reaches_the_accuracy_and_writes_both_pictures(headrace_command, tmp_path):
    outcome = headrace_command("demo")
    assert (outcome.code, outcome.err) == (0, "")
    epochs = EPOCH_LINE.findall(outcome.out)
    assert [int(number) for number, *_ in epochs] == list(range(1, 13))
    assert float(epochs[-1][2]) >= 0.97
    assert f"validation accuracy {epochs[-1][2]} after 12 epochs" in outcome.out
    assert re.search(r"^waiting for data: headrace [\d.]+ ms, torch's loader", outcome.out, re.M)
    for name in ("digits-batch.png", "digits-curves.png"):
        assert f"wrote {name}\n" in outcome.out
        height, width, _ = imread(tmp_path / name).shape
        assert min(height, width) > 400


def test_output_to_a_pipe_is_plain_whole_lines(forked_command):
    done = forked_command("demo", "--epochs", "1", "--out", "a new/deep directory")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1,797 handwritten digits: 1,438 to train on")
    assert EPOCH_LINE.fullmatch(lines[2])
    assert lines[4].endswith("without the training")
    assert lines[5:] == [
        "wrote a new/deep directory/digits-batch.png",
        "wrote a new/deep directory/digits-curves.png",
    ]


def test_a_terminal_gets_a_live_bar(tmp_path):
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        command = [*COMMAND, "demo", "--epochs", "2", "--batch-size", "16"]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, env=environment) as process:
            os.close(theirs)
            shown = _read_to_the_end(screen)
        assert process.returncode == 0
    assert "━" in shown
    assert re.search(r"\d+/90", shown)
    assert shown.endswith("wrote digits-curves.png\r\n")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is given back


def _read_to_the_end(screen) -> str:
    read = b""
    while True:
        try:
            read += screen.read(65536)
        except OSError:  # Linux's way of saying that the other side has closed
            return read.decode()


def test_ctrl_c_ends_with_one_line_and_130(tmp_path):
    command = [*COMMAND, "demo", "--epochs", "100000"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "headrace demo: interrupted\n"


def test_same_seed_same_course_other_seed_another(headrace, tmp_path):
    def course(seed: int) -> list[str]:
        outcome = headrace("demo", "--epochs", "2", "--seed", str(seed), "--out", str(tmp_path))
        assert outcome.code == 0
        return re.findall(r"train loss (\S+)   validation accuracy (\S+)", outcome.out)

    first = course(3)
    assert len(first) == 2
    assert course(3) == first
    assert course(4) != first


@pytest.mark.parametrize("batch_size", [1, 7, 1438])
def test_any_batch_size_up_to_the_training_set_works(headrace, tmp_path, batch_size):
    outcome = headrace(
        "demo", "--epochs", "1", "--batch-size", str(batch_size), "--out", str(tmp_path)
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert f"mini-batches of {batch_size}\n" in outcome.out


def test_a_picture_that_cannot_be_written_is_a_failure_in_one_line(headrace, tmp_path):
    (tmp_path / "digits-curves.png").mkdir()
    outcome = headrace("demo", "--epochs", "1", "--out", str(tmp_path))
    assert outcome.code == 1
    assert outcome.err.startswith(f"headrace demo: cannot write to {tmp_path}: Is a directory; ")
    assert outcome.err.count("\n") == 1
