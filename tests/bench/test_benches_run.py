"""Every bench runs in its quick form, as a command; no test asserts a speed."""

import json

import pytest

pytestmark = pytest.mark.timeout(300)

ROWS = {
    "inmemory": 15,
    "ordinary": 85,
    "workers": 8,
    "threads": 1,
    "auto": 4,
    "batching": 10,
    "order": 13,
    "train": 1,
    "sources": 10,
    "shards": 15,
    "tokens": 5,
}


@pytest.mark.parametrize("name", ROWS)
def test_runs_and_reports(forked_command, name):
    """One test for each bench: a bench takes longer than everything that is asked of its report."""
    done = forked_command("bench", name, "--quick", "--json")
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)["reports"]
    every_row_has_its_figure_target_and_systems(name, report)
    says_where_when_and_with_what(report)
    has_costs_beside_the_rows(name, report)
    assert all(line.startswith("measuring: ") for line in done.stderr.splitlines())


def every_row_has_its_figure_target_and_systems(name, report):
    assert report["bench"] == name
    assert len(report["rows"]) == ROWS[name]
    for row in report["rows"]:
        assert row["value"]["low"] <= row["value"]["median"] <= row["value"]["high"]
        assert row["target"]["kind"] in ("at least", "at most")
        assert row["reached"] in (True, False)
        assert row["systems"][0]["name"].startswith("headrace")
        assert all(system["figure"]["median"] > 0 for system in row["systems"])


def says_where_when_and_with_what(report):
    assert report["environment"]["torch"]
    assert report["environment"]["date"]
    assert report["size"] == {"rounds": 1, "quick": True, "full": False}


def has_costs_beside_the_rows(name, report):
    if name == "workers":
        for row in report["rows"]:
            for system in row["systems"]:
                assert system["cpu_s"] is not None
                assert system["peak_memory_mib"] is not None
    else:
        throughput = [row for row in report["rows"] if row["figure"].startswith("throughput")]
        assert all(s["cpu_s"] is not None for row in throughput for s in row["systems"])
