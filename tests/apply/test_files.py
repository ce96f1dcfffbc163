"""Results streamed to files: read back by other libraries, written whole, gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.ipc
import pytest
import torch
from safetensors.torch import load_file

from headrace import DataLoader, MissingExtraError, OptionError, StateError, map_batches
from headrace.apply import resume

X = np.arange(66, dtype=np.float32).reshape(22, 3)
SUFFIXES = [".npy", ".safetensors", ".arrow"]


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        return load_file(path)["output"].numpy()
    return np.array(pyarrow.ipc.open_file(path).read_all()["output"].to_pylist())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Interrupted(Exception):
    pass


def failing_after(calls):
    """Twice the batch, and an error after some calls."""
    done = []

    def function(batch):
        done.append(len(batch))
        if len(done) > calls:
            raise Interrupted
        return batch * 2

    return function


@pytest.fixture
def always_noted(monkeypatch):
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 0)


@pytest.fixture
def begun(tmp_path, always_noted):
    """A function that begins a file of a kind, and leaves it after two calls of five rows."""

    def begin(suffix, data=X, **options):
        out = tmp_path / f"x{suffix}"
        with pytest.raises(Interrupted):
            map_batches(failing_after(2), data, 5, out=out, **options)
        assert not out.exists()
        return out

    return begin


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_file_of_rows(tmp_path, suffix, length):
    data = X if length == "known" else iter(torch.from_numpy(X))
    out = tmp_path / "new" / f"x{suffix}"
    assert map_batches(lambda b: b * 2, data, 5, out=out) == out
    assert np.array_equal(read(out), X * 2)
    assert names(out.parent) == [out.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_file_is_replaced_only_when_the_new_one_is_whole(tmp_path, suffix):
    out = tmp_path / f"x{suffix}"
    map_batches(lambda b: b, X, 5, out=out)
    with pytest.raises(Interrupted):
        map_batches(failing_after(2), X, 5, out=out)
    assert np.array_equal(read(out), X)
    map_batches(lambda b: b * 2, X, 5, out=out)
    assert np.array_equal(read(out), X * 2)
    assert names(tmp_path) == [out.name]


def test_several_columns(tmp_path):
    def function(batch):
        return {"flag": batch[:, 0] > 9, "pair": (batch.double(), batch[:, :, None].long())}

    found = load_file(map_batches(function, X, 5, out=tmp_path / "x.safetensors"))
    assert sorted(found) == ["flag", "pair.0", "pair.1"]
    assert found["flag"].tolist() == (X[:, 0] > 9).tolist()
    assert torch.equal(found["pair.0"], torch.from_numpy(X).double())
    assert found["pair.1"].shape == (22, 3, 1)
    table = pyarrow.ipc.open_file(map_batches(function, X, 5, out=tmp_path / "x.arrow")).read_all()
    table.validate(full=True)
    assert table.column_names == ["flag", "pair.0", "pair.1"]
    assert table["flag"].to_pylist() == (X[:, 0] > 9).tolist()
    assert table["pair.1"].to_pylist() == X[:, :, None].astype(int).tolist()
    with pytest.raises(OptionError, match=r"3 tensors \(flag, pair.0, pair.1\).*x.safetensors"):
        map_batches(function, X, 5, out=tmp_path / "x.npy")


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int16", "float16", "bfloat16", "float64", "complex64", "float8_e4m3fn"],
)
def test_types(tmp_path, dtype):
    """Kept to the bit, or refused with another way to write them."""
    wanted = torch.from_numpy(X).to(getattr(torch, dtype))
    # A column of one byte a row beside it: what comes behind it still has to be aligned.
    found = load_file(
        map_batches(
            lambda b: (b[:, 0] > 5, b.to(wanted.dtype)), X, 5, out=tmp_path / "x.safetensors"
        )
    )
    assert torch.equal(found["1"].view(torch.uint8), wanted.view(torch.uint8))
    for suffix in (".npy", ".arrow"):
        out = tmp_path / f"x{suffix}"
        if dtype in ("bfloat16", "float8_e4m3fn") or (dtype, suffix) == ("complex64", ".arrow"):
            with pytest.raises(OptionError, match=dtype):
                map_batches(lambda b: b.to(wanted.dtype), X, 5, out=out)
            continue
        map_batches(lambda b: b.to(wanted.dtype), X, 5, out=out)
        assert np.array_equal(np.asarray(read(out), wanted.numpy().dtype), wanted.numpy())


def test_what_a_format_cannot_hold(tmp_path):
    with pytest.raises(OptionError, match="complex128"):
        map_batches(
            lambda b: torch.complex(b, b).to(torch.complex128), X, out=tmp_path / "x.safetensors"
        )
    with pytest.raises(OptionError, match=r"rows of shape \(0,\)"):
        map_batches(lambda b: b[:, :0], X, out=tmp_path / "x.arrow")
    assert np.load(map_batches(lambda b: b[:, :0], X, out=tmp_path / "x.npy")).shape == (22, 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows(tmp_path, suffix):
    out = map_batches(lambda b: b * 2, X[:0], out=tmp_path / f"x{suffix}")
    assert len(read(out)) == 0


def test_wrong_names(tmp_path):
    with pytest.raises(OptionError, match=r"does not end in .npy, .safetensors, .arrow"):
        map_batches(torch.neg, X, out=tmp_path / "x.csv")


def test_arrow_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"headrace\[tables\]"):
        map_batches(torch.neg, X, out=tmp_path / "x.arrow")


def test_killed_at_every_step_and_gone_on_with(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("killed.py"), tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == 6
    for case, calls in report.items():
        # From all to none: what was there again is not computed again.
        assert set(calls) >= {5, 0}, case
        assert calls == sorted(calls, reverse=True) or calls[-1] == 5, case


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_after_an_error_it_goes_on_too(begun, suffix):
    out = begun(suffix)
    calls = []

    def function(batch):
        calls.append(len(batch))
        return batch * 2

    map_batches(function, X, 5, out=out)
    assert calls == [5, 5, 2]
    assert np.array_equal(read(out), X * 2)
    assert names(out.parent) == [out.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("data", "size", "function", "message"),
    [
        (X[:20], 5, torch.neg, "the number of rows was 22, and now it is 20"),
        (X.astype(np.float64), 5, torch.neg, r"the input was float32 \[3\], and now it is float64"),
        (X[:, :2], 5, torch.neg, r"the input was float32 \[3\], and now it is float32 \[2\]"),
        (X, 5, torch.Tensor.double, r"the result was output: float32 \[3\], and .*: float64 \[3\]"),
        (X, 5, lambda b: b[:, 0], r"the result was .* and now it is output: float32 \[\]"),
        (X, 5, lambda b: (b, b), r"the result was .* and now it is 0: float32 \[3\]; 1: float32"),
        (X, 6, torch.neg, "batch"),
    ],
)
def test_another_function_or_input_is_refused(begun, suffix, data, size, function, message):
    out = begun(suffix)
    with pytest.raises(StateError, match=message) as caught:
        map_batches(function, data, size, out=out)
    assert f"Delete it and x{suffix}.part.json to start over" in str(caught.value)
    map_batches(lambda b: b * 2, X, 5, out=out)  # nothing was harmed
    assert np.array_equal(read(out), X * 2)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_that_was_cut(begun, suffix):
    out = begun(suffix)
    part = out.with_name(out.name + ".part")
    part.write_bytes(part.read_bytes()[:140])
    with pytest.raises(StateError, match=r"Delete it to start over"):
        map_batches(lambda b: b * 2, X, 5, out=out)
    part.unlink()
    map_batches(lambda b: b * 2, X, 5, out=out)
    assert np.array_equal(read(out), X * 2)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_torn_rows_behind_the_last_note_are_cut_off(begun, suffix):
    """A stream may have fewer rows when it is read again."""
    out = begun(suffix, data=iter(torch.from_numpy(X)))
    part = out.with_name(out.name + ".part")
    part.write_bytes(part.read_bytes() + bytes(10_000))
    map_batches(lambda b: b * 2, iter(torch.from_numpy(X[:15])), 5, out=out)
    assert np.array_equal(read(out), X[:15] * 2)
    fresh = map_batches(lambda b: b * 2, X[:15], 5, out=out.with_name(f"fresh{suffix}"))
    assert out.read_bytes() == fresh.read_bytes()


def test_a_note_without_its_part_is_no_note(begun, monkeypatch):
    """A run that was killed between its last two steps leaves one."""
    out = begun(".npy")
    out.with_name("x.npy.part").unlink()
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 1000)
    with pytest.raises(Interrupted):
        map_batches(failing_after(1), X[:, 0], 4, out=out)
    map_batches(lambda b: b * 2, X[:, 0], 4, out=out)
    assert np.array_equal(read(out), X[:, 0] * 2)


def test_columns_of_safetensors_are_aligned(tmp_path):
    out = tmp_path / "x.safetensors"
    map_batches(lambda b: (b[:, 0] > 0, b.half(), b.double(), b), X, 5, out=out)
    content = out.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = {"BOOL": 1, "F16": 2, "F32": 4, "F64": 8}
    assert length % 8 == 0
    assert [entry["data_offsets"][0] % sizes[entry["dtype"]] for entry in header.values()] == [
        0
    ] * 4


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", '{"columns": [{}]}', '{"columns": [], "rows": 1}']
)
def test_a_note_that_is_not_ours(begun, note):
    out = begun(".npy")
    out.with_name("x.npy.part.json").write_text(note)
    with pytest.raises(StateError, match="it cannot be read"):
        map_batches(lambda b: b * 2, X, 5, out=out)


def test_a_note_of_another_version(begun):
    out = begun(".npy")
    path = out.with_name("x.npy.part.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(StateError, match="it is of version 2, and this is 1"):
        map_batches(lambda b: b * 2, X, 5, out=out)


def test_a_loader_goes_on_without_reading_again(begun, tmp_path):
    """What was read stays read: the loader's state is in the note."""
    indices = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            indices.append(index)
            return X[index]

    out = tmp_path / "x.npy"
    with pytest.raises(Interrupted):
        map_batches(failing_after(2), DataLoader(Rows(), 5), out=out)
    indices.clear()
    map_batches(lambda b: b * 2, DataLoader(Rows(), 5), out=out)
    assert indices == list(range(10, 22))
    assert np.array_equal(read(out), X * 2)


def test_no_note_before_its_time(tmp_path, monkeypatch):
    """A quick run does not wait for the disk after each batch."""
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 1000)
    with pytest.raises(Interrupted):
        map_batches(failing_after(2), X, 5, out=tmp_path / "x.npy")
    assert "x.npy.part.json" not in names(tmp_path)


def test_a_refusal_ends_in_one_full_stop(tmp_path):
    error = resume.Notes(tmp_path / "a.npy").refused("the loader has another size.")
    assert "another size. Delete" in str(error)


class Scales(torch.nn.Module):
    """Scales rows, and may end in the middle."""

    def __init__(self, scale, calls=1 << 30):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, scale]))
        self.calls = calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise Interrupted
        return x * self.scale[1]


@pytest.mark.parametrize("as_method", [False, True])
def test_other_weights_are_refused_and_the_same_go_on(tmp_path, always_noted, as_method):
    out = tmp_path / "x.npy"
    with pytest.raises(Interrupted):
        map_batches(Scales(2.0, calls=2), X, 5, out=out)
    other, same = Scales(3.0), Scales(2.0)
    with pytest.raises(StateError, match=r"the checksum of the weights was .*, and now it is"):
        map_batches(other.forward if as_method else other, X, 5, out=out)
    map_batches(same.forward if as_method else same, X, 5, out=out)
    assert np.array_equal(np.load(out), X * 2)


@pytest.mark.parametrize("kind", ["array", "tensor", "dict", "pair"])
def test_other_values_in_the_same_shapes_are_refused(tmp_path, always_noted, kind):
    def data(x):
        x = x if kind == "array" else torch.from_numpy(x)
        return {"array": x, "tensor": x, "dict": {"x": x}, "pair": (x, x[:, 0])}[kind]

    out = tmp_path / "x.npy"
    with pytest.raises(Interrupted):
        map_batches(Scales(2.0, calls=2), data(X), 5, out=out)
    with pytest.raises(StateError, match=r"the checksum of the input's values was"):
        map_batches(Scales(2.0), data(X + 1), 5, out=out)
    map_batches(Scales(2.0), data(X), 5, out=out)
    assert np.array_equal(np.load(out), X * 2)
