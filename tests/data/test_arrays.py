"""ArrayDataset: arrays, memory maps, and what is wrong with them."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from headrace import (
    ArrayDataset,
    ArrayMismatchError,
    ArrayTypeError,
    DataLoader,
    TruncatedFileError,
)
from oracle import assert_programs_agree


def rows(n: int = 10, width: int = 3) -> Any:
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


class TestSamples:
    def test_are_rows_tuples_or_dicts_of_rows(self) -> None:
        x, y = rows(), np.arange(10)
        np.testing.assert_array_equal(ArrayDataset(x)[2], x[2])
        for data in (ArrayDataset(x, y), ArrayDataset((x, y)), ArrayDataset([x, y])):
            sample = data[2]
            assert type(sample) is tuple
            np.testing.assert_array_equal(sample[0], x[2])
            assert sample[1] == 2
        sample = ArrayDataset({"x": x, "y": y})[-1]
        assert list(sample) == ["x", "y"]
        assert sample["y"] == 9
        assert len(ArrayDataset(x, y)) == 10

    def test_that_do_not_exist_are_an_index_error(self) -> None:
        with pytest.raises(IndexError):
            ArrayDataset(rows())[10]

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda x: x, id="C order"),
            pytest.param(np.asfortranarray, id="Fortran order"),
            pytest.param(lambda x: np.concatenate([x, x])[::2], id="every second row"),
            pytest.param(lambda x: np.concatenate([x, x], 1)[:, ::2], id="every second column"),
            pytest.param(lambda x: x[::-1].copy()[::-1], id="backwards"),
            pytest.param(lambda x: np.broadcast_to(x[:1], x.shape), id="broadcast"),
            pytest.param(np.lib.stride_tricks.as_strided, id="strided"),
            pytest.param(lambda x: x.astype(np.float16), id="half"),
        ],
    )
    def test_make_the_same_batches_in_any_memory_order(self, make: Any) -> None:
        array = make(rows())

        def program(loader: Any) -> Any:
            # torch takes no arrays with negative strides, or read-only ones, without a word
            data = ArrayDataset(array) if loader is DataLoader else list(np.array(array))
            return list(loader(data, batch_size=4, shuffle=True))

        assert_programs_agree(program)

    def test_can_be_written_to_although_the_array_cannot(self) -> None:
        x = rows()
        x.flags.writeable = False
        for batch in DataLoader(ArrayDataset(x), batch_size=3):
            batch.add_(1)
        np.testing.assert_array_equal(x, rows())

    @pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray])
    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_of_array_subclasses_are_what_torch_makes_of_them(self, kind: Any) -> None:
        array = rows().view(kind)
        assert_programs_agree(lambda loader: list(loader(ArrayDataset(array), batch_size=4)))

    def test_are_gathered_not_indexed(self) -> None:
        class Loud(ArrayDataset):
            pass

        loader = DataLoader(Loud(rows()), batch_size=4)
        list(loader)
        assert loader.statistics().path == "gather"

    def test_of_a_subclass_with_its_own_getitem_are_asked_for(self) -> None:
        class Doubled(ArrayDataset):
            def __getitem__(self, index: int) -> Any:
                return 2 * super().__getitem__(index)

        loader = DataLoader(Doubled(rows()), batch_size=10)
        assert torch.equal(next(iter(loader)), 2 * torch.from_numpy(rows()))
        assert loader.statistics().path == "inline"


class TestWrongArrays:
    @pytest.mark.parametrize(
        ("arrays", "error", "says"),
        [
            ((rows(3), rows(4)), ArrayMismatchError, r"arrays\[0\] has 3, arrays\[1\] has 4"),
            ({"x": rows(3), "y": rows(4)}, ArrayMismatchError, r"arrays\['y'\] has 4"),
            ((), ArrayMismatchError, "there are none"),
            ({}, ArrayMismatchError, "there are none"),
            (np.array(3.0), ArrayMismatchError, "no rows"),
            (np.array([{}, []], object), ArrayTypeError, "objects.*astype"),
            (np.array(["a"]), ArrayTypeError, "<U1.*np.unique"),
            (np.array([b"a"]), ArrayTypeError, "S1"),
            (np.array(["2020-01-01"], "M8[D]"), ArrayTypeError, "datetime64"),
            (np.zeros(3, [("a", "f4")]), ArrayTypeError, "which no tensor can hold"),
            (np.zeros(3, np.longdouble), ArrayTypeError, "which no tensor can hold"),
            (np.zeros(3, ">f4"), ArrayTypeError, ">f4.*astype"),
            (np.zeros(3, ">i2"), ArrayTypeError, ">i2"),
            (torch.zeros(3), ArrayTypeError, r"TensorDataset\(x\)"),
            ([[1, 2], [3]], ArrayTypeError, r"arrays\[0\].*np.asarray"),
            (3.5, ArrayTypeError, "float"),
        ],
    )
    def test_say_what_came_and_what_to_write(self, arrays: Any, error: Any, says: str) -> None:
        with pytest.raises(error, match=says):
            ArrayDataset(arrays)
        assert issubclass(error, (ValueError, TypeError))


class TestFiles:
    @pytest.fixture
    def paths(self, tmp_path: Path) -> dict[str, Path]:
        paths = {"x": tmp_path / "x.npy", "y": tmp_path / "y.npy"}
        np.save(paths["x"], rows(1_000, 64))
        np.save(paths["y"], np.arange(1_000))
        return paths

    def test_are_mapped_not_read(self, paths: dict[str, Path]) -> None:
        data = ArrayDataset.from_npy(paths["x"])
        assert isinstance(data.arrays, np.memmap)
        assert data.arrays.mode == "r"

    def test_one_several_or_named(self, paths: dict[str, Path]) -> None:
        x, y = paths.values()
        assert ArrayDataset.from_npy(str(x))[1].shape == (64,)
        for data in (ArrayDataset.from_npy(x, y), ArrayDataset.from_npy([x, y])):
            assert data[5][1] == 5
        assert ArrayDataset.from_npy(paths)[5]["y"] == 5

    def test_make_the_batches_of_the_arrays_in_them(self, paths: dict[str, Path]) -> None:
        held = {"x": rows(1_000, 64), "y": np.arange(1_000)}

        def program(loader: Any) -> Any:
            data = ArrayDataset.from_npy(paths) if loader is DataLoader else ArrayDataset(held)
            return list(loader(Subset(data, range(0, 1_000, 3)), batch_size=50, shuffle=True))

        assert_programs_agree(program)

    def test_in_fortran_order(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.asfortranarray(rows()))
        batches = list(DataLoader(ArrayDataset.from_npy(tmp_path / "x.npy"), batch_size=4))
        assert torch.equal(torch.cat(batches), torch.from_numpy(rows()))

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_pickle_as_their_paths(self, paths: dict[str, Path], mode: Any) -> None:
        data = ArrayDataset.from_npy(paths, mmap_mode=mode)
        for other in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data), copy.copy(data)):
            assert other.arrays["x"].mode == mode
            assert other[7]["y"] == 7
            assert len(other) == 1_000
        assert len(pickle.dumps(data)) < 1_000

    def test_pickled_keep_a_subclass_as_it_is(self, paths: dict[str, Path]) -> None:
        data = Scaled.from_npy(paths["y"])
        data.scale = 10
        assert pickle.loads(pickle.dumps(data))[3] == 30
        assert pickle.loads(pickle.dumps(Scaled(np.arange(4))))[3] == 3

    def test_arrays_pickle_as_values(self) -> None:
        data = pickle.loads(pickle.dumps(ArrayDataset(rows(), np.arange(10))))
        assert data[3][1] == 3
        assert len(data) == 10

    def test_of_objects_are_refused_not_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([{}], object))
        with pytest.raises(ArrayTypeError, match=r"objects.*np\.save"):
            ArrayDataset.from_npy(tmp_path / "x.npy")

    @pytest.mark.parametrize("content", [b"", b"id,label\n1,2\n", b"\x93NUMPY\x01\x00"])
    def test_that_are_no_npy_files_say_so(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"no \.npy file"):
            ArrayDataset.from_npy(tmp_path / "x.npy")

    def test_that_are_archives_say_so(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=rows())
        with pytest.raises(ArrayTypeError, match="archive"):
            ArrayDataset.from_npy(tmp_path / "x.npz")

    def test_that_do_not_exist_are_the_systems_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            ArrayDataset.from_npy(tmp_path / "x.npy")

    def test_of_foreign_byte_order_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros(3, ">f8"))
        with pytest.raises(ArrayTypeError, match=">f8"):
            ArrayDataset.from_npy(tmp_path / "x.npy")

    def test_of_different_lengths_name_the_arrays(self, paths: dict[str, Path]) -> None:
        np.save(paths["y"], np.arange(999))
        with pytest.raises(ArrayMismatchError, match="999"):
            ArrayDataset.from_npy(paths)

    def test_cut_short_before_they_are_opened(self, paths: dict[str, Path]) -> None:
        with paths["x"].open("r+b") as file:
            file.truncate(1_000)
        with pytest.raises(ValueError, match="file size"):
            ArrayDataset.from_npy(paths["x"])

    def test_changes_show_to_a_mode_that_writes(self, paths: dict[str, Path]) -> None:
        data = ArrayDataset.from_npy(paths["y"], mmap_mode="r+")
        data.arrays[0] = 77
        data.arrays.flush()
        assert ArrayDataset.from_npy(paths["y"])[0] == 77


class Scaled(ArrayDataset):
    """With a constructor and an attribute of its own."""

    def __init__(self, arrays: Any, scale: int = 1) -> None:
        super().__init__(arrays)
        self.scale = scale

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index) * self.scale


class TestFilesCutShortWhileTheyAreMapped:
    """Reading past the end of the file is a bus error, which nothing in Python can catch."""

    program = """
import sys
import numpy as np
from torch.utils.data import ConcatDataset, Subset
from headrace import ArrayDataset, DataLoader, TruncatedFileError

path = sys.argv[1]
np.save(path, np.arange(1_000_000, dtype=np.float64).reshape(-1, 100))
mapped = np.load(path, mmap_mode="r")
plain = np.asarray(mapped)
datasets = {
    "from_npy": ArrayDataset.from_npy(path),
    "memmap": ArrayDataset(mapped),
    "slice": ArrayDataset(mapped[5_000:]),
    "strided": ArrayDataset(mapped[:, ::2]),
    "backwards": ArrayDataset(mapped[::-1]),
    "asarray": ArrayDataset(plain),
    "slice of asarray": ArrayDataset(plain[5_000:].reshape(5_000, 10, 10)),
    "subset": Subset(ArrayDataset(mapped), [9_999]),
    "concat": ConcatDataset([ArrayDataset(mapped), ArrayDataset(plain)]),
    "samples": Subset(ArrayDataset(plain), [9_999, 9_998]),
}
with open(path, "r+b") as file:
    file.truncate(4_096)
for name, data in datasets.items():
    print(name, flush=True)
    options = {"collate_fn": list} if name == "samples" else {}
    try:
        next(iter(DataLoader(data, batch_size=len(data), **options)))
    except TruncatedFileError as error:
        assert isinstance(error, OSError)
        assert "truncated" in str(error) and "4,096" in str(error), error
    else:
        raise AssertionError(name)
print("told of all")
"""

    def test_are_an_error_not_a_signal(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", self.program, str(tmp_path / "x.npy")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("told of all\n")

    def test_rows_that_are_left_can_be_read_again_when_the_file_is_whole(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "x.npy"
        np.save(path, rows(1_000, 64))
        whole = path.read_bytes()
        batches = iter(DataLoader(ArrayDataset.from_npy(path), batch_size=500))
        with path.open("r+b") as file:
            file.truncate(4_096)
        with pytest.raises(TruncatedFileError, match="reopen"):
            next(batches)
        with path.open("r+b") as file:
            file.write(whole)
        assert torch.equal(next(batches), torch.from_numpy(rows(1_000, 64)[500:]))


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (np.ma.array([1.0, 2.0], mask=[False, True]), "x.filled(0)"),
        (np.array(["2024-01-01"], "M8[D]"), "x.astype(np.int64), which counts"),
        (np.array(["a", "b"]), "np.unique(x, return_inverse=True)[1]"),
        (np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")]), "{name: x[name] for name"),
        (np.arange(3, dtype=">i4"), 'x.astype(x.dtype.newbyteorder("="))'),
        (np.arange(3, dtype=np.longdouble), "x.astype(np.float64)"),
    ],
)
def test_an_array_whose_values_would_change_is_told_the_line(array: Any, line: str) -> None:
    with pytest.raises(ArrayTypeError) as caught:
        ArrayDataset(array)
    assert line in str(caught.value)


def test_a_mask_without_masked_values_is_no_mask() -> None:
    dataset = ArrayDataset(np.ma.array([1.0, 2.0]))
    assert next(iter(DataLoader(dataset, 2))).tolist() == [1.0, 2.0]
