"""Images that are more than RGB of 8 bits: their values are kept, or it is said what is lost."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from data.images.conftest import Crop
from headrace import DataLoader
from headrace.data import ImageDecoder, ImageFolder
from headrace.errors import OptionError, SourceError

DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 65536, (9, 7)).astype(np.uint16)
FLOATS = DRAW.normal(size=(9, 7)).astype(np.float32)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(values: Any) -> bytes:
    """Write a PNG of 16 bits a channel, which Pillow writes for grey ones only."""
    kind = {2: 0, 3: {2: 4, 3: 2, 4: 6}[values.shape[-1] if values.ndim == 3 else 3]}[values.ndim]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def pgm(values: Any, most: int) -> bytes:
    return (
        f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode() + values.astype(">u2").tobytes()
    )


def folder_of(root: Path, data: bytes, suffix: str = ".png", count: int = 4) -> Path:
    for number in range(count):
        place = root / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}{suffix}").write_bytes(data)
    return root


DEEP: dict[str, tuple[bytes, Any]] = {
    "16-bit PNG": (encoded(Image.fromarray(GREY), "PNG"), GREY),
    "16-bit TIFF": (encoded(Image.fromarray(GREY), "TIFF"), GREY),
    "16-bit TIFF, big-endian": (encoded(Image.fromarray(GREY.astype(">u2")), "TIFF"), GREY),
    "16-bit TIFF, compressed": (
        encoded(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"),
        GREY,
    ),
    "16-bit PGM": (pgm(GREY, 65535), GREY),
    "12-bit PGM": (pgm(GREY >> 4, 4095), GREY >> 4),
    "10-bit text PGM": (b"P2 2 2 1000\n0 1 999 1000\n", np.array([[0, 1], [999, 1000]], "u2")),
    "float TIFF": (encoded(Image.fromarray(FLOATS), "TIFF"), FLOATS),
    "PFM": (b"Pf\n2 1\n-1.0\n" + np.array([0.5, -3], "<f4").tobytes(), np.array([[0.5, -3]], "f4")),
    "32-bit TIFF": (
        encoded(Image.fromarray(GREY.astype(np.int32) * 9 - 5), "TIFF"),
        GREY.astype(np.int32) * 9 - 5,
    ),
    "16-bit JPEG 2000": (encoded(Image.fromarray(GREY), "JPEG2000"), GREY),
}
COLOUR = {
    "PNG": png_of_16_bits(DRAW.integers(0, 65536, (5, 6, 3))),
    "PNG with alpha": png_of_16_bits(DRAW.integers(0, 65536, (5, 6, 4))),
    "grey PNG with alpha": png_of_16_bits(DRAW.integers(0, 65536, (5, 6, 2))),
    "PPM": b"P6 2 1 65535\n" + np.array([0, 256, 2048, 4095, 1, 2], ">u2").tobytes(),
    "text PPM": b"P3 2 1 4095\n0 1 2 3 4 4095\n",
}


class TestDeepImages:
    @pytest.mark.parametrize("kind", DEEP)
    def test_keep_their_values_when_asked_to(self, kind: str) -> None:
        data, values = DEEP[kind]
        image = ImageDecoder(deep="keep")(data)
        assert image.shape == (1, *values.shape)
        assert image.numpy().dtype == values.dtype
        assert np.array_equal(image[0].numpy(), values)
        assert np.array_equal(np.asarray(ImageDecoder(deep="keep", decode="pil")(data)), values)

    @pytest.mark.parametrize("kind", DEEP)
    def test_are_refused_with_the_line_to_write(self, kind: str, tmp_path: Path) -> None:
        root = folder_of(tmp_path, DEEP[kind][0])
        line = r'0\.png has more than 8 bits.*ImageFolder\(\.\.\., deep="keep"\)'
        with pytest.raises(SourceError, match=line):
            ImageFolder(root)[0]
        with pytest.raises(SourceError, match=line):
            ImageFolder(root, transform=np.asarray)[0]
        with pytest.raises(SourceError, match="none of the 4 images"):
            ImageFolder(root, on_error="skip")

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("kind", ["16-bit PNG", "float TIFF"])
    def test_make_batches(self, kind: str, workers: int, tmp_path: Path) -> None:
        data, values = DEEP[kind]
        dataset = ImageFolder(folder_of(tmp_path, data), deep="keep")
        for images, _ in DataLoader(dataset, 2, num_workers=workers):
            assert images.shape == (2, 1, *values.shape)
            assert all(np.array_equal(image[0].numpy(), values) for image in images)

    def test_have_their_upper_bits_as_grey_rgb(self) -> None:
        for data, values in (DEEP["16-bit PNG"], DEEP["16-bit TIFF, big-endian"]):
            image = ImageDecoder(deep="scale")(data)
            assert image.shape == (3, 9, 7)
            assert all(np.array_equal(plane.numpy(), values >> 8) for plane in image)
        image = ImageDecoder(deep="scale")(DEEP["12-bit PGM"][0])
        assert np.array_equal(image[0].numpy(), GREY >> 8)
        for kind in ("float TIFF", "32-bit TIFF"):
            with pytest.raises(SourceError, match="range is not known"):
                ImageDecoder(deep="scale")(DEEP[kind][0])

    def test_are_resized_in_their_own_range(self) -> None:
        for values in (np.full((8, 8), 60_000, np.uint16), np.full((8, 8), 0.3, np.float32)):
            data = encoded(Image.fromarray(values), "TIFF")
            image = ImageDecoder((4, 5), deep="keep")(data)
            assert image.dtype == torch.from_numpy(values).dtype
            assert image.shape == (1, 4, 5)
            assert image.float().allclose(torch.tensor(float(values[0, 0])))
        large = np.full((2, 3), (1 << 24) + 1, np.int32)  # which float32 has not
        found = ImageDecoder((4, 3), deep="keep")(encoded(Image.fromarray(large), "TIFF"))
        assert found.unique().tolist() == [(1 << 24) + 1]

    @pytest.mark.parametrize("kind", COLOUR)
    def test_in_colour_are_refused_or_their_upper_bits(self, kind: str) -> None:
        data = COLOUR[kind]
        for deep in (None, "keep"):
            with pytest.raises(SourceError, match=r"upper 8.*deep=\"scale\".*loader=fn"):
                ImageDecoder(deep=deep)(data)
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        image = ImageDecoder(deep="scale", background="ignore")(data)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)

    def test_among_others_leave_those_as_they_are(self, tmp_path: Path, crop: Crop) -> None:
        root = folder_of(tmp_path, DEEP["16-bit PNG"][0])
        crop().save(root / "a" / "0.jpg")
        kinds = [image.dtype for image, _ in ImageFolder(root, deep="keep")]
        assert sorted(map(str, kinds)) == ["torch.uint16"] * 4 + ["torch.uint8"]

    def test_of_unsigned_32_bits_that_pillow_wraps_are_refused(self) -> None:
        values = np.array([[3_000_000_000, 1]], np.uint32)
        data = bytearray(encoded(Image.fromarray(values.view(np.int32)), "TIFF"))
        place = data.index(struct.pack("<HHII", 339, 3, 1, 2))
        data[place : place + 12] = struct.pack("<HHII", 339, 3, 1, 1)
        with pytest.raises(SourceError, match="above 2147483647"):
            ImageDecoder(deep="keep")(bytes(data))


class TestOrientation:
    def test_that_imagemagick_writes_as_text_is_applied(self, crop: Crop) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = exif.tobytes()
        info = PngInfo()
        lines = [data.hex()[at : at + 72] for at in range(0, 2 * len(data), 72)]
        info.add_text("Raw profile type exif", "\n".join(["", "exif", f"{len(data):8}", *lines]))
        image = crop(0, 40, 64)
        written = encoded(image, "PNG", pnginfo=info)
        turned = ImageDecoder(exif="apply")(written)
        assert np.array_equal(turned.permute(1, 2, 0), np.rot90(np.asarray(image), -1))
        for wrong in ("", "x", "\nexif\n 3\nzz", "a\nb\nc\n00"):
            info = PngInfo()
            info.add_text("Raw profile type exif", wrong)
            data = encoded(image, "PNG", pnginfo=info)
            assert ImageDecoder(exif="apply")(data).shape == (3, 40, 64)

    @staticmethod
    def write(path: Path, image: Image.Image, way_up: int, **options: Any) -> str:
        exif = Image.Exif()
        exif[0x0112] = way_up
        image.save(path, exif=exif, **options)
        return str(path)

    @staticmethod
    def upright(path: str) -> Any:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))

    @pytest.mark.parametrize("way_up", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    def test_is_applied_as_pillow_applies_it(
        self, suffix: str, way_up: int, tmp_path: Path, crop: Crop
    ) -> None:
        options = {"lossless": True} if suffix == "webp" else {}
        path = self.write(tmp_path / f"x.{suffix}", crop(0, 40, 64), way_up, **options)
        expected = self.upright(path)
        assert np.array_equal(ImageDecoder(exif="apply")(path).permute(1, 2, 0), expected)
        assert np.array_equal(np.asarray(ImageDecoder(exif="apply", decode="pil")(path)), expected)

    @pytest.mark.parametrize("way_up", range(1, 9))
    def test_is_applied_to_what_is_decoded_smaller(
        self, way_up: int, tmp_path: Path, crop: Crop
    ) -> None:
        """The size is that of the upright image; what turbo scales is what it would be turned."""
        path = self.write(tmp_path / "x.jpg", crop(0, 128, 256), way_up)
        high, wide = (128, 64) if way_up >= 5 else (64, 128)
        image = ImageDecoder((high, wide), exif="apply")(path)
        plain = tmp_path / "plain.jpg"
        crop(0, 128, 256).save(plain)
        lying = ImageDecoder((64, 128), decode="pil")(str(plain))
        lying.getexif()[0x0112] = way_up
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(ImageOps.exif_transpose(lying)))

    def test_is_ignored_with_one_warning(self, tmp_path: Path, crop: Crop) -> None:
        for number in range(3):
            (tmp_path / "a").mkdir(exist_ok=True)
            self.write(tmp_path / "a" / f"{number}.jpg", crop(number, 40, 64), 6)
        dataset = ImageFolder(tmp_path)
        with pytest.warns(UserWarning, match=r"orientation 6.*\(\.\.\., exif=\"apply\"\)") as said:
            images = [image for image, _ in dataset]
        assert len(said) == 1
        theirs = torchvision.datasets.ImageFolder(tmp_path)
        assert np.array_equal(images[1].permute(1, 2, 0), np.asarray(theirs[1][0]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(ImageFolder(tmp_path, exif="ignore")[1][0], images[1])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_applied_in_batches(self, workers: int, tmp_path: Path, crop: Crop) -> None:
        for number in range(4):
            (tmp_path / "a").mkdir(exist_ok=True)
            self.write(tmp_path / "a" / f"{number}.jpg", crop(number, 40, 64), 6)
        dataset = ImageFolder(tmp_path, exif="apply")
        images = torch.cat([x for x, _ in DataLoader(dataset, 2, num_workers=workers)])
        for number, (path, _) in enumerate(dataset.samples):
            assert np.array_equal(images[number].permute(1, 2, 0), self.upright(path))

    @settings(max_examples=60, deadline=None)
    @given(junk=st.binary(max_size=60), head=st.sampled_from([b"II*\0", b"MM\0*", b""]))
    def test_in_damaged_exif_is_upright_or_one_of_eight(self, junk: bytes, head: bytes) -> None:
        pixels = np.zeros((4, 6, 3), np.uint8)
        data = encoded(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0" + head + junk)
        assert sorted(ImageDecoder(exif="apply")(data).shape) == [3, 4, 6]


def alpha() -> Any:
    pixels = DRAW.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    pixels[0, :, 3] = 0
    return pixels


def palette() -> bytes:
    image = Image.fromarray(alpha()[:, :, :3]).quantize(4)
    return encoded(image, "PNG", transparency=2)


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "RGBA PNG": lambda: encoded(Image.fromarray(alpha()), "PNG"),
    "grey PNG with alpha": lambda: encoded(Image.fromarray(alpha()).convert("LA"), "PNG"),
    "palette PNG": palette,
    "RGB PNG with a transparent colour": lambda: encoded(
        Image.new("RGB", (5, 5), (1, 2, 3)), "PNG", transparency=(1, 2, 3)
    ),
    "WebP": lambda: encoded(Image.fromarray(alpha()), "WEBP", lossless=True),
    "palette PNG, half transparent": lambda: encoded(Image.fromarray(alpha()).quantize(8), "PNG"),
    "GIF": lambda: encoded(Image.fromarray(alpha()[:, :, :3]).quantize(4), "GIF", transparency=1),
    "TIFF": lambda: encoded(Image.fromarray(alpha()), "TIFF"),
}


class TestTransparency:
    @pytest.mark.parametrize("kind", TRANSPARENT)
    def test_shows_the_background_that_is_asked_for(self, kind: str) -> None:
        data = TRANSPARENT[kind]()
        over = Image.open(io.BytesIO(data)).convert("RGBA")
        for background, colour in ((255, (255,) * 3), ((9, 80, 200), (9, 80, 200))):
            under = Image.new("RGBA", over.size, (*colour, 255))
            expected = np.asarray(Image.alpha_composite(under, over).convert("RGB"))
            image = ImageDecoder(background=background)(data).permute(1, 2, 0)
            assert np.array_equal(image, expected)
            hidden = np.asarray(over)[:, :, 3] == 0
            assert hidden.any()
            assert (image.numpy()[hidden] == colour).all()

    @pytest.mark.parametrize("kind", TRANSPARENT)
    def test_is_dropped_with_a_warning(self, kind: str) -> None:
        data, decoder = TRANSPARENT[kind](), ImageDecoder()
        with pytest.warns(UserWarning, match=r"ImageDecoder\(background=\(255, 255, 255\)\)"):
            image = decoder(data)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Palette images")  # Pillow's own, not ours
            expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(expected))
        assert torch.equal(decoder(data), image)  # without a second word
        assert torch.equal(ImageDecoder(background="ignore")(data), image)

    def test_shows_what_is_asked_for_beside_what_is_torchvisions(self, tmp_path: Path) -> None:
        root = folder_of(tmp_path, TRANSPARENT["RGBA PNG"]())
        theirs = torchvision.datasets.ImageFolder(root)
        like = ImageFolder(root, like_torchvision=True)
        assert np.array_equal(like[0][0].permute(1, 2, 0), np.asarray(theirs[0][0]))
        black = ImageFolder(root, like_torchvision=True, background=0)
        assert black[0][0][:, 0].unique().tolist() == [0]

    @pytest.mark.parametrize("kind", ["16-bit PNG", "float TIFF", "16-bit PGM"])
    def test_and_depth_are_those_of_torchvision_when_asked_for(
        self, kind: str, tmp_path: Path
    ) -> None:
        root = folder_of(tmp_path, DEEP[kind][0])
        theirs = torchvision.datasets.ImageFolder(root)
        like = ImageFolder(root, like_torchvision=True)
        assert np.array_equal(like[0][0].permute(1, 2, 0), np.asarray(theirs[0][0]))

    def test_that_nothing_has_is_not_spoken_of(self) -> None:
        pixels = alpha()
        pixels[:, :, 3] = 255
        image = ImageDecoder()(encoded(Image.fromarray(pixels), "PNG"))
        assert np.array_equal(image.permute(1, 2, 0), pixels[:, :, :3])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_filled_in_batches(self, workers: int, tmp_path: Path) -> None:
        pixels = alpha()
        root = folder_of(tmp_path, encoded(Image.fromarray(pixels), "PNG"))
        dataset = ImageFolder(root, background=(1, 2, 3))
        for images, _ in DataLoader(dataset, 2, num_workers=workers):
            assert (images[:, :, 0] == torch.tensor([1, 2, 3])[:, None]).all()


class TestSeveralImages:
    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_are_read_by_number(self, kind: str) -> None:
        frames = [Image.new("RGB", (8, 6), (60 * n, 0, 0)) for n in range(3)]
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
        data = encoded(frames[0], kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
        for number in range(3):
            assert ImageDecoder(frame=number)(data)[0].unique().tolist() == [60 * number]
        with pytest.warns(UserWarning, match="3 images in it, of which the first is read"):
            assert ImageDecoder()(data).max() == 0
        with pytest.raises(SourceError, match="cannot be decoded"):
            ImageDecoder(frame=3)(data)

    def test_of_one_image_have_the_first_only(self) -> None:
        data = encoded(Image.new("RGB", (8, 6)), "PNG")
        assert ImageDecoder(frame=0)(data).shape == (3, 6, 8)
        with pytest.raises(SourceError, match="it has one image"):
            ImageDecoder(frame=1)(data)


class TestDecoder:
    def test_takes_a_path_or_bytes_whatever_it_is_called(self, tmp_path: Path, crop: Crop) -> None:
        for kind, suffix in (("PNG", "jpg"), ("JPEG", "png"), ("WEBP", "tif")):
            path = tmp_path / f"x.{suffix}"
            crop().save(path, kind)
            expected = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
            for source in (path, str(path), path.read_bytes()):
                assert np.array_equal(ImageDecoder()(source).permute(1, 2, 0), expected)

    def test_names_where_broken_bytes_are_from(self) -> None:
        with pytest.raises(SourceError, match=r"row 3 cannot be decoded.*Replace it"):
            ImageDecoder()(b"nothing", "row 3")

    @pytest.mark.parametrize(
        "options",
        [
            {"size": 0},
            {"decode": "numpy"},
            {"exif": True},
            {"deep": "float"},
            {"background": 256},
            {"background": "white"},
            {"background": (1, 2)},
            {"frame": -1},
            {"frame": True},
        ],
    )
    def test_refuses_options_that_cannot_be(self, options: Any, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=f"{next(iter(options))}="):
            ImageDecoder(**options)
        (tmp_path / "a").mkdir()
        with pytest.raises(OptionError):
            ImageFolder(tmp_path, **options)
        if "decode" not in options:
            with pytest.raises(OptionError, match="loader= decides"):
                ImageFolder(tmp_path, loader=str, exif="apply")
