"""cached(): made once, in memory or in a directory; nothing unpickled, nothing half."""

import pickle
import struct
import warnings
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, StackDataset, random_split

from data.forked import FORK, exit_code_of, limit_files
from headrace import ArrayDataset, DataLoader, IterableDataset
from headrace.data import CSVDataset, ImageFolder, TextLines, cached
from headrace.data.record import DamagedRecordError, pack, unpack
from headrace.testing import assert_exact_resume


class Made(Dataset[Any]):
    """Counts how often each sample is made; its samples draw random numbers."""

    def __init__(self, n: int = 20, width: int = 4) -> None:
        self.n, self.width = n, width
        self.made: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        self.made.append(index)
        return {"x": torch.rand(self.width), "y": index, "z": np.random.rand()}


def same(a: Any, b: Any) -> bool:
    return torch.equal(a["x"], b["x"]) and a["y"] == b["y"] and a["z"] == b["z"]


@pytest.fixture(params=["memory", "directory"])
def where(request: Any, tmp_path: Path) -> Any:
    return 1 << 20 if request.param == "memory" else tmp_path / "cache"


class TestBothKinds:
    def test_make_each_sample_once(self, where: Any) -> None:
        made = Made()
        data = cached(made, where)
        first = [data[i] for i in range(20)]
        second = [data[i] for i in range(20)]
        assert made.made == list(range(20))
        assert all(map(same, first, second))
        assert len(data) == 20
        assert same(data[-1], first[19])

    def test_samples_depend_on_the_index_alone(self, where: Any) -> None:
        torch.manual_seed(1)
        first = [cached(Made(), 1)[i] for i in range(20)]
        torch.manual_seed(2)
        state = torch.get_rng_state()
        data = cached(Made(), where)
        for i in reversed(range(20)):
            assert same(data[i], first[i])
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(first[0]["x"], first[1]["x"])

    def test_what_is_given_out_can_be_changed(self, where: Any) -> None:
        data = cached(Made(), where)
        kept = data[3]["x"].clone()
        for _ in range(3):
            sample = data[3]
            sample["x"].add_(1)
            sample["more"] = 1
        assert torch.equal(data[3]["x"], kept)
        assert "more" not in data[3]

    def test_the_same_for_any_workers_and_resumed(self, where: Any) -> None:
        def loader(workers: int = 0) -> Any:
            data = cached(Made(24), where).map(lambda s: s["x"] + torch.rand(4))
            return DataLoader(data, batch_size=5, shuffle=True, num_workers=workers, seed=0)

        alone, helped = list(loader()), list(loader(2))
        assert all(map(torch.equal, alone, helped))
        assert_exact_resume(loader)

    def test_pickled_is_the_dataset_alone(self, where: Any) -> None:
        data = cached(Made(), where)
        empty = len(pickle.dumps(cached(Made(), where)))
        first = data[0]
        data.dataset.made.clear()  # type: ignore[attr-defined]
        assert len(pickle.dumps(data)) == empty
        assert same(pickle.loads(pickle.dumps(data))[0], first)

    @pytest.mark.parametrize("index", [20, -21])
    def test_an_index_out_of_range(self, where: Any, index: int) -> None:
        with pytest.raises(IndexError, match="20 samples"):
            cached(Made(), where)[index]


class TestMemory:
    def test_what_comes_first_stays(self) -> None:
        made = Made(width=256)  # a KiB each
        data = cached(made, 8 << 10)
        for _ in range(2):
            for i in range(20):
                data[i]
        assert made.made[:20] == list(range(20))
        assert made.made[20:] == list(range(7, 20))

    def test_of_any_type(self) -> None:
        data = cached([{1, 2}, object], 1 << 10)  # type: ignore[arg-type]
        assert data[0] == {1, 2}
        data[0].add(3)
        assert data[0] == {1, 2}
        assert data[1] is object

    @pytest.mark.parametrize(
        ("size", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)]
    )
    def test_of_no_size(self, size: Any, error: Any) -> None:
        with pytest.raises(error, match=r"2 << 30"):
            cached(Made(), size)

    def test_of_a_stream_is_refused(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Any:
                return iter([])

        with pytest.raises(TypeError, match="map-style"):
            cached(Stream(), 100)


Pair = namedtuple("Pair", "a b")

SAMPLES = [
    {"x": torch.rand(2, 3), "n": [1, (2.5, None, True, -(10**30))], "s": "é\ud800\n", 3: b"\0\xff"},
    (np.arange(6, dtype=np.int16).reshape(2, 3), np.float32(1.5), np.array("2020", "M8[D]")),
    [torch.ones(2, dtype=torch.bfloat16), torch.tensor(7), torch.empty(0, 4), np.empty((3, 0))],
    [float("nan"), float("inf"), "", b"", [], {}, ()],
    (torch.rand(4, 6).T[::2], np.asfortranarray(np.eye(3)), np.array(["ab", "c"]), np.bool_(True)),
]


def alike(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return bool(a.dtype == b.dtype and a.shape == b.shape and (a == b).all())
    return a == b or a != a


class TestRecords:
    @pytest.mark.parametrize("sample", SAMPLES)
    def test_come_back_as_they_were(self, sample: Any) -> None:
        assert alike(unpack(pack(sample)), sample)

    def test_arrays_can_be_written_to(self) -> None:
        tensor, array = unpack(pack([torch.zeros(3), np.zeros(3)]))
        tensor += 1
        array += 1
        assert tensor.tolist() == array.tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        "sample",
        [
            {1, 2},
            Pair(1, 2),
            np.array([{}], object),
            np.zeros(2, [("a", "f4")]),
            torch.zeros(2, requires_grad=True),
            torch.nn.Parameter(torch.zeros(2)),
            torch.zeros(2).to_sparse(),
            torch.zeros(2, device="meta"),
            1j,
        ],
    )
    def test_of_other_types_are_refused(self, sample: Any, tmp_path: Path) -> None:
        data = cached([sample], tmp_path)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"sample 0 of list.*not kept.*cached\(dataset\.map"):
            data[0]

    def test_that_are_damaged_are_seen(self) -> None:
        record = pack({"x": torch.arange(5), "s": "text"})
        for place in range(len(record)):
            bad = bytearray(record)
            bad[place] ^= 0x40
            with pytest.raises(DamagedRecordError):
                unpack(bad)
            with pytest.raises(DamagedRecordError):
                unpack(record[:place])

    def test_hold_no_pickle(self) -> None:
        record = bytes(pack(SAMPLES[0]))
        magic, _, length = struct.unpack_from("<4sII", record)
        assert magic == b"hrs1"
        assert record[12:13] == b"["
        assert record[12 : 12 + length].isascii()


def files(directory: Path, kind: str = "*.sample") -> list[Path]:
    return sorted(directory.rglob(kind))


class TestDirectory:
    def test_is_shared_by_runs(self, tmp_path: Path) -> None:
        first = [cached(Made(), tmp_path)[i] for i in range(20)]
        made = Made()
        again = cached(made, str(tmp_path))
        assert all(same(again[i], first[i]) for i in range(20))
        assert made.made == []

    def test_is_shared_by_workers(self, tmp_path: Path) -> None:
        list(DataLoader(cached(Made(), tmp_path), batch_size=2, num_workers=2))
        assert len(files(tmp_path)) == 20
        made = Made()
        list(DataLoader(cached(made, tmp_path), batch_size=2))
        assert made.made == []

    @pytest.mark.parametrize(
        "other",
        [
            lambda path: cached(Made(), path, version=2),
            lambda path: cached(Made(21), path),
            lambda path: cached(ArrayDataset(np.arange(20)), path),
            lambda path: cached(cached(Made(), 1).map(str), path),
        ],
    )
    def test_other_versions_lengths_and_types_are_others(self, tmp_path: Path, other: Any) -> None:
        sample = cached(Made(), tmp_path)[3]
        different = other(tmp_path)
        assert different.directory != cached(Made(), tmp_path).directory
        different[3]
        assert same(cached(Made(), tmp_path)[3], sample)

    def test_other_rows_of_one_dataset_are_others(self, tmp_path: Path) -> None:
        halves = random_split(Made(), [0.5, 0.5])
        samples = [[cached(half, tmp_path)[i]["y"] for i in range(10)] for half in halves]
        assert samples == [list(half.indices) for half in halves]
        joined = [ConcatDataset([halves[n], halves[n]]) for n in (0, 1)]
        stacked = [StackDataset(y=halves[n]) for n in (0, 1)]
        theirs = [datasets.Dataset.from_dict({"x": [n] * 10}) for n in (0, 1)]
        every = (*halves, *joined, *stacked, *theirs)
        assert len({cached(data, tmp_path).directory for data in every}) == len(every)

    def test_other_files_and_files_that_changed_are_others(self, tmp_path: Path) -> None:
        def of_csv(name: str, number: int) -> Any:
            (tmp_path / name).write_text(f"x\n{number}\n")
            return CSVDataset(tmp_path / name).map(str)

        def of_lines(name: str, number: int) -> Any:
            (tmp_path / name).write_text(f"{number}\n")
            return TextLines(tmp_path / name).map(str)

        def of_npy(name: str, number: int) -> Any:
            np.save(tmp_path / f"{name}.npy", np.array([number]))
            return ArrayDataset.from_npy(tmp_path / f"{name}.npy").map(str)

        for make in (of_csv, of_lines, of_npy):
            data = [make("a", 1), make("b", 2)]
            once = [cached(one, tmp_path / "cache")[0] for one in data]
            assert ["1" in once[0], "2" in once[1]] == [True, True]
            assert "33" in cached(make("a", 33), tmp_path / "cache")[0]

    def test_other_directories_of_images_are_others(self, tmp_path: Path) -> None:
        for part in ("train", "test"):
            (tmp_path / part / "cat").mkdir(parents=True)
            Image.new("RGB", (8, 8), part == "train").save(tmp_path / part / "cat" / "1.png")

        def place(part: str, **options: Any) -> Path:
            return cached(ImageFolder(tmp_path / part, **options), tmp_path / "cache").directory

        brighter, darker = (lambda image: image), (lambda image: image)
        darker.__qualname__ = "darker"
        kept = [place("train"), place("test"), place("test", size=4), place("test", decode="pil")]
        kept += [place("test", transform=brighter), place("test", transform=darker)]
        assert len(set(kept)) == 6
        assert place("test", transform=brighter) == kept[4]  # not by address

    def test_functions_with_options_are_told_apart(self, tmp_path: Path) -> None:
        def place(fn: Any) -> Path:
            return cached(ArrayDataset(np.arange(3)).map(fn), tmp_path).directory

        assert place(partial(round, ndigits=1)) == place(partial(round, ndigits=1))
        assert place(partial(round, ndigits=1)) != place(partial(round, ndigits=2))

    @pytest.mark.parametrize("damage", [b"", b"garbage", None])
    def test_a_damaged_sample_is_made_again(self, tmp_path: Path, damage: bytes | None) -> None:
        good = cached(Made(), tmp_path)[3]
        [path] = files(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] if damage is None else damage)
        made = Made()
        assert same(cached(made, tmp_path)[3], good)
        assert made.made == [3]
        assert path.read_bytes() == whole

    def test_what_is_not_a_directory_is_an_error_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError, match="file"):
            cached(Made(), tmp_path / "file")

    def test_a_disk_that_is_full_costs_the_cache_not_the_epoch(self, tmp_path: Path) -> None:
        def fill() -> None:
            data = cached(Made(3, width=10_000), tmp_path)
            limit_files(20_000)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert [data[i]["y"] for i in (0, 1, 2, 0)] == [0, 1, 2, 0]
            assert [str(w.message)[:30] for w in caught] == ["samples are not kept from here"]

        assert exit_code_of(fill) == 0
        assert files(tmp_path) == files(tmp_path, "*.part") == []

    def test_a_process_that_is_killed_leaves_whole_samples(self, tmp_path: Path) -> None:
        begun = FORK.Event()

        def fill() -> None:
            data = cached(Made(10**6, width=50_000), tmp_path)
            for index in range(10**6):
                data[index]
                if index == 20:
                    begun.set()

        process = FORK.Process(target=fill)
        process.start()
        assert begun.wait(100)
        process.kill()
        process.join()
        kept = files(tmp_path)
        assert len(kept) > 20
        for path in kept:
            assert unpack(bytearray(path.read_bytes()))["y"] == int(path.stem)
        assert len(files(tmp_path, "*.part")) <= 1
