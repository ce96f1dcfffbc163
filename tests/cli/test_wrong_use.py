"""A user's mistake is one clear line on stderr and exit code 2."""

import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["demo", "--epochs", "0"], "headrace demo: --epochs must be at least 1, not 0"),
        (["demo", "--epochs=-3"], "headrace demo: --epochs must be at least 1, not -3"),
        (["demo", "--epochs", "2.5"], "headrace demo: --epochs must be a whole number, not '2.5'"),
        (["demo", "--batch-size", "0"], "headrace demo: --batch-size must be at least 1, not 0"),
        (
            ["demo", "--batch-size", "many"],
            "headrace demo: --batch-size must be a whole number, not 'many'",
        ),
        (
            ["demo", "--batch-size", "5000"],
            "headrace demo: --batch-size must be at most 1438 (all training images), not 5000",
        ),
        (["demo", "--seed=-1"], "headrace demo: --seed must be between 0 and 2**63 - 1, not -1"),
        (
            ["demo", "--device", "gpu"],
            "headrace demo: --device 'gpu' is not a device; for example cpu, cuda, cuda:1, mps",
        ),
        (["dmo"], "headrace: no such command 'dmo'. Did you mean 'demo'?"),
        (
            ["fly"],
            "headrace: no such command 'fly'. "
            "There are: demo, peek, run, profile, tokenize, shards, bench",
        ),
    ],
)
def test_a_wrong_value_gets_one_line(headrace, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    outcome = headrace(*arguments)
    assert outcome.code == 2
    assert outcome.err == line + "\n"
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "beginning", "suggestion"),
    [
        (["demo", "--epoch", "3"], "headrace demo: no such option", "--epochs"),
        (["demo", "--device", "meta"], "headrace demo: --device meta cannot be used here", "cpu"),
        (["demo", "digits"], "headrace demo: got unexpected extra argument", "digits"),
        (["demo", "--epochs"], "headrace", "--epochs"),
        (["--fast"], "headrace: no such option", "--fast"),
        (["bench", "inmem"], "headrace bench: no such command", "inmemory"),
    ],
)
def test_other_wrong_uses_get_one_line_too(headrace, arguments, beginning, suggestion):
    outcome = headrace(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(beginning)
    assert suggestion in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


def test_an_absent_device_is_named(headrace, tmp_path):
    outcome = headrace("demo", "--device", "cuda:99", "--out", str(tmp_path))
    assert outcome.code == 2
    assert outcome.err.startswith("headrace demo: --device cuda:99 cannot be used here: ")
    assert outcome.err.count("\n") == 1


def test_an_out_that_is_a_file_is_refused_before_any_training(headrace, tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    outcome = headrace("demo", "--out", str(file))
    assert outcome.code == 2
    assert outcome.err == f"headrace demo: --out {file} is a file; it must be a directory\n"
    assert outcome.out == ""
    assert file.read_text() == "mine"


def test_an_out_below_a_file_is_refused(headrace, tmp_path):
    (tmp_path / "taken").write_text("mine")
    outcome = headrace("demo", "--out", str(tmp_path / "taken" / "below"))
    assert outcome.code == 2
    assert outcome.err.startswith("headrace demo: --out ")
    assert "cannot be written to" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_a_missing_demo_extra_names_what_to_install(headrace, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    outcome = headrace("demo")
    assert outcome.code == 2
    assert outcome.err == (
        f'headrace demo: {module} is not installed; pip install "headrace[demo]"\n'
    )


def test_a_missing_cli_extra_names_what_to_install(headrace_command):
    without_typer = "import sys; sys.modules['typer'] = None; from headrace.cli import main; main()"
    outcome = headrace_command(python=[sys.executable, "-c", without_typer])
    assert outcome.code == 2
    assert outcome.err == 'headrace: typer is not installed; pip install "headrace[cli]"\n'
