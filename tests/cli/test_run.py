"""``headrace run``: the program's arguments, exit code, errors and processes are its own."""

import subprocess
import sys
import textwrap

import pytest

LOOK = """
import sys, torch
from torch.utils.data import DataLoader
print(DataLoader.__module__, sys.argv, __name__, __file__.rsplit("/")[-1], sys.path[0])
"""


def run(folder, *arguments, python=("-m", "headrace", "run")):
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, timeout=100
    )


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_a_script_has_its_own_arguments_path_and_name(tmp_path):
    write(tmp_path, "sub/look.py", LOOK)
    done = run(tmp_path, "--seed", 1, "sub/look.py", "--seed", 5, "--help", "-m", "x")
    assert done.returncode == 0, done.stderr
    arguments = ["sub/look.py", "--seed", "5", "--help", "-m", "x"]
    assert done.stdout == (
        f"headrace.loader {arguments} __main__ look.py {(tmp_path / 'sub').resolve()}\n"
    )
    assert done.stderr.startswith("headrace: DataLoader is headrace's: ")
    assert done.stderr.count("\n") == 1
    assert "seed=1" in done.stderr


def test_a_module_too(tmp_path):
    write(tmp_path, "package/__init__.py", "")
    write(tmp_path, "package/__main__.py", LOOK + "print(__spec__.name, __package__)")
    done = run(tmp_path, "-m", "package", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    main = (tmp_path / "package/__main__.py").resolve()
    assert done.stdout.splitlines() == [
        f"headrace.loader {[str(main), '--epochs', '3']} __main__ __main__.py {tmp_path.resolve()}",
        "package.__main__ package",
    ]


def test_a_directory_with_a_main(tmp_path):
    write(tmp_path, "program/__main__.py", LOOK)
    done = run(tmp_path, "program", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("headrace.loader ['program', 'x'] __main__ __main__.py program")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit('gone')", 1),
        ("import sys; sys.exit()", 0),
        ("import os; os._exit(9)", 9),
        ("import click; raise click.Abort", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_the_exit_code_is_the_programs(forked_command, tmp_path, text, code):
    script = write(tmp_path, "script.py", text)
    assert forked_command("run", script).returncode == code


def test_a_traceback_begins_with_the_programs_first_line(tmp_path):
    write(tmp_path, "script.py", "def f():\n    raise ValueError('no')\n\nf()\n")
    done = run(tmp_path, "script.py")
    plain = subprocess.run(
        [sys.executable, "script.py"], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == plain.returncode == 1
    shown = [line for line in done.stderr.splitlines() if not line.startswith("headrace:")]
    wanted = plain.stderr.replace(f"{tmp_path}/", "").splitlines()
    assert [line.replace(f"{tmp_path}/", "") for line in shown] == wanted


def test_workers_and_processes_find_what_the_script_defines(tmp_path):
    script = write(
        tmp_path,
        "script.py",
        """
        import atexit, sys, threading
        import torch
        import torch.multiprocessing as mp
        from torch.utils.data import DataLoader, Dataset

        class Numbers(Dataset):
            def __len__(self):
                return 6
            def __getitem__(self, index):
                return index

        def child(rank):
            loader = DataLoader(Numbers(), 3)
            print(type(loader).__module__, [b.tolist() for b in loader], flush=True)

        if __name__ == "__main__":
            for method in ("spawn", "forkserver", "fork"):
                loader = DataLoader(Numbers(), 2, num_workers=1, multiprocessing_context=method)
                print([b.tolist() for b in loader], loader.statistics().path, flush=True)
            mp.spawn(child, nprocs=1)
            main = threading.main_thread()
            late = threading.Thread(target=lambda: (main.join(), print(len(Numbers()), flush=True)))
            late.start()
            atexit.register(lambda: print("at exit", sys.modules["__main__"].Numbers().__len__()))
        """,
    )
    done = run(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *["[[0, 1], [2, 3], [4, 5]] process"] * 3,
        "headrace.loader [[0, 1, 2], [3, 4, 5]]",
        "6",
        "at exit 6",
    ]


def test_batches_are_those_of_torch(tmp_path):
    script = write(
        tmp_path,
        "script.py",
        """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        torch.manual_seed(3)
        data = TensorDataset(torch.arange(11))
        for workers in (0, 2):
            for _ in range(2):
                loader = DataLoader(data, 4, shuffle=True, num_workers=workers)
                print([batch[0].tolist() for batch in loader])
        print(torch.rand(2))
        """,
    )
    ours, plain = run(tmp_path, script), run(tmp_path, script, python=())
    assert ours.returncode == plain.returncode == 0, ours.stderr
    assert ours.stdout == plain.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a program to run: headrace run train.py"),
        (("nothere.py",), "there is no file 'nothere.py'"),
        (("-m", "no_such_module"), "there is no module 'no_such_module'"),
        (("--workers", "many", "x.py"), "--workers must be a whole number or auto, not 'many'"),
        (("--device", "cuda:99", "x.py"), "cuda:99"),
        (("--rocket", "x.py"), "no such option"),
    ],
)
def test_wrong_use_is_one_line_and_2(forked_command, tmp_path, arguments, said):
    write(tmp_path, "x.py", "print('ran')")
    done = forked_command("run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr.lower() or said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "ran" not in done.stdout
