"""Reports of programs that end otherwise, and the program that does not notice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs.py")

ENDLESS = """
import os, sys, time, torch
from torch.utils.data import DataLoader

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 1 << 20

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.tensor(index)

if __name__ == "__main__":
    for step, batch in enumerate(DataLoader(Samples(), batch_size=2, num_workers=WORKERS)):
        if step == 40:
            END
"""
WAITING = "print('reached', flush=True); time.sleep(100)"


def write(folder, workers, end):
    script = folder / "script.py"
    script.write_text(textwrap.dedent(ENDLESS).replace("WORKERS", workers).replace("END", end))
    return script


def reported(folder):
    return json.loads((folder / "report.json").read_text())


def check(found, ended):
    assert found["ended"] == ended
    assert found["verdict"]["cause"] == "transform"  # the only thing it could be: it sleeps there
    assert found["verdict"]["waiting"] > 0.5
    (loader,) = found["loaders"]
    assert 1 <= loader["steps"] <= 41
    assert loader["batch"]["parts"][0]["line"].endswith("script.py:10")
    assert loader["epochs"][0]["finished"] is False


@pytest.mark.parametrize(
    ("end", "code", "ended"),
    [
        ("raise ValueError('no')", 1, "ended with exit code 1"),
        ("sys.exit(7)", 7, "ended with exit code 7"),
        ("os._exit(9)", 9, "ended with exit code 9"),
        ("os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL"),
        ("os.kill(os.getpid(), 11)", 139, "was ended by SIGSEGV"),
        ("raise KeyboardInterrupt", 130, "was interrupted"),
    ],
)
@pytest.mark.parametrize("workers", ["0"])
def test_a_program_that_fails_leaves_a_report(forked_command, tmp_path, end, code, ended, workers):
    done = forked_command(
        "profile", "--json", tmp_path / "report.json", write(tmp_path, workers, end)
    )
    assert done.returncode == code, done.stderr
    check(reported(tmp_path), ended)
    assert f"The program {ended}; this is what was seen until then." in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "ended"),
    [
        (signal.SIGINT, 130, "was interrupted"),
        (signal.SIGTERM, 143, "was ended by SIGTERM"),
    ],
)
def test_what_ends_the_command_ends_the_program_and_leaves_a_report(tmp_path, number, code, ended):
    script = write(tmp_path, "2", WAITING)
    command = [sys.executable, "-m", "headrace", "profile", "--json", "report.json", script]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout.readline() == "reached\n"
    os.kill(running.pid, number)
    running.communicate(timeout=60)
    assert running.returncode == code
    check(reported(tmp_path), ended)


@pytest.mark.parametrize("library", ["torch", "ours"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_order_values_and_random_numbers_stay(forked_command, tmp_path, library, workers):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import random, numpy, torch
        from {"torch.utils.data" if library == "torch" else "headrace"} import DataLoader

        class Samples(torch.utils.data.Dataset):
            def __len__(self):
                return 64

            def __getitem__(self, index):
                drawn = torch.rand(1).item(), random.random(), numpy.random.rand()
                return torch.tensor((index, *drawn), dtype=torch.float64)

        torch.manual_seed(3)
        random.seed(3)
        numpy.random.seed(3)
        loader = DataLoader(Samples(), 4, shuffle=True, num_workers={workers})
        for _ in range(2):
            print([batch.tolist() for batch in loader])
        print(torch.rand(1), random.random(), numpy.random.rand())
        """)
    )
    plain = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    watched = forked_command("profile", script)
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == plain.stdout


def test_the_terminal_has_the_verdict_first(forked_command):
    done = forked_command("profile", "--json", "-", PROGRAMS, "transform", "torch", 0, "none")
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    verdict = json.loads(last)["verdict"]["text"]
    told = [line for line in done.stderr.splitlines() if line]
    assert told[0] == verdict
    assert "waiting for data" in verdict
    assert (
        "% of making a batch is the dataset's own Python and transforms in programs.py:" in verdict
    )
    assert "Transformed at programs.py:" in told[1]
    assert told[-1].endswith("% of the time with the loaders.")


def test_a_program_without_loaders(forked_command, tmp_path):
    (tmp_path / "script.py").write_text("print('hello')")
    done = forked_command("profile", "script.py")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "No batch was asked for" in done.stderr


def test_arguments_and_modules_are_the_programs(forked_command, tmp_path):
    (tmp_path / "look.py").write_text("import sys; print(__name__, sys.argv[1:])")
    for given in (["look.py"], ["-m", "look"]):
        done = forked_command("profile", *given, "--json", "x", "--help")
        assert done.stdout == "__main__ ['--json', 'x', '--help']\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "headrace profile: give a program to watch: headrace profile train.py"),
        (["nothing.py"], "headrace profile: there is no file 'nothing.py'"),
        (["-m", "nothing_here"], "headrace profile: there is no module 'nothing_here' to run"),
        (["--json", "no/such/x.json", "a.py"], "headrace profile: --json: there is no directory"),
    ],
)
def test_wrong_use_is_one_line(forked_command, arguments, line):
    done = forked_command("profile", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(line), done.stderr
    assert done.stderr.count("\n") == 1
