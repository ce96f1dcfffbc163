"""Trees as people have them: each file once, nothing that no person put there, odd ones named."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from headrace import DataLoader
from headrace.data import ImageFolder
from headrace.data.images.files import IMG_EXTENSIONS
from headrace.errors import OptionError, SourceError

Torchvisions = torchvision.datasets.ImageFolder


def put(root: Path, *names: str) -> Path:
    """Write an image of another grey to each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name, "PNG")
    return root


def named(dataset: Any) -> list[str]:
    return [os.path.relpath(path, dataset.root) for path, _ in dataset.samples]


class TestHiddenAndSystemNames:
    NAMES = (
        *(".ipynb_checkpoints/1.jpg", "__MACOSX/a/1.jpg", "@eaDir/1.jpg", "lost+found/1.jpg"),
        *("$RECYCLE.BIN/1.jpg", "__pycache__/1.png", ".git/x.png", "#recycle/1.png"),
        *("a/._1.jpg", "a/.hidden.png", "a/.thumbs/1.jpg", "a/@eaDir/1.jpg/thumb.jpg"),
    )

    @pytest.mark.parametrize("name", NAMES)
    def test_are_left_out_with_one_notice(self, name: str, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg", "b/1.jpg", name)
        with pytest.warns(UserWarning, match="left out.*like_torchvision=True") as said:
            dataset = ImageFolder(root)
        assert len(said) == 1
        assert said[0].filename == __file__
        assert dataset.classes == ["a", "b"]
        assert named(dataset) == ["a/1.jpg", "b/1.jpg"]

    def test_of_all_kinds_are_one_notice(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match=r"and 9 more") as said:
            ImageFolder(put(tmp_path, "a/1.jpg", *self.NAMES))
        assert len(said) == 1

    def test_that_are_no_images_are_not_spoken_of(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg")
        for name in (".DS_Store", "Thumbs.db", "a/.DS_Store", "a/Thumbs.db", "README.txt"):
            (root / name).write_bytes(b"")
        assert len(ImageFolder(root)) == 1

    def test_alone_are_no_classes(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no directories in it but '\.cache'"):
            ImageFolder(put(tmp_path, ".cache/1.jpg"))

    def test_are_left_out_where_a_function_says_what_is_an_image(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg", "a/._1.jpg")
        with pytest.warns(UserWarning, match="left out"):
            dataset = ImageFolder(root, is_valid_file=lambda path: path.endswith(".jpg"))
        assert named(dataset) == ["a/1.jpg"]

    def test_are_those_of_torchvision_when_asked_for(self, tmp_path: Path) -> None:
        root = put(tmp_path, "1/1.jpg", "10/1.jpg", "2/1.jpg", *self.NAMES)
        ours, theirs = ImageFolder(root, like_torchvision=True), Torchvisions(root)
        assert ours.classes == theirs.classes
        assert ours.samples == theirs.samples


class TestLinks:
    def test_in_a_circle_give_each_image_once(self, tmp_path: Path) -> None:
        root = put(tmp_path / "r", "a/1.jpg", "a/deep/2.jpg", "b/1.jpg")
        (root / "a" / "loop").symlink_to(root)
        (root / "a" / "deep" / "up").symlink_to(root / "a")
        (root / "a" / "self").symlink_to("self")
        (root / "b" / "other").symlink_to(root / "a")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            dataset = ImageFolder(root)
        again, broken = [str(one.message) for one in said]
        assert "each image comes once: 'a/deep/up', 'a/loop', 'b/other'" in again
        assert "lead nowhere are left out: 'a/self'" in broken
        assert named(dataset) == ["a/1.jpg", "a/deep/2.jpg", "b/1.jpg"]

    def test_in_a_circle_are_followed_like_torchvision_when_asked_to(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg")
        (root / "a" / "loop").symlink_to(root)
        theirs = Torchvisions(root)
        assert len(theirs) > 30
        assert ImageFolder(root, like_torchvision=True).samples == theirs.samples

    def test_to_files_and_directories_elsewhere_are_followed_in_order(self, tmp_path: Path) -> None:
        put(tmp_path / "pool", "1.jpg", "2.jpg", "more/3.jpg")
        root = put(tmp_path / "r", "a/2.jpg")
        (root / "a" / "1.jpg").symlink_to(tmp_path / "pool" / "1.jpg")
        (root / "a" / "3.jpg").symlink_to(tmp_path / "pool" / "2.jpg")
        (root / "b").symlink_to(tmp_path / "pool" / "more")
        dataset = ImageFolder(root)
        assert named(dataset) == ["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/3.jpg"]
        assert dataset.samples == Torchvisions(root).samples

    def test_from_the_root_up_are_no_classes(self, tmp_path: Path) -> None:
        root = put(tmp_path / "r", "a/1.jpg")
        (root / "loop").symlink_to(root)
        (root / "up").symlink_to(tmp_path)
        with pytest.warns(UserWarning, match="comes once: 'loop', 'up'"):
            dataset = ImageFolder(root)
        assert (dataset.classes, named(dataset)) == (["a"], ["a/1.jpg"])

    def test_to_directories_in_one_another_give_each_image_once(self, tmp_path: Path) -> None:
        put(tmp_path / "pool", "1.jpg", "deep/2.jpg")
        root = put(tmp_path / "r", "a/0.jpg", "b/0.jpg")
        (root / "a" / "x").symlink_to(tmp_path / "pool" / "deep")
        (root / "b" / "y").symlink_to(tmp_path / "pool")
        with pytest.warns(UserWarning, match=r"comes once: 'b/y/deep'\."):
            dataset = ImageFolder(root)
        assert named(dataset) == ["a/0.jpg", "a/x/2.jpg", "b/0.jpg", "b/y/1.jpg"]

    def test_to_one_file_give_it_once_by_the_path_without_links(self, tmp_path: Path) -> None:
        root = put(tmp_path / "r", "b/1.jpg", "a/0.jpg")
        (root / "a" / "1.jpg").symlink_to(root / "b" / "1.jpg")
        (root / "a" / "2.jpg").symlink_to(root / "b" / "1.jpg")
        with pytest.warns(UserWarning, match="'a/1.jpg', 'a/2.jpg'"):
            dataset = ImageFolder(root)
        assert named(dataset) == ["a/0.jpg", "b/1.jpg"]

    def test_that_are_hard_are_two_files(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg")
        os.link(root / "a" / "1.jpg", root / "a" / "2.jpg")
        assert named(ImageFolder(root)) == ["a/1.jpg", "a/2.jpg"]

    def test_that_lead_nowhere_are_named(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg")
        (root / "a" / "2.jpg").symlink_to(root / "gone.jpg")
        dataset = ImageFolder(root)
        with pytest.raises(SourceError, match=r"2\.jpg cannot be read: No such file"):
            dataset[1]
        (root / "b").symlink_to(root / "gone")
        with pytest.warns(UserWarning, match="lead nowhere are left out: 'b'"):
            assert ImageFolder(root).classes == ["a"]

    def test_to_a_class_by_another_name_are_an_error_that_says_so(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg")
        (root / "b").symlink_to(root / "a")
        with pytest.raises(SourceError, match=r"no image .* in b\. Links to what is there .* 'b'"):
            ImageFolder(root)


class TestOrder:
    def test_of_numbers_is_theirs(self, tmp_path: Path) -> None:
        root = put(tmp_path, *(f"{n}/{n}.jpg" for n in range(12)))
        with pytest.warns(UserWarning, match=r"number 2 is '2', with torchvision '10'"):
            dataset = ImageFolder(root)
        assert dataset.classes == [str(n) for n in range(12)]
        assert dataset.targets == list(range(12))
        for workers in (0, 2):
            batches = DataLoader(dataset, 4, num_workers=workers)
            for images, targets in batches:
                assert torch.equal(images[:, 0, 0, 0].long(), targets)
        assert ImageFolder(root, class_order="number").classes == dataset.classes
        ours, theirs = ImageFolder(root, class_order="text"), Torchvisions(root)
        assert (ours.classes, ours.class_to_idx) == (theirs.classes, theirs.class_to_idx)
        assert ours.samples == theirs.samples

    @pytest.mark.parametrize(
        ("names", "sorted_names"),
        [
            (["-1", "-10", "0"], ["-10", "-1", "0"]),
            (["10", "2.5", "9"], ["2.5", "9", "10"]),
            (["1", "01", "2"], ["01", "1", "2"]),
            (["001", "002", "010"], ["001", "002", "010"]),
            (["10", "2", "x"], ["10", "2", "x"]),
            (["²", "10", "9"], ["10", "9", "²"]),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_of_what_is_a_number(
        self, names: list[str], sorted_names: list[str], tmp_path: Path
    ) -> None:
        assert ImageFolder(put(tmp_path, *(f"{n}/1.jpg" for n in names))).classes == sorted_names

    def test_of_other_names_is_torchvisions(self, tmp_path: Path) -> None:
        root = put(tmp_path, *(f"{n}/1.jpg" for n in ("Zebra", "cat", "class10", "class9")))
        assert ImageFolder(root).samples == Torchvisions(root).samples

    def test_that_is_unknown_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="class_order='name' is unknown"):
            ImageFolder(put(tmp_path, "a/1.jpg"), class_order="name")  # type: ignore[arg-type]


class TestSuspiciousTrees:
    @pytest.mark.parametrize(
        ("names", "text"),
        [
            (["train/cat/1.jpg", "val/cat/1.jpg"], r"splits, write ImageFolder\('.*train'\) and"),
            (["Train/1.jpg", "Test/1.jpg", "x/1.jpg"], "'Test', 'Train' are taken for classes"),
            (["train/cat/1.jpg"], "'train' are taken for classes"),
            (["set/cat/1.jpg", "set/dog/1.jpg"], r"write ImageFolder\('.*set'\)"),
            (["set/cat/1.jpg"], "class 'set' has no images of its own"),
            (["car/1.jpg", "pet/cat/1.jpg", "pet/dog/1.jpg"], "class 'pet' has no images of its"),
            (["a/1.jpg", "1.jpg", "2.PNG"], r"lie in no class are left out: '1.jpg', '2.PNG'"),
            (["Cat/1.jpg", "cat/1.jpg"], "'Cat' and 'cat' are two classes"),
            (["caf\u00e9/1.jpg", "cafe\u0301/1.jpg"], "whose names look the same"),
            (["a/1.jpg", "a/2.gif", "a/3.jfif"], r"2 files ending in .gif, .jfif.*is_valid_file="),
            (["a/1.jpg", "a/2.HEIC"], r"1 files ending in .heic.*Convert them"),
        ],
    )
    def test_are_warned_of_with_the_remedy(
        self, names: list[str], text: str, tmp_path: Path
    ) -> None:
        with pytest.warns(UserWarning, match=text) as said:
            ImageFolder(put(tmp_path, *names))
        assert len(said) == 1

    @pytest.mark.parametrize(
        "names",
        [
            ["a/1.jpg", "b/x/1.jpg"],
            ["a/1.jpg", "a/x/1.jpg", "a/y/1.jpg"],
            ["train/1.jpg", "bus/1.jpg"],
            ["all/1.jpg"],
        ],
    )
    def test_that_are_none_are_not(self, names: list[str], tmp_path: Path) -> None:
        root = put(tmp_path, *names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ImageFolder(root).samples == Torchvisions(root).samples

    def test_are_read_by_the_remedy(self, tmp_path: Path) -> None:
        root = put(tmp_path, "a/1.jpg", "a/2.gif")
        endings = (*IMG_EXTENSIONS, ".gif")
        dataset = ImageFolder(root, is_valid_file=lambda path: path.lower().endswith(endings))
        assert named(dataset) == ["a/1.jpg", "a/2.gif"]

    def test_of_images_that_are_not_read_name_their_ending(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no image .* in a. There are files ending in .heic"):
            ImageFolder(put(tmp_path, "a/1.heic"))


@pytest.mark.parametrize("name", ["loader", "is_valid_file", "transform", "target_transform"])
def test_what_cannot_be_called_is_no_function(name: str, tmp_path: Path) -> None:
    options: Any = {name: "jpg"}
    with pytest.raises(OptionError, match=f"{name}='jpg' cannot be called"):
        ImageFolder(put(tmp_path, "a/1.jpg"), **options)
