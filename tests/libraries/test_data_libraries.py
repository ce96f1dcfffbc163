"""Libraries that bring datasets, transforms and stores: what they iterate over is the same."""

import pytest
import torch
from torch.utils.data import Dataset

import headrace

from .conftest import assert_same, plain

pytestmark = [pytest.mark.timeout(200)]


def batches(dataset, size=4, **options):
    return list(torch.utils.data.DataLoader(dataset, size, **options))


@pytest.mark.library("datasets", "map-style, with_format('torch')")
@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_map_style(workers):
    datasets = pytest.importorskip("datasets")
    rows = {"x": [[float(i), i + 1.0] for i in range(11)], "y": list(range(11))}
    data = datasets.Dataset.from_dict(rows)
    formatted = data.with_format("torch")
    assert_same(lambda: plain(batches(formatted, shuffle=True, num_workers=workers)))
    mapped = formatted.map(lambda row: {"z": row["y"] * 2}, load_from_cache_file=False)
    assert_same(lambda: plain(batches(mapped, num_workers=workers)))


@pytest.mark.library("datasets", "iterable, its shards over workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_iterable(workers):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"y": list(range(12))})

    def program():
        stream = rows.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=4)
        return plain(batches(stream.with_format("torch"), num_workers=workers))

    assert_same(program)


@pytest.mark.library("datasets", "iterable: resume in mid-epoch")
@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_iterable_resumes(workers):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"y": list(range(12))})

    def make():
        stream = rows.to_iterable_dataset(num_shards=2).with_format("torch")
        return headrace.DataLoader(stream, 2, num_workers=workers)

    loader = make()
    seen, state = [], None
    for number, batch in enumerate(loader):
        seen.append(batch["y"].tolist())
        if number == 2:
            state = loader.state_dict()
    again = make()
    again.load_state_dict(state)
    assert [batch["y"].tolist() for batch in again] == seen[3:]


@pytest.mark.library("torchvision", "v2 transforms, CutMix in the collate function")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchvision_cutmix_in_collate(workers):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    mix = v2.CutMix(num_classes=3)
    # Drawn with torch's generators, which headrace seeds for each batch: its own numbers, so that
    # here it is the number of workers that must not matter.
    headrace.install(quiet=True)

    def run(workers):
        torch.manual_seed(2)
        loader = torch.utils.data.DataLoader(
            _Images(v2), 4, shuffle=True, collate_fn=_Mixed(mix), num_workers=workers
        )
        return plain([*loader, *loader])

    assert run(workers) == run(0)


class _Images(Dataset):
    def __init__(self, v2):
        self.change = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4) + index
        return self.change(image), index % 3


class _Mixed:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(*torch.utils.data.default_collate(samples))


@pytest.mark.library("timm", "create_loader over a JPEG folder")
# Its worker_init_fn seeds NumPy, which headrace says once.
@pytest.mark.filterwarnings("ignore:worker_init_fn seeded NumPy:UserWarning")
@pytest.mark.parametrize("training", [False, True])
def test_timm(tmp_path, training):
    timm_data = pytest.importorskip("timm.data")
    from PIL import Image

    for number in range(9):
        folder = tmp_path / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (number * 20, 90, 10)).save(folder / f"{number}.jpg")

    def program():
        dataset = timm_data.create_dataset("", str(tmp_path))
        loader = timm_data.create_loader(
            dataset,
            input_size=(3, 16, 16),
            batch_size=4,
            is_training=training,
            no_aug=True,
            use_prefetcher=False,
            num_workers=1,
            device=torch.device("cpu"),
            persistent_workers=False,
        )
        return plain(list(loader))

    assert_same(program)


@pytest.mark.library("torch-geometric", "its loaders, derived from torch's")
@pytest.mark.parametrize("workers", [0, 2])
def test_pytorch_geometric(workers):
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader
    from torch_geometric.loader import NeighborLoader

    graphs = [
        Data(
            x=torch.arange(float(2 + n))[:, None],
            edge_index=torch.tensor([[0, 1], [1, 0]]),
            y=torch.tensor([n]),
        )
        for n in range(9)
    ]

    def program():
        loader = GraphLoader(graphs, 4, shuffle=True, num_workers=workers)
        return [(plain(b.x), plain(b.edge_index), plain(b.batch), plain(b.y)) for b in loader]

    assert_same(program)
    with headrace.installed():
        assert issubclass(GraphLoader, headrace.DataLoader)
        assert issubclass(NeighborLoader, headrace.DataLoader)
        assert GraphLoader(graphs, 4).statistics().batches == 0
    assert not issubclass(GraphLoader, headrace.DataLoader)


@pytest.mark.library("monai", "its DataLoader and CacheDataset")
@pytest.mark.parametrize("workers", [0, 2])
def test_monai(workers):
    monai_data = pytest.importorskip("monai.data")
    from monai.transforms import Compose, Lambdad

    rows = [{"image": torch.full((1, 4, 4), float(n)), "label": n} for n in range(7)]

    def program():
        data = monai_data.CacheDataset(
            rows, Compose([Lambdad("image", _twice)]), progress=False, num_workers=None
        )
        loader = monai_data.DataLoader(data, batch_size=3, num_workers=workers)
        return [(plain(torch.as_tensor(b["image"])), plain(b["label"])) for b in loader]

    assert_same(program)


def _twice(image):
    return image * 2


class _Opened(Dataset):
    """A file that is opened in the process that reads it, as these libraries ask for."""

    def __init__(self, path, length):
        self.path, self.length, self.file = str(path), length, None

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.file is None:
            self.file = self.open()
        return self.read(index)


class _H5(_Opened):
    def open(self):
        import h5py

        return h5py.File(self.path, "r")["x"]

    def read(self, index):
        return self.file[index]


class _Zarr(_Opened):
    def open(self):
        import zarr

        return zarr.open(self.path, mode="r")

    def read(self, index):
        return self.file[index]


class _Lmdb(_Opened):
    def open(self):
        import lmdb

        return lmdb.open(self.path, readonly=True, lock=False).begin()

    def read(self, index):
        import numpy as np

        return np.frombuffer(self.file.get(str(index).encode()), np.float32).copy()


@pytest.mark.library("h5py", "a file opened in each worker")
@pytest.mark.parametrize("workers", [0, 2])
def test_h5py(tmp_path, workers):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = torch.arange(40.0).reshape(10, 4).numpy()
    assert_same(lambda: plain(batches(_H5(tmp_path / "x.h5", 10), num_workers=workers)))


@pytest.mark.library("zarr", "an array opened in each worker")
@pytest.mark.parametrize("workers", [0, 2])
def test_zarr(tmp_path, workers):
    zarr = pytest.importorskip("zarr")
    array = torch.arange(40.0).reshape(10, 4).numpy()
    zarr.save_array(str(tmp_path / "x.zarr"), array)
    context = {"multiprocessing_context": "spawn"} if workers else {}  # it keeps threads
    data = _Zarr(tmp_path / "x.zarr", 10)
    assert_same(lambda: plain(batches(data, num_workers=workers, **context)))


@pytest.mark.library("lmdb", "an environment opened in each worker")
@pytest.mark.parametrize("workers", [0, 2])
def test_lmdb(tmp_path, workers):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "x")) as environment, environment.begin(write=True) as writing:
        for number in range(10):
            writing.put(str(number).encode(), torch.full((3,), float(number)).numpy().tobytes())
    assert_same(lambda: plain(batches(_Lmdb(tmp_path / "x", 10), num_workers=workers)))


class _Pictures(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        import cv2
        import numpy as np

        return cv2.resize(np.full((20, 20, 3), index * 9, np.uint8), (8, 8))


@pytest.mark.library("opencv-python-headless", "decoding and resizing in workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_opencv(workers):
    pytest.importorskip("cv2")
    assert_same(lambda: plain(batches(_Pictures(), num_workers=workers)))


@pytest.mark.library("webdataset", "a tar pipeline in torch's loader")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset(tmp_path, workers):
    wds = pytest.importorskip("webdataset")
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for number in range(6):
                writer.write({"__key__": f"{shard}{number}", "txt": f"{shard} {number}"})

    def program():
        data = wds.WebDataset(
            [str(tmp_path / f"{shard}.tar") for shard in range(2)],
            shardshuffle=False,
            workersplitter=wds.split_by_worker,
        )
        data = data.decode().to_tuple("__key__", "txt")
        return plain(batches(data, 3, num_workers=workers))

    assert_same(program)
