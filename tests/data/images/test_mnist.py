"""MNIST and its like: torchvision reads the same files; batches are gathered; broken files."""

import gzip
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import transforms

from headrace import DataLoader
from headrace.data import EMNIST, KMNIST, MNIST, FashionMNIST, Subset
from headrace.data.gather import find_gatherer
from headrace.data.images.idx import read_idx
from headrace.errors import OptionError, SourceError

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array: Any) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_digits(raw: Path, train: str = "train", test: str = "t10k", zipped: bool = False) -> None:
    """Write scikit-learn's digits, enlarged to 28 x 28, as the four files of MNIST."""
    raw.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    small = (digits.images[:150] * 15).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(i).resize((28, 28))) for i in small])
    labels = digits.target[:150].astype(np.uint8)
    for prefix, part in ((train, slice(0, 100)), (test, slice(100, 150))):
        for name, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            data = idx_bytes(array)
            path = raw / f"{prefix}-{name}-ubyte"
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_digits(tmp_path / "MNIST" / "raw")
    return tmp_path


class TestSets:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
    def test_are_those_of_torchvision(self, tmp_path: Path, name: str, train: bool) -> None:
        write_digits(tmp_path / name / "raw")
        kinds: list[Any] = [{"MNIST": MNIST, "FashionMNIST": FashionMNIST, "KMNIST": KMNIST}[name]]
        kinds.append(getattr(torchvision.datasets, name))
        ours, theirs = (kind(tmp_path, train, download=True) for kind in kinds)
        assert torch.equal(ours.data, theirs.data)
        assert torch.equal(ours.targets, theirs.targets)
        for attribute in ("classes", "class_to_idx", "train", "root", "raw_folder"):
            assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
        assert repr(ours) == repr(theirs)
        assert len(ours) == len(theirs) == (100 if train else 50)

    @pytest.mark.parametrize("split", EMNIST.splits)
    def test_of_letters_have_torchvisions_splits(self, tmp_path: Path, split: str) -> None:
        write_digits(tmp_path / "EMNIST" / "raw", f"emnist-{split}-train", f"emnist-{split}-test")
        for train in (True, False):
            ours = EMNIST(tmp_path, split, train=train)
            theirs = torchvision.datasets.EMNIST(tmp_path, split, train=train)
            assert torch.equal(ours.data, theirs.data)
            assert torch.equal(ours.targets, theirs.targets)
            assert ours.classes == theirs.classes
            assert ours.class_to_idx == theirs.class_to_idx
        with pytest.raises(OptionError, match="letters"):
            EMNIST(tmp_path, "vowels")

    def test_are_read_gzipped_too(self, root: Path, tmp_path: Path) -> None:
        write_digits(tmp_path / "zipped" / "MNIST" / "raw", zipped=True)
        assert torch.equal(MNIST(tmp_path / "zipped").data, MNIST(root).data)

    def test_that_are_not_there_are_an_error_with_the_line_to_write(self, tmp_path: Path) -> None:
        for download in (False, True):
            with pytest.raises(SourceError) as caught:
                MNIST(tmp_path, download=download)
            assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
            assert "train-images-idx3-ubyte" in str(caught.value)
            assert f"torchvision.datasets.MNIST('{tmp_path}', download=True)" in str(caught.value)
        with pytest.raises(SourceError, match="split='letters', download=True"):
            EMNIST(tmp_path, "letters")


class TestSamples:
    def test_are_tensors_or_torchvisions_images(self, root: Path) -> None:
        theirs = torchvision.datasets.MNIST(root)
        image, target = MNIST(root)[7]
        assert image.shape == (1, 28, 28)
        assert image.dtype == torch.uint8
        assert np.array_equal(image[0].numpy(), np.asarray(theirs[7][0]))
        assert type(target) is int
        assert target == theirs[7][1]
        image, target = MNIST(root, decode="pil")[7]
        assert image.mode == theirs[7][0].mode == "L"
        assert image.tobytes() == theirs[7][0].tobytes()

    @pytest.mark.parametrize(
        "transform",
        [
            pytest.param(transforms.ToTensor(), id="ToTensor"),
            pytest.param(
                transforms.Compose(
                    [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
                ),
                id="the tutorial's",
            ),
            pytest.param(
                transforms.Compose([transforms.RandomRotation(10), transforms.PILToTensor()]),
                id="random",
            ),
        ],
    )
    def test_are_torchvisions_after_any_transform(self, root: Path, transform: Any) -> None:
        for index in range(5):
            torch.manual_seed(index)
            image, target = MNIST(root, transform=transform)[index]
            torch.manual_seed(index)
            expected, expected_target = torchvision.datasets.MNIST(root, transform=transform)[index]
            assert torch.equal(image, expected)
            assert target == expected_target

    def test_that_a_transform_changes_stay_as_they_were(self, root: Path) -> None:
        dataset = MNIST(root, transform=lambda image: image.fill_(0), decode="tensor")
        before = dataset.data.clone()
        assert dataset[0][0].sum() == 0
        assert torch.equal(dataset.data, before)


class TestBatches:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_are_gathered_and_are_the_samples_stacked(self, root: Path, workers: int) -> None:
        dataset = MNIST(root)
        assert find_gatherer(dataset) is not None
        part = Subset(dataset, list(range(99, -1, -1)))
        images, targets = next(iter(DataLoader(part, 64, num_workers=workers)))
        assert torch.equal(images, torch.stack([part[i][0] for i in range(64)]))
        assert targets.tolist() == [part[i][1] for i in range(64)]
        assert targets.dtype == torch.int64

    def test_are_not_gathered_where_a_function_wants_each_sample(self, root: Path) -> None:
        assert find_gatherer(MNIST(root, transform=transforms.ToTensor())) is None
        assert find_gatherer(MNIST(root, transform=lambda i: i, decode="tensor")) is None
        assert find_gatherer(MNIST(root, target_transform=lambda t: t)) is None
        assert find_gatherer(MNIST(root, decode="pil")) is None
        dataset = MNIST(root, target_transform=lambda target: -target)
        _, targets = next(iter(DataLoader(dataset, 10)))
        assert targets.tolist() == [-t for t in dataset.targets[:10]]

    def test_follow_what_the_user_has_replaced(self, root: Path) -> None:
        dataset = MNIST(root)
        chosen = dataset.targets < 5
        dataset.data, dataset.targets = dataset.data[chosen], dataset.targets[chosen]
        images, targets = next(iter(DataLoader(dataset, 10)))
        assert len(dataset) == chosen.sum()
        assert torch.equal(images[:, 0], dataset.data[:10])
        assert int(targets.max()) < 5


class TestPickles:
    def test_have_no_pixels_in_them(self, root: Path) -> None:
        dataset = MNIST(root, transform=transforms.ToTensor())
        text = pickle.dumps(dataset)
        assert len(text) < 1_000
        assert torch.equal(pickle.loads(text)[3][0], dataset[3][0])

    def test_carry_what_may_have_been_changed(self, root: Path) -> None:
        dataset = MNIST(root)
        dataset.data[3] = 7
        again = pickle.loads(pickle.dumps(dataset))
        assert int(again[3][0].min()) == 7
        replaced = MNIST(root)
        replaced.targets = replaced.targets + 1
        assert torch.equal(pickle.loads(pickle.dumps(replaced)).targets, replaced.targets)


class TestFiles:
    @pytest.mark.parametrize("kind", CODES)
    @pytest.mark.parametrize("zipped", [False, True])
    def test_hold_any_type(self, tmp_path: Path, kind: str, zipped: bool) -> None:
        array = np.arange(24).reshape(2, 3, 4).astype(kind)
        data = idx_bytes(array)
        (tmp_path / "x").write_bytes(gzip.compress(data) if zipped else data)
        read = read_idx(str(tmp_path / "x"))
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)
        assert read.flags.writeable

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda data: data[:-1], "holds 23"),
            (lambda data: data + b"\0", "holds more"),
            (lambda data: data[:4] + b"\xff" * 4 + data[8:], "holds no more than "),
            (lambda data: data[:9], "ends within its head"),
            (lambda data: b"", "is no IDX file"),
            (lambda data: b"\0\0\x07" + data[3:], "is no IDX file"),
            (lambda data: b"\0\0\x08\0", "is no IDX file"),
            (lambda data: b"<html>" + data, "is no IDX file"),
            (lambda data: data[:4] + b"\xff" * 12 + data[16:], "is 79,228,"),
        ],
    )
    @pytest.mark.parametrize("zipped", [False, True])
    def test_that_are_damaged_are_errors(
        self, tmp_path: Path, change: Any, text: str, zipped: bool
    ) -> None:
        data = change(idx_bytes(np.zeros((2, 3, 4), np.uint8)))
        (tmp_path / "x").write_bytes(gzip.compress(data) if zipped else data)
        with pytest.raises(SourceError, match=text) as caught:
            read_idx(str(tmp_path / "x"))
        assert str(tmp_path / "x") in str(caught.value)

    def test_whose_head_lies_take_no_memory(self, tmp_path: Path) -> None:
        data = struct.pack(">BBBBIII", 0, 0, 8, 3, 60_000, 28, 2_800) + b"\0" * 1000
        for number, content in enumerate((data, gzip.compress(data))):
            path = tmp_path / str(number)
            path.write_bytes(content)
            tracemalloc.start()
            with pytest.raises(SourceError):
                read_idx(str(path))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 10 << 20

    def test_cut_off_while_zipped_are_errors(self, tmp_path: Path) -> None:
        data = gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)))
        for end in (5, 15, len(data) - 4):
            (tmp_path / "x.gz").write_bytes(data[:end])
            with pytest.raises(SourceError):
                read_idx(str(tmp_path / "x.gz"))

    def test_of_another_shape_or_length_are_errors(self, root: Path) -> None:
        raw = root / "MNIST" / "raw"
        labels = raw / "train-labels-idx1-ubyte"
        labels.write_bytes(idx_bytes(np.zeros(99, np.uint8)))
        with pytest.raises(SourceError, match=r"100 images and .* 99 labels"):
            MNIST(root)
        labels.write_bytes(idx_bytes(np.zeros(100, np.int32)))
        with pytest.raises(SourceError, match="1 dimensions of int32"):
            MNIST(root)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), zipped=st.booleans())
    def test_of_any_bytes_are_an_error_or_an_array(
        self, data: st.DataObject, zipped: bool, tmp_path: Path
    ) -> None:
        broken = bytearray(idx_bytes(np.arange(24, dtype=np.int16).reshape(2, 3, 4)))
        broken = bytearray(gzip.compress(broken)) if zipped else broken
        for _ in range(data.draw(st.integers(0, 4))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "x").write_bytes(broken[: data.draw(st.integers(0, len(broken)))])
        try:
            array = read_idx(str(tmp_path / "x"))
        except SourceError:
            return
        assert array.size <= 48


class TestWhatItWasNotMadeFor:
    def test_is_refused_with_the_line(self, root: Path) -> None:
        with pytest.raises(OptionError, match=r"train='test' is no truth value. Write train=True"):
            MNIST(root, train="test")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"transform='x' cannot be called"):
            MNIST(root, transform="x")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="target_transform=3 cannot be called"):
            MNIST(root, target_transform=3)  # type: ignore[arg-type]

    def test_labels_beyond_the_classes_are_named(self, root: Path) -> None:
        path = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
        path.write_bytes(idx_bytes(np.full(100, 10, np.uint8)))
        with pytest.raises(SourceError, match=r"train-labels.*: label 10 is none of the 10"):
            MNIST(root)
