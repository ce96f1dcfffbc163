"""Values per step and per epoch: kept exactly, as JSON, as a table, as a picture."""

import json
import math
import sys

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import MissingExtraError, OptionError
from headrace.train import history as history_module
from headrace.train.curves import panels_of, smoothed
from headrace.train.history import History

matplotlib_image = pytest.importorskip("matplotlib.image")


def a_history(epochs=4, steps=25):
    history = History()
    for epoch in range(epochs):
        for step in range(steps):
            history.add_step(epoch * steps + step + 1, epoch, loss=1 / (1 + epoch * steps + step))
        history.add_epoch(epoch, loss=1 / (1 + epoch), val_loss=1.1 / (1 + epoch), val_accuracy=0.5)
    return history


def test_values_are_plain_numbers():
    history = History()
    history.add_step(1, 0, loss=torch.tensor(0.5), samples=np.int64(3))
    history.add_epoch(np.int64(0), loss=np.float32(0.25), seen=7)
    assert history.steps == [{"step": 1, "epoch": 0, "loss": 0.5, "samples": 3.0}]
    assert history.epochs == [{"epoch": 0, "loss": 0.25, "seen": 7}]
    assert {type(v) for row in history.steps + history.epochs for v in row.values()} == {int, float}


def test_what_is_no_number_is_refused():
    with pytest.raises((RuntimeError, ValueError)):
        History().add_epoch(0, loss=torch.rand(2))


VALUES = st.dictionaries(st.sampled_from(["loss", "val_loss", "a"]), st.floats(), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, max_size=5), st.lists(VALUES, max_size=5))
def test_json_gives_back_every_bit(steps, epochs):
    history, other = History(), History()
    for number, values in enumerate(steps):
        history.add_step(number, 0, **values)
    for number, values in enumerate(epochs):
        history.add_epoch(number, **values)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    other.load_state_dict(json.loads(history.to_json(), parse_constant=refuse))
    assert repr(other.steps) == repr(history.steps)  # NaN is not equal to itself
    assert repr(other.epochs) == repr(history.epochs)


def test_to_json_writes_a_file(tmp_path):
    text = a_history().to_json(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == json.loads(text)


def test_a_state_is_a_copy():
    history = a_history()
    state = history.state_dict()
    history.add_epoch(9, loss=0)
    history.epochs[0]["loss"] = 5.0
    assert len(state["epochs"]) == 4
    assert state["epochs"][0]["loss"] == 1.0


def test_a_frame_has_a_row_for_each_epoch_or_step():
    history = a_history()
    history.add_epoch(4, loss=math.nan)
    frame = history.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["epoch", "loss", "val_loss", "val_accuracy"]
    assert frame["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert frame["val_loss"].isna().tolist() == [False] * 4 + [True]
    assert len(history.to_frame("steps")) == 100


def test_a_frame_of_something_else_is_refused():
    with pytest.raises(OptionError, match="of='step'"):
        History().to_frame("step")


def test_without_pandas_the_frame_is_polars_and_without_either_an_error(monkeypatch):
    polars = pytest.importorskip("polars")
    monkeypatch.setitem(sys.modules, "pandas", None)
    frame = a_history().to_frame()
    assert isinstance(frame, polars.DataFrame)
    assert frame["epoch"].to_list() == [0, 1, 2, 3]
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        a_history().to_frame()


def test_repr_says_how_far_it_came():
    assert repr(History()) == "<History of 0 epochs and 0 steps>"
    assert "4 epochs and 100 steps, the last: loss=0.25, val_loss=0.275" in repr(a_history())


# ---- the picture


def pixels(path):
    return matplotlib_image.imread(str(path))


def test_a_plot_has_a_panel_for_the_steps_and_each_group(tmp_path):
    history = a_history()
    history.plot(tmp_path / "two.png")
    for row in history.epochs:
        del row["val_accuracy"]
    history.plot(tmp_path / "one.png")
    two, one = pixels(tmp_path / "two.png"), pixels(tmp_path / "one.png")
    assert two.shape[0] == one.shape[0]
    assert two.shape[1] == pytest.approx(one.shape[1] * 1.5, abs=2)


@pytest.mark.parametrize(
    "history", [History(), a_history(1, 1), a_history(1, 0), a_history(0, 5), a_history(60, 2)]
)
def test_any_history_can_be_drawn(tmp_path, history):
    history.plot(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").std() > 0


def test_values_that_are_not_finite_are_marked(tmp_path):
    history = a_history()
    history.plot(tmp_path / "finite.png")
    history.epochs[2]["loss"] = math.nan
    history.steps[7]["loss"] = math.inf
    history.plot(tmp_path / "not.png")
    red = np.array([0xB0, 0x00, 0x20]) / 255

    def reds(name):
        return (np.abs(pixels(tmp_path / name)[..., :3] - red).max(-1) < 0.05).sum()

    assert reds("finite.png") == 0
    assert reds("not.png") > 20


def test_only_values_that_are_not_finite(tmp_path):
    history = History()
    history.add_step(1, 0, loss=math.nan)
    history.add_epoch(0, loss=math.nan, val_loss=math.inf)
    history.plot(tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_panels_join_what_belongs_together():
    rows = [{"epoch": 0, "lr": 1, "train_loss": 1, "val_loss": 2, "seconds": 3, "wait_s": 1}]
    assert panels_of(rows) == {"loss": ["train_loss", "val_loss"], "lr": ["lr"]}
    assert panels_of([{"loss": 1, "val_loss": 1}, {"a": 2}]) == {
        "loss": ["loss", "val_loss"],
        "a": ["a"],
    }


def test_the_smoothed_curve():
    constant = smoothed(np.full(100, 3.0))
    assert np.allclose(constant, 3)
    values = np.array([1.0, np.nan, 3.0, 5.0])
    means = smoothed(values)
    assert np.isnan(means[1])
    assert means[0] == 1
    assert 1 < means[2] < 3 < means[3] < 5
    assert len(smoothed(np.array([]))) == 0


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 200), cut=st.integers(0, 200))
def test_a_long_history_is_spread_evenly_and_bounded_through_any_resume(count, cut):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "_MOST", 8)
        whole, resumed = History(), History()
        for step in range(count):
            if step == cut:
                state, resumed = resumed.state_dict(), History()
                resumed.load_state_dict(json.loads(json.dumps(state)))
            for one in (whole, resumed):
                one.add_step(step + 1, 0, loss=step)
                one.add_epoch(step, loss=step)
        every = 1
        while count > 8 * every:
            every *= 2
        assert [row["step"] for row in whole.steps] == list(range(1, count + 1, every))
        assert [row["epoch"] for row in whole.epochs] == list(range(0, count, every))
        assert (resumed.steps, resumed.epochs) == (whole.steps, whole.epochs)
        plain = {
            "steps": [{"step": n + 1, "epoch": 0, "loss": n} for n in range(count)],
            "epochs": [],
        }
        resumed.load_state_dict(plain)  # as it was written when every step was kept
        assert resumed.steps == whole.steps


def test_twenty_thousand_steps_are_kept_whole():
    history = History()
    for step in range(20_000):
        history.add_step(step, 0, loss=1.0)
    assert len(history.steps) == 20_000
    history.add_step(20_000, 0, loss=1.0)
    assert [row["step"] for row in history.steps] == list(range(0, 20_001, 2))
