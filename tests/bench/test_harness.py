"""What all benches share: turns, medians, targets, tables."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from headrace.bench.harness import (
    Report,
    Row,
    Size,
    System,
    at_least,
    at_most,
    environment,
    in_turn,
    ratios,
    spread,
)
from headrace.bench.table import number, print_report


def test_systems_run_in_turn_and_none_is_always_first():
    calls = []
    results = in_turn({name: lambda n=name: calls.append(n) or n for name in "abc"}, rounds=3)
    assert calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert results == {"a": ["a"] * 3, "b": ["b"] * 3, "c": ["c"] * 3}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # The machine was ten times slower in the second round: no ratio may mix the rounds.
    found = ratios([10.0, 1.0, 12.0], [5.0, 0.5, 4.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_targets_know_their_side():
    assert at_least(2.0).reached_by(2.0)
    assert not at_least(2.0).reached_by(1.99)
    assert at_most(2.0).reached_by(2.0)
    assert not at_most(2.0).reached_by(2.01)


def test_the_environment_says_where_when_and_with_what():
    found = environment()
    assert {"date", "machine", "processor", "cores", "python", "torch", "headrace"} <= set(found)
    json.dumps(found)


@pytest.fixture
def report():
    systems = (System("headrace", spread([9.0]), "k samples/s", 0.5, 12.0),)
    rows = (
        Row("w1", "f [1]", spread([2.0, 3.0, 4.0]), "x", at_least(2.5), systems, "note one"),
        Row("w2", "f2", spread([7.0]), "ms", at_most(5.0), systems),
    )
    return Report("some", ("what it means",), rows, Size(rounds=3), environment())


def test_a_pipe_gets_a_markdown_table_with_targets(report):
    out = io.StringIO()
    print_report(report, Console(file=out, highlight=False))
    lines = out.getvalue().splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[2] == (
        "| w1 | f [1] | 3 x (2 to 4) | >= 2.5 x | yes | "
        "headrace 9 k samples/s, 0.5 CPU s, 12 MiB; note one |"
    )
    assert lines[3] == (
        "| w2 | f2 | 7 ms | <= 5 ms | no | headrace 9 k samples/s, 0.5 CPU s, 12 MiB |"
    )
    assert "1 of 2 targets reached" in lines
    assert "- what it means" in lines
    assert "\x1b" not in out.getvalue()


def test_a_quick_run_is_held_against_no_target(report):
    out = io.StringIO()
    quick = replace(report, size=Size(rounds=1, quick=True))
    print_report(quick, Console(file=out, highlight=False))
    lines = out.getvalue().splitlines()
    assert "| >= 2.5 x | - |" in lines[2]
    assert "reached" not in "\n".join(lines[1:])
    assert "a quick run shows that all of it works; its figures mean little" in lines


def test_a_terminal_gets_a_frame(report):
    out = io.StringIO()
    environment = {"TERM": "xterm", "COLUMNS": "120"}
    print_report(report, Console(file=out, force_terminal=True, width=120, _environ=environment))
    assert "╭" in out.getvalue()
    assert "\x1b[32myes" in out.getvalue()
    assert "\x1b[31mno" in out.getvalue()


def test_a_report_is_json_with_reached_beside_each_row(report):
    found = json.loads(json.dumps(report.as_dict()))
    assert [row["reached"] for row in found["rows"]] == [True, False]
    assert found["rows"][0]["target"] == {"bound": 2.5, "kind": "at least"}
    assert found["rows"][0]["value"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert found["size"]["rounds"] == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(3610.0, "3,610"), (99.54, "99.5"), (0.0738, "0.0738"), (1 / 3, "0.333"), (0.0, "0")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text
