"""ImageFolder: torchvision's layout and attributes, tensors without a copy, batches in place."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from data.images.conftest import Crop, write_folder
from headrace import DataLoader
from headrace.data import ConcatDataset, ImageFolder, Subset
from headrace.errors import OptionError, SampleIndexError, ShapeMismatchError, SourceError

Torchvisions = torchvision.datasets.ImageFolder


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def stacked(dataset: Any, indices: Any) -> torch.Tensor:
    return torch.stack([dataset[i][0] for i in indices])


class TestLayout:
    ATTRIBUTES = (
        *("classes", "class_to_idx", "samples", "imgs", "targets", "root", "extensions"),
        *("transform", "target_transform"),
    )

    @pytest.mark.parametrize("as_path", [str, Path])
    def test_and_attributes_are_those_of_torchvision(self, folder: Path, as_path: Any) -> None:
        ours, theirs = ImageFolder(as_path(folder)), Torchvisions(as_path(folder))
        for name in self.ATTRIBUTES:
            assert getattr(ours, name) == getattr(theirs, name), name
        assert len(ours) == len(theirs) == 12
        assert ours.find_classes(folder) == theirs.find_classes(str(folder))
        assert ours.imgs is ours.samples
        assert repr(ours) == repr(theirs)

    def test_is_described_with_its_transforms_as_by_torchvision(self, folder: Path) -> None:
        options: Any = {
            "transform": transforms.Compose([transforms.ToTensor()]),
            "target_transform": transforms.Lambda(lambda target: target),
        }
        ours, theirs = (kind(folder, **options) for kind in (ImageFolder, Torchvisions))
        assert repr(ours) == repr(theirs)

    def test_follows_links_and_takes_any_ending_that_torchvision_takes(
        self, tmp_path: Path, crop: Crop
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "root" / "a").mkdir(parents=True)
        for name in ("x.JPG", "y.png", "z.webp", "t.TIFF", "b.bmp", "p.ppm", "notes.txt", "jpg"):
            kind = {"notes.txt": "png", "jpg": "jpeg"}.get(name)
            crop().save(tmp_path / "elsewhere" / name, kind)
        (tmp_path / "root" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root" / "a" / "odd \udcff name.png").write_bytes(b"")
        ours, theirs = (kind(tmp_path / "root") for kind in (ImageFolder, Torchvisions))
        assert ours.samples == theirs.samples
        assert len(ours) == 7

    def test_that_a_function_or_a_subclass_decides_is_that_of_torchvision(
        self, folder: Path
    ) -> None:
        def is_valid(path: str) -> bool:
            return path.endswith("1.jpg")

        def pick(self: Any, directory: Any) -> Any:
            return ["dog"], {"dog": 7}

        for options in ({"is_valid_file": is_valid, "allow_empty": True}, {}):
            both: list[Any] = []
            for kind in (ImageFolder, Torchvisions):
                overridden = {} if options else {"find_classes": pick}
                both.append(type("Picked", (kind,), overridden)(folder, **options))
            assert both[0].samples == both[1].samples
            assert both[0].targets == both[1].targets
            assert both[0].extensions == both[1].extensions

    def test_may_be_changed_through_samples(self, folder: Path) -> None:
        dataset = ImageFolder(folder)
        targets = dataset.targets
        dataset.samples = dataset.samples[:5]
        assert len(dataset) == 5
        dataset.samples[0] = (dataset.samples[4][0], 9)
        assert dataset[0][1] == 9
        assert dataset.targets is targets
        assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples

    def test_without_classes_or_images_is_an_error_that_names_the_place(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(SourceError, match=f"{tmp_path} has no directories"):
            ImageFolder(tmp_path)
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "readme.txt").write_text("")
        with pytest.raises(SourceError, match=r"no image whose name ends in .* in cat"):
            ImageFolder(tmp_path)
        assert len(ImageFolder(tmp_path, allow_empty=True)) == 0
        with pytest.raises(FileNotFoundError):
            ImageFolder(tmp_path / "nowhere")

    def test_index_out_of_range_is_an_index_error(self, folder: Path) -> None:
        dataset = ImageFolder(folder)
        assert dataset[-1][1] == dataset.targets[-1]
        for index in (12, -13):
            with pytest.raises(SampleIndexError, match="out of range for 12 images"):
                dataset[index]

    def test_travels_as_few_bytes(self, folder: Path) -> None:
        dataset = ImageFolder(folder)
        assert next(iter(DataLoader(dataset, 4)))[0].shape == (4, 3, 48, 64)
        text = pickle.dumps(dataset)
        assert len(text) < 2_500
        again = pickle.loads(text)
        assert again.samples == dataset.samples
        assert torch.equal(again[3][0], dataset[3][0])


class TestSamples:
    def test_are_views_of_rows_of_pixels(self, folder: Path) -> None:
        ours, theirs = ImageFolder(folder), Torchvisions(folder)
        for index in range(len(ours)):
            image, target = ours[index]
            assert image.dtype == torch.uint8
            assert image.shape == (3, 48, 64)
            assert image.stride() == (1, 3 * 64, 3)
            assert target == theirs[index][1]
            assert torch.equal(image, as_tensor(theirs[index][0]))

    def test_are_pillow_images_when_asked_for(self, folder: Path) -> None:
        ours, theirs = ImageFolder(folder, decode="pil"), Torchvisions(folder)
        for index in range(len(ours)):
            image, target = ours[index]
            assert isinstance(image, Image.Image)
            assert image.mode == "RGB"
            assert image.tobytes() == theirs[index][0].tobytes()
            assert target == theirs[index][1]

    @pytest.mark.parametrize(
        "transform",
        [
            pytest.param(transforms.ToTensor(), id="ToTensor"),
            pytest.param(
                transforms.Compose(
                    [
                        transforms.Resize(40),
                        transforms.CenterCrop(32),
                        transforms.ToTensor(),
                        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                    ]
                ),
                id="the tutorial's",
            ),
            pytest.param(
                transforms.Compose(
                    [
                        transforms.RandomResizedCrop(24),
                        transforms.RandomHorizontalFlip(),
                        transforms.ToTensor(),
                    ]
                ),
                id="random",
            ),
            pytest.param(
                v2.Compose(
                    [
                        v2.ToImage(),
                        v2.Resize((20, 30), antialias=True),
                        v2.ToDtype(torch.float32, scale=True),
                    ]
                ),
                id="v2",
            ),
        ],
    )
    def test_are_torchvisions_after_any_transform(self, folder: Path, transform: Any) -> None:
        ours, theirs = (kind(folder, transform=transform) for kind in (ImageFolder, Torchvisions))
        for index in range(len(ours)):
            torch.manual_seed(index)
            image, target = ours[index]
            torch.manual_seed(index)
            expected, expected_target = theirs[index]
            assert type(image) is type(expected)
            assert torch.equal(image, expected)
            assert target == expected_target

    def test_are_handed_to_the_transform_as_decode_says(self, folder: Path) -> None:
        flip = v2.RandomHorizontalFlip(1.0)
        ours = ImageFolder(folder, flip, lambda target: target + 10, decode="tensor")
        image, target = ours[5]
        assert torch.equal(image, ImageFolder(folder)[5][0].flip(-1))
        assert target == ours.targets[5] + 10
        ours.transform = None
        assert torch.equal(ours[5][0], ImageFolder(folder)[5][0])

    def test_come_from_a_loader_of_ones_own(self, folder: Path) -> None:
        ours = ImageFolder(folder, loader=os.path.basename, transform=str.upper)
        theirs = Torchvisions(folder, loader=os.path.basename, transform=str.upper)
        assert [ours[i] for i in range(12)] == [theirs[i] for i in range(12)]
        assert ours.loader is os.path.basename
        assert torch.equal(
            ImageFolder(folder).loader(ours.samples[2][0]), ImageFolder(folder)[2][0]
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 0},
            {"size": (1, 2, 3)},
            {"size": 1.5},
            {"decode": "numpy"},
            {"on_error": "ignore"},
            {"loader": str, "size": 3},
            {"loader": str, "decode": "pil"},
        ],
    )
    def test_are_refused_with_options_that_cannot_be(self, folder: Path, options: Any) -> None:
        with pytest.raises(OptionError):
            ImageFolder(folder, **options)


class TestBatches:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_the_samples_stacked_channels_last(self, folder: Path, workers: int) -> None:
        dataset = ImageFolder(folder)
        loader = DataLoader(dataset, 5, num_workers=workers)
        for number, (images, targets) in enumerate(loader):
            indices = range(12)[5 * number : 5 * number + 5]
            assert torch.equal(images, stacked(dataset, indices))
            assert targets.tolist() == [dataset.targets[i] for i in indices]
            assert targets.dtype == torch.int64
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert images.untyped_storage().nbytes() == images.nbytes

    def test_are_not_copied_on_their_way(self, folder: Path) -> None:
        samples = ImageFolder(folder).__getitems__([3, 1, 2])
        addresses = [sample[0].data_ptr() for sample in samples]
        kept: list[Any] = []

        def collate(batch: Any) -> Any:
            from headrace import default_collate

            kept.extend(batch)
            return default_collate(batch)

        assert addresses[1] - addresses[0] == addresses[2] - addresses[1] == 48 * 64 * 3
        images, _ = next(iter(DataLoader(ImageFolder(folder), 3, collate_fn=collate)))
        assert images.data_ptr() == kept[0][0].data_ptr()

    def test_that_are_kept_are_not_written_again(self, folder: Path, tmp_path: Path) -> None:
        big = write_folder(tmp_path / "big", lambda n: Image.new("RGB", (256, 256), (n, n, n)))
        for workers in (0, 1):
            loader = DataLoader(ImageFolder(big), 4, num_workers=workers)
            kept = [images for _ in range(3) for images, _ in loader]
            expected = [stacked(ImageFolder(big), range(12)[i : i + 4]) for i in (0, 4, 8)]
            for number, images in enumerate(kept):
                assert torch.equal(images, expected[number % 3])

    def test_of_subsets_and_concatenations_are_the_same_samples(self, folder: Path) -> None:
        dataset = ImageFolder(folder)
        part = Subset(dataset, [7, 0, 3])
        both = ConcatDataset([part, dataset])
        for composed, indices in ((part, [7, 0, 3]), (both, [7, 0, 3, *range(12)])):
            images, _ = next(iter(DataLoader(composed, 15)))
            assert torch.equal(images, stacked(dataset, indices))
        mapped = dataset.map(lambda sample: sample[0].float())
        assert torch.equal(next(iter(DataLoader(mapped, 4))), stacked(dataset, range(4)).float())

    def test_of_a_subclass_that_adds_to_a_sample_have_what_it_adds(self, folder: Path) -> None:
        class WithPaths(ImageFolder):
            def __getitem__(self, index: int) -> Any:
                return (*super().__getitem__(index), self.imgs[index][0])

        dataset = WithPaths(folder)
        images, _, paths = next(iter(DataLoader(dataset, 4)))
        assert paths == tuple(path for path, _ in dataset.imgs[:4])
        assert torch.equal(images, stacked(dataset, range(4)))

    def test_have_transformed_targets(self, folder: Path) -> None:
        dataset = ImageFolder(folder, target_transform=lambda target: {"class": float(target)})
        images, targets = next(iter(DataLoader(dataset, 12)))
        assert targets["class"].tolist() == dataset.targets
        assert torch.equal(images, stacked(dataset, range(12)))

    def test_of_images_of_several_sizes_are_an_error_or_the_users_own(
        self, tmp_path: Path, crop: Crop
    ) -> None:
        root = write_folder(tmp_path, lambda n: crop(n, 30 + n, 40))
        dataset = ImageFolder(root)
        with pytest.raises(ShapeMismatchError, match=r"Bring images to one size: ImageFolder\("):
            next(iter(DataLoader(dataset, 4)))
        images = next(iter(DataLoader(dataset, 4, collate_fn=lambda b: [image for image, _ in b])))
        assert all(torch.equal(image, dataset[i][0]) for i, image in enumerate(images))
        images, _ = next(iter(DataLoader(ImageFolder(root, size=(20, 30)), 12)))
        assert images.shape == (12, 3, 20, 30)


class TestFaults:
    @staticmethod
    def damage(folder: Path) -> dict[str, str]:
        """Damage files in several ways; return what is said of each."""
        paths = [path for path, _ in Torchvisions(folder).samples]
        whole = Path(paths[0]).read_bytes()
        Path(paths[0]).write_bytes(whole[: len(whole) // 2])
        Path(paths[2]).write_bytes(b"")
        Path(paths[4]).write_text("no image at all")
        os.unlink(paths[6])
        os.mkdir(paths[6])
        return {
            paths[0]: "cannot be decoded",
            paths[2]: "is empty",
            paths[4]: "of no format that Pillow knows",
        }

    def test_are_errors_that_name_the_file(self, folder: Path) -> None:
        faults = self.damage(folder)
        dataset = ImageFolder(folder)
        indices = {path: number for number, (path, _) in enumerate(dataset.samples)}
        for path, text in faults.items():
            with pytest.raises(SourceError, match=text) as caught:
                dataset[indices[path]]
            assert path in str(caught.value)
        with pytest.raises(SourceError) as caught:
            list(DataLoader(dataset, 4, num_workers=1))
        assert next(iter(faults)) in str(caught.value)

    def test_may_be_left_out_and_listed(self, folder: Path) -> None:
        faults = self.damage(folder)
        with pytest.warns(UserWarning, match=r"3 of 11 images .* are left out"):
            dataset = ImageFolder(folder, on_error="skip")
        assert [path for path, _ in dataset.skipped] == list(faults)
        for path, reason in dataset.skipped:
            assert path in reason
            assert faults[path] in reason
        assert len(dataset) == 8
        assert not {path for path, _ in dataset.samples} & set(faults)
        assert sum(len(targets) for _, targets in DataLoader(dataset, 3)) == 8

    def test_are_not_found_where_there_are_none(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = ImageFolder(folder, on_error="skip")
        assert dataset.skipped == []
        assert dataset.samples == Torchvisions(folder).samples

    def test_in_every_file_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_text("nothing")
        with pytest.raises(SourceError, match="none of the 1 images"):
            ImageFolder(tmp_path, on_error="skip")

    def test_of_a_file_that_may_not_be_read_are_its(self, folder: Path) -> None:
        dataset = ImageFolder(folder)
        path = dataset.samples[0][0]
        os.unlink(path)
        with pytest.raises(SourceError, match="cannot be read: No such file") as caught:
            dataset[0]
        assert path in str(caught.value)
