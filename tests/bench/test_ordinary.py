"""The bench of ordinary programs: its cells, their order, and what fails the command."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from headrace.bench import ordinary
from headrace.bench.harness import Report, Size
from headrace.cli.bench import bench

MADE = ordinary._Cell("tensors", 8, 0, 10, ours=[2.0, 1.0], torch=[1.5, 1.5], bare=[0.9])


@pytest.fixture
def measured(monkeypatch):
    """Cells whose times are made up: those of one kind lose, the others win by twice."""

    def of(kind, batch_size, workers, size):
        ours = [2.0, 2.0] if kind == "texts" else [0.5, 0.5]
        return ordinary._Cell(kind, batch_size, workers, 10, ours, [1.0, 1.0], [0.49])

    monkeypatch.setattr(ordinary, "_measured", of)


def test_all_cells_are_there_and_the_worst_come_first(measured):
    report = ordinary.measure(Size(), lambda _: None)
    cells = report.rows[:80]
    assert len({row.work for row in cells}) == 80
    values = [row.value.median for row in cells]
    assert values == sorted(values)
    assert [row.reached for row in cells] == [False] * 8 + [True] * 72
    assert "median of 80" in report.rows[80].work


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--json"], 1), (["--quick"], 0)])
def test_a_cell_that_loses_fails_the_command(measured, options, code):
    assert CliRunner().invoke(bench, ["ordinary", *options]).exit_code == code


def test_the_best_epoch_of_each_loader_counts():
    assert MADE.ratio == 1.5
    assert MADE.own_cost_us == pytest.approx(1e4)
    assert MADE.noise == 0.0
    assert replace(MADE, torch=[1.0, 1.1]).noise == pytest.approx(1 / 11)


@pytest.mark.parametrize("kind", ordinary.KINDS)
def test_the_bare_loop_makes_as_many_samples_as_the_loaders(kind):
    make, collate = ordinary.KINDS[kind]
    loader = torch.utils.data.DataLoader(make(24), 8, collate_fn=collate)
    assert sum(1 for _ in loader) == 3
    assert ordinary._bare(make(24), 8, collate) > 0


def test_a_report_without_duties_never_fails():
    assert not Report("x", (), (), Size(), {}).failed
