"""Each example runs in an environment with the wheel, and prints what its page says."""

import re
import subprocess
from pathlib import Path

import pytest

from .environment import ROOT, clean_variables
from .output import differences

PROGRAMS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
PAGES = ROOT / "docs" / "examples"
MEASURED = {"12", "18", "20"}  # they print times and speeds, which are those of the machine
# Convolutions: each processor has kernels of its own, and what they round differently grows with
# the steps of the training.
GROWING = {"05": 0.25}
PROGRESS = re.compile(r"headrace: |epoch \d+/|goes on |$")  # lines in place of bars; no warnings


def test_a_program_runs_in_the_environment_of_the_wheel_without_the_sources(python, tmp_path):
    program = tmp_path / "where.py"
    program.write_text(
        "import headrace, runpy, sys; print(headrace.__file__)\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    done = subprocess.run(
        [python, program, PROGRAMS[0]],
        cwd=tmp_path,
        env=clean_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    where, _, printed = done.stdout.partition("\n")
    assert Path(where).is_relative_to(python.parents[1])
    assert differences(printed, (PAGES / "outputs" / f"{PROGRAMS[0].stem}.txt").read_text()) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_example_runs_and_prints_what_its_page_says(program, run):
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not PROGRESS.match(line)] == []
    wanted = (PAGES / "outputs" / f"{program.stem}.txt").read_text(encoding="utf-8")
    number = program.stem[:2]
    tolerance = GROWING.get(number, 0.05)
    assert differences(done.stdout, wanted, measured=number in MEASURED, tolerance=tolerance) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_page_shows_the_program_its_output_and_how_to_go_on(program):
    page = (PAGES / f"{program.stem}.md").read_text(encoding="utf-8")
    assert f'--8<-- "examples/{program.name}"' in page
    assert f'--8<-- "docs/examples/outputs/{program.stem}.txt"' in page
    assert re.search(rf"^(python|torchrun .*) examples/{program.name}", page, re.MULTILINE)
    assert "## Step by step" in page
    assert "## With your own data" in page
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", page):
        assert (PAGES / picture).exists()


def test_each_example_is_in_the_navigation_and_in_the_index():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    pages = [f"{program.stem}.md" for program in PROGRAMS]
    assert re.findall(r"examples/(\d\d_\w+\.md)", navigation) == pages
    assert re.findall(r"\((\d\d_\w+\.md)\)", index) == pages


def test_nothing_is_left_over():
    stems = {program.stem for program in PROGRAMS}
    assert {path.stem for path in PAGES.glob("[0-9]*.md")} == stems
    assert {path.stem for path in (PAGES / "outputs").iterdir()} == stems


@pytest.mark.parametrize(
    ("found", "wanted", "measured", "same"),
    [
        ("loss 0.100", "loss 0.104", False, True),
        ("loss 0.100", "loss 0.150", False, False),
        ("loss 0.000001", "loss 0.000000", False, True),
        ("accuracy 97.0%", "accuracy 80.0%", False, False),
        ("shape (4, 2)", "shape (4, 3)", False, False),
        ("12,000 samples", "12,001 samples", False, False),
        ("weights 3e-08", "weights 2.9e-08", False, True),
        ("  1,234 samples/s", "99,999 samples/s", True, True),
        ("  1,234 samples/s", "99,999 batches/s", True, False),
        ("Take batch size 8: the best", "Take 32", True, True),
        ("Take batch size 8: the best", "Take 32", False, False),
        ("one line", "one line\nanother", True, False),
    ],
)
def test_outputs_are_compared_by_words_whole_numbers_and_nearness(found, wanted, measured, same):
    assert (differences(found, wanted, measured=measured) == []) is same
