"""CIFAR: torchvision reads the same files; both versions; what is wrong with files."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torchvision import transforms

from headrace import DataLoader
from headrace.data import CIFAR10, CIFAR100
from headrace.data.gather import find_gatherer
from headrace.errors import SourceError

PARTS = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
EACH = 20


def batch(number: int, classes: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    return {
        "data": random.integers(0, 256, (EACH, 3072)).astype(np.uint8),
        "labels": random.integers(0, classes, EACH).tolist(),
        "coarse": random.integers(0, 20, EACH).tolist(),
    }


def write_cifar10(root: Path, protocol: int = 2) -> Path:
    """Write CIFAR-10's seven pickles in their real layout, of 20 images each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(PARTS):
        made = batch(number, 10)
        content = {
            "batch_label": f"training batch {number + 1} of 5",
            "labels": made["labels"],
            "data": made["data"],
            "filenames": [f"picture_{n:06}.png" for n in range(EACH)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    names = {"num_cases_per_batch": EACH, "label_names": list("abcdefghij"), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))
    return root


def write_cifar100(root: Path, protocol: int = 2) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, name in enumerate(("train", "test")):
        made = batch(number, 100)
        content = {
            "filenames": ["x.png"] * EACH,
            "batch_label": "training batch 1 of 1",
            "fine_labels": made["labels"],
            "coarse_labels": made["coarse"],
            "data": made["data"],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    names = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": ["x"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol))
    return root


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read files whose checksums are not those of the real ones."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)


def assert_alike(ours: Any, theirs: Any) -> None:
    assert ours.data.shape == theirs.data.shape
    assert ours.data.dtype == theirs.data.dtype
    assert np.array_equal(ours.data, theirs.data)
    for attribute in ("targets", "classes", "class_to_idx", "train", "root", "base_folder"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
        assert type(getattr(ours, attribute)) is type(getattr(theirs, attribute))
    assert repr(ours) == repr(theirs)


@pytest.mark.usefixtures("unchecked")
class TestSets:
    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_are_those_of_torchvision(self, tmp_path: Path, protocol: int, train: bool) -> None:
        root = str(write_cifar10(write_cifar100(tmp_path, protocol), protocol))
        assert_alike(CIFAR10(root, train), torchvision.datasets.CIFAR10(root, train))
        assert_alike(CIFAR100(root, train), torchvision.datasets.CIFAR100(root, train))

    def test_are_read_as_python_2_wrote_them(self, tmp_path: Path) -> None:
        """The real files: Python 2's strings, of text and of the pixels alike."""
        root = write_cifar10(tmp_path)
        made = batch(0, 10)
        path = root / "cifar-10-batches-py" / "data_batch_1"
        path.write_bytes(as_python_2(made["data"], made["labels"]))
        assert_alike(CIFAR10(root), torchvision.datasets.CIFAR10(root))
        assert np.array_equal(
            CIFAR10(root).data[:EACH].transpose(0, 3, 1, 2).ravel(), made["data"].ravel()
        )

    def test_after_a_transform_are_torchvisions(self, tmp_path: Path) -> None:
        root = write_cifar10(tmp_path)
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )
        ours = CIFAR10(root, True, transform, lambda target: target + 1)
        theirs = torchvision.datasets.CIFAR10(root, True, transform, lambda target: target + 1)
        for index in range(5):
            torch.manual_seed(index)
            image, target = ours[index]
            torch.manual_seed(index)
            assert torch.equal(image, theirs[index][0])
            assert target == theirs[index][1]


def as_python_2(pixels: Any, labels: list[int]) -> bytes:
    """A batch as cPickle of Python 2 writes it: protocol 2, BINSTRING where there is text."""

    def text(data: bytes) -> bytes:
        if len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"T" + len(data).to_bytes(4, "little") + data

    shape = b"".join(b"M" + n.to_bytes(2, "little") for n in pixels.shape)
    dtype = b"cnumpy\ndtype\nq\x01(" + text(b"u1") + b"K\x00K\x01tRq\x02(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    array += b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


class TestBinaryVersions:
    def test_are_the_same_images(self, tmp_path: Path) -> None:
        write_cifar10(write_cifar100(tmp_path / "python"))
        ten = tmp_path / "binary" / "cifar-10-batches-bin"
        hundred = tmp_path / "binary" / "cifar-100-binary"
        ten.mkdir(parents=True)
        hundred.mkdir()
        for number, name in enumerate(PARTS):
            made = batch(number, 10)
            records = np.column_stack([made["labels"], made["data"]]).astype(np.uint8)
            records.tofile(ten / f"{name}.bin")
        (ten / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
        for number, name in enumerate(("train", "test")):
            made = batch(number, 100)
            columns = [made["coarse"], made["labels"], made["data"]]
            np.column_stack(columns).astype(np.uint8).tofile(hundred / f"{name}.bin")
        names = "\n".join(f"fine {n}" for n in range(100))
        (hundred / "fine_label_names.txt").write_text(names)
        for kind in (CIFAR10, CIFAR100):
            for train in (True, False):
                python = kind(tmp_path / "python", train)
                binary = kind(tmp_path / "binary", train)
                assert np.array_equal(binary.data, python.data)
                assert binary.targets == python.targets
                assert binary.classes == python.classes

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", "has 0 bytes"),
            (b"\0" * 3074, "not whole records of 3073"),
            (b"\x0a" + b"\0" * 3072, "label 10 is none of the 10 classes"),
        ],
    )
    def test_that_are_damaged_are_errors(self, tmp_path: Path, content: bytes, text: str) -> None:
        folder = tmp_path / "cifar-10-batches-bin"
        folder.mkdir()
        (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
        (folder / "test_batch.bin").write_bytes(content)
        with pytest.raises(SourceError, match=text):
            CIFAR10(tmp_path, train=False)
        (folder / "batches.meta.txt").write_text("\n")
        with pytest.raises(SourceError, match="no names of classes"):
            CIFAR10(tmp_path, train=False)


class TestSamples:
    def test_are_gathered_into_the_batches_that_they_make(self, tmp_path: Path) -> None:
        dataset = CIFAR10(write_cifar10(tmp_path))
        assert find_gatherer(dataset) is not None
        image, target = dataset[5]
        assert image.shape == (3, 32, 32)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), dataset.data[5])
        assert target == dataset.targets[5]
        images, targets = next(iter(DataLoader(dataset, 32)))
        assert torch.equal(images, torch.stack([dataset[i][0] for i in range(32)]))
        assert targets.tolist() == dataset.targets[:32]
        dataset.targets[1] = 9
        assert next(iter(DataLoader(dataset, 32)))[1][1] == 9

    def test_travel_only_where_they_may_have_been_changed(self, tmp_path: Path) -> None:
        dataset = CIFAR10(write_cifar10(tmp_path))
        text = pickle.dumps(dataset)
        assert len(text) < 1_000
        assert torch.equal(pickle.loads(text)[3][0], dataset[3][0])
        dataset.data[3] = 7
        assert int(pickle.loads(pickle.dumps(dataset))[3][0].min()) == 7


class TestFaults:
    def test_of_place_say_what_to_write(self, tmp_path: Path) -> None:
        for kind in (CIFAR10, CIFAR100):
            with pytest.raises(SourceError) as caught:
                kind(tmp_path, download=True)
            line = f"torchvision.datasets.{kind.__name__}('{tmp_path}', download=True)"
            assert line in str(caught.value)
        write_cifar10(tmp_path)
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
        with pytest.raises(SourceError, match="there is no data_batch_3"):
            CIFAR10(tmp_path)
        assert len(CIFAR10(tmp_path, train=False)) == EACH

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"data": None}, "'data' is no array"),
            ({"data": np.zeros((EACH, 10), np.uint8)}, "'data' is no array"),
            ({"data": np.zeros((EACH, 3072), np.int16)}, "the instruction|other than|something"),
            ({"labels": None}, "'labels' is no list of 20 numbers"),
            ({"labels": [0] * 19}, "'labels' is no list of 20 numbers"),
            ({"labels": [True] * 20}, "'labels' is no list of 20 numbers"),
            ({"labels": [0.5] * 20}, "'labels' is no list of 20 numbers"),
            ({"labels": [10] * 20}, "label 10 is none of the 10 classes"),
            ({"labels": [-1] * 20}, "label -1 is none"),
        ],
    )
    def test_of_content_name_the_file(
        self, tmp_path: Path, change: dict[str, Any], text: str
    ) -> None:
        root = write_cifar10(tmp_path)
        path = root / "cifar-10-batches-py" / "test_batch"
        content = {"labels": [0] * EACH, "data": np.zeros((EACH, 3072), np.uint8), **change}
        path.write_bytes(pickle.dumps(content, 4))
        with pytest.raises(SourceError, match=text) as caught:
            CIFAR10(root, train=False)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("names", [None, [], [1, 2], "abc"])
    def test_of_the_names_of_classes_name_the_file(self, tmp_path: Path, names: Any) -> None:
        root = write_cifar10(tmp_path)
        path = root / "cifar-10-batches-py" / "batches.meta"
        path.write_bytes(pickle.dumps({"label_names": names}, 2))
        with pytest.raises(SourceError, match="'label_names' is no list of names") as caught:
            CIFAR10(root)
        assert str(path) in str(caught.value)
