"""ArrayDataset from .npz and .safetensors: mapped, pickled as paths, never unpickled."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data.forked import exit_code_of
from headrace import ArrayDataset, ArrayTypeError, DataLoader, SourceError, TruncatedFileError
from headrace.data import MappedDataset

X = np.arange(300, dtype=np.float32).reshape(100, 3)
ARRAYS = {
    "x": X,
    "label": np.arange(100),
    "flags": np.arange(100) % 3 == 0,
    "columns": np.asfortranarray(X.astype(np.float64)),
    "image": np.arange(100 * 2 * 5, dtype=np.uint8).reshape(100, 2, 5),
    "none": np.empty((100, 0), np.int16),
}


@pytest.fixture(params=[np.savez, np.savez_compressed])
def archive(request: Any, tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    request.param(path, **ARRAYS)
    return path


TENSORS = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in ARRAYS.items()}
TENSORS["half"] = torch.from_numpy(X).to(torch.bfloat16)
TENSORS["eighth"] = torch.from_numpy(X[:, 0] / 300).to(torch.float8_e4m3fn)


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"about": "a test"})
    return path


class TestNpz:
    def test_samples_are_rows_by_name(self, archive: Path) -> None:
        data = ArrayDataset.from_npz(archive)
        assert len(data) == 100
        for index in (0, 57, -1):
            sample = data[index]
            assert list(sample) == list(ARRAYS)
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(sample[name], array[index])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_batches_are_gathered(self, archive: Path, workers: int) -> None:
        loader = DataLoader(
            ArrayDataset.from_npz(archive), batch_size=7, shuffle=True, num_workers=workers
        )
        batches = list(loader)
        order = torch.cat([batch["label"] for batch in batches])
        assert sorted(order.tolist()) == list(range(100))
        for name, array in ARRAYS.items():
            joined = torch.cat([batch[name] for batch in batches])
            assert torch.equal(joined, torch.from_numpy(array[order.numpy()]))
        if not workers:
            assert loader.statistics().path == "gather"

    def test_stored_arrays_are_mapped(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **ARRAYS)
        data = ArrayDataset.from_npz(tmp_path / "a.npz")
        mapped = [n for n, a in data.arrays.items() if isinstance(a, np.memmap)]
        assert mapped == [n for n in ARRAYS if n != "none"]

    def test_names_choose_and_order(self, archive: Path) -> None:
        assert list(ArrayDataset.from_npz(archive, ["label", "x"])[0]) == ["label", "x"]
        assert list(ArrayDataset.from_npz(archive, "x")[0]) == ["x"]
        with pytest.raises(KeyError, match=r"no array 'y'; it has 'x', 'label'"):
            ArrayDataset.from_npz(archive, ["y"])

    def test_pickled_is_its_path(self, archive: Path) -> None:
        pickled = pickle.dumps(ArrayDataset.from_npz(archive))
        assert len(pickled) < 500
        np.testing.assert_array_equal(pickle.loads(pickled)[5]["x"], X[5])

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_of_objects_is_refused_not_unpickled(self, tmp_path: Path, save: Any) -> None:
        save(tmp_path / "a.npz", x=X, bad=np.array([{}] * 100, object))
        with pytest.raises(
            ArrayTypeError, match=r"bad\.npy.*a\.npz holds Python objects.*np\.savez"
        ):
            ArrayDataset.from_npz(tmp_path / "a.npz")
        assert len(ArrayDataset.from_npz(tmp_path / "a.npz", ["x"])) == 100

    @pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x05\x06" + bytes(18), b"PK\x03\x04"])
    def test_that_is_none_names_the_file(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.npz is no|there are none"):
            ArrayDataset.from_npz(path)

    def test_cut_short_names_the_file(self, archive: Path) -> None:
        whole = archive.read_bytes()
        for part in (0.1, 0.5, 0.9, 0.999):
            archive.write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(SourceError, match=r"a\.npz is no \.npz archive"):
                ArrayDataset.from_npz(archive)

    def test_with_other_files_in_it(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
            file.writestr("x.txt", "hello")
        with pytest.raises(SourceError, match=r"'x\.txt' of .*a\.npz cannot be read"):
            ArrayDataset.from_npz(tmp_path / "a.npz")

    def test_with_a_shape_that_its_bytes_do_not_fill(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=X)
        data = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(data.replace(b"(100, 3)", b"(900, 3)"))
        with pytest.raises(SourceError, match=r"needs 10,800 bytes, it has 1,200|CRC"):
            ArrayDataset.from_npz(tmp_path / "a.npz")


class TestSafetensors:
    def test_are_what_the_library_reads(self, tensors: Path) -> None:
        data = ArrayDataset.from_safetensors(tensors)
        theirs = load_file(tensors)
        assert set(data[0]) == set(theirs)
        loader = DataLoader(data, batch_size=100)
        batch = next(iter(loader))
        assert loader.statistics().path == "gather"
        for name, tensor in theirs.items():
            assert batch[name].dtype == tensor.dtype
            assert torch.equal(batch[name].view(torch.uint8), tensor.view(torch.uint8))
            if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn):
                row = data[3][name]
                assert torch.equal(row.view(torch.uint8), tensor[3].view(torch.uint8))

    def test_are_mapped_and_pickled_as_their_path(self, tensors: Path) -> None:
        data = ArrayDataset.from_safetensors(tensors)
        assert isinstance(data.arrays["x"], np.memmap)  # type: ignore[index,call-overload]
        again = pickle.loads(pickle.dumps(data))
        assert len(pickle.dumps(data)) < 500
        assert torch.equal(again[9]["half"], TENSORS["half"][9])

    def test_in_workers_and_asked_one_by_one(self, tensors: Path) -> None:
        data = MappedDataset(ArrayDataset.from_safetensors(tensors, ["half"]), dict)
        batches = list(DataLoader(data, batch_size=25, num_workers=1))
        assert torch.equal(torch.cat([b["half"] for b in batches]), TENSORS["half"])

    def test_names_choose(self, tensors: Path) -> None:
        assert list(ArrayDataset.from_safetensors(tensors, ["half"])[0]) == ["half"]
        with pytest.raises(KeyError, match=r"no array 'y'; it has"):
            ArrayDataset.from_safetensors(tensors, ["y"])

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"garbage",
            b"\xff" * 100,
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 9) + b'{"x": {}}',
            struct.pack("<Q", 9) + b'{"x": 1 }',
            struct.pack("<Q", 20) + b"[" * 20,
        ],
    )
    def test_that_are_none_name_the_file(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.safetensors"):
            ArrayDataset.from_safetensors(path)

    def test_cut_short_names_file_and_tensor(self, tensors: Path) -> None:
        whole = tensors.read_bytes()
        for part in (0.01, 0.5, 0.9):
            tensors.write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(SourceError, match=r"a\.safetensors"):
                ArrayDataset.from_safetensors(tensors)

    @pytest.mark.parametrize(
        "change",
        [
            {"dtype": "F4"},
            {"dtype": None},
            {"shape": [-1, 3]},
            {"shape": [101, 3]},
            {"shape": "x"},
            {"data_offsets": [0, 10**9]},
            {"data_offsets": [-4, 1196]},
            {"data_offsets": [1200, 0]},
            {"data_offsets": 3},
        ],
    )
    def test_with_a_header_that_cannot_be(self, tmp_path: Path, change: dict[str, Any]) -> None:
        about = {"dtype": "F32", "shape": [100, 3], "data_offsets": [0, 1200], **change}
        header = json.dumps({"x": about}).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + X.tobytes())
        with pytest.raises(SourceError, match=r"a\.safetensors.*'x'"):
            ArrayDataset.from_safetensors(path)

    def test_without_rows(self, tmp_path: Path) -> None:
        save_file({"x": torch.tensor(1.0)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match="no rows"):
            ArrayDataset.from_safetensors(tmp_path / "a.safetensors")


def test_rows_of_maps_are_collated_without_a_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    data = ArrayDataset.from_npy(tmp_path / "x.npy").map(as_it_is)
    batch = next(iter(DataLoader(data, batch_size=3)))  # a warning is an error in tests
    assert torch.equal(batch, torch.from_numpy(X[:3]))
    assert type(data[0]) is np.ndarray


def as_it_is(sample: Any) -> Any:
    return sample


class TestFilesCutShortWhileTheyAreMapped:
    """Reading behind the end of the file is a bus error, which nothing in Python can catch."""

    @pytest.mark.parametrize("name", ["x", "half"])
    def test_are_an_error(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "big.safetensors"
        kinds = {"x": torch.float32, "half": torch.bfloat16}
        save_file({name: torch.ones(2_000, 100, dtype=kinds[name])}, path)

        def read() -> None:
            data = ArrayDataset.from_safetensors(path)
            with path.open("r+b") as file:
                file.truncate(4096)
            with pytest.raises(TruncatedFileError):
                data[1_999]
            with pytest.raises(TruncatedFileError):
                list(DataLoader(data, batch_size=100))

        assert exit_code_of(read) == 0


def test_an_archive_that_says_it_is_encrypted_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=X)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # in the directory, which zipfile believes
    path.write_bytes(raw)
    with pytest.raises(SourceError, match="encrypted"):
        ArrayDataset.from_npz(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_an_error_or_a_dataset(data: st.DataObject) -> None:
    import io
    import tempfile

    buffer = io.BytesIO()
    np.savez(buffer, x=X[:9], y=np.arange(9))
    npz = data.draw(st.booleans())
    raw = bytearray(buffer.getvalue() if npz else SMALL)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        read: Any = ArrayDataset.from_npz if npz else ArrayDataset.from_safetensors
        try:
            dataset = read(file.name)
            for index in range(len(dataset)):
                dataset[index]
        except (ValueError, TypeError) as error:
            assert type(error).__module__ == "headrace.errors"  # noqa: PT017


def small() -> bytes:
    from safetensors.torch import save

    return bytes(save({"x": torch.ones(9, 3), "h": torch.ones(9, dtype=torch.bfloat16)}))


SMALL = small()
