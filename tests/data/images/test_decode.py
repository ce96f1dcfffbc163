"""Decoding: every kind of file as Pillow would convert it, JPEGs scaled, bombs and broken bytes."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from data.images.conftest import Crop
from headrace.data import ImageDecoder
from headrace.errors import SourceError


def saved(path: Path, image: Image.Image, kind: str, **options: Any) -> str:
    image.save(path, kind, **options)
    return str(path)


def decode(path: str, size: Any = None) -> Any:
    """Rows of pixels, of deep images too as torchvision has them."""
    decoder = ImageDecoder(size, exif="ignore", background="ignore", deep="clip")
    return decoder(path).permute(1, 2, 0).numpy()


def find_fault(path: str) -> str:
    return ImageDecoder(exif="ignore", background="ignore", deep="clip").find_fault(path)


def pillows(path: str) -> Any:
    """What torchvision's loader makes of a file."""
    with open(path, "rb") as file:
        return np.array(Image.open(file).convert("RGB"))


def transparent_palette(image: Image.Image) -> Image.Image:
    made = image.quantize(16)
    made.info["transparency"] = 3
    return made


KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "JPEG": (lambda i: i, "JPEG", {}),
    "JPEG 4:4:4": (lambda i: i, "JPEG", {"subsampling": 0}),
    "JPEG 4:2:2": (lambda i: i, "JPEG", {"subsampling": 1}),
    "progressive JPEG": (lambda i: i, "JPEG", {"progressive": True}),
    "RGB JPEG": (lambda i: i, "JPEG", {"keep_rgb": True}),
    "grey JPEG": (lambda i: i.convert("L"), "JPEG", {}),
    "CMYK JPEG": (lambda i: i.convert("CMYK"), "JPEG", {}),
    "JPEG with EXIF orientation": (
        lambda i: i,
        "JPEG",
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ),
    "PNG": (lambda i: i, "PNG", {}),
    "PNG with alpha": (lambda i: i.convert("RGBA"), "PNG", {}),
    "grey PNG with alpha": (lambda i: i.convert("LA"), "PNG", {}),
    "16-bit PNG": (lambda i: i.convert("I;16"), "PNG", {}),
    "palette PNG": (lambda i: i.quantize(16), "PNG", {}),
    "transparent palette PNG": (transparent_palette, "PNG", {"transparency": 3}),
    "two colours": (lambda i: i.convert("1"), "PNG", {}),
    "WebP": (lambda i: i, "WEBP", {}),
    "TIFF": (lambda i: i, "TIFF", {}),
    "floating-point TIFF": (lambda i: i.convert("F"), "TIFF", {}),
    "BMP": (lambda i: i, "BMP", {}),
    "GIF": (lambda i: i, "GIF", {}),
    "PPM": (lambda i: i, "PPM", {}),
    "PGM": (lambda i: i.convert("L"), "PPM", {}),
}


class TestFormats:
    @pytest.mark.parametrize("kind", KINDS)
    def test_become_what_pillow_makes_rgb_of(self, tmp_path: Path, crop: Crop, kind: str) -> None:
        change, name, options = KINDS[kind]
        path = saved(tmp_path / "x", change(crop(0, 41, 59)), name, **options)
        pixels = decode(path)
        assert np.array_equal(pixels, pillows(path))
        assert pixels.flags.writeable
        image = ImageDecoder(decode="pil", exif="ignore", background="ignore", deep="clip")(path)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)
        assert find_fault(path) == ""

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (8, 8), (17, 33)])
    def test_of_any_size(self, tmp_path: Path, crop: Crop, shape: tuple[int, int]) -> None:
        for kind in ("JPEG", "PNG"):
            path = saved(tmp_path / kind, crop(1, *shape), kind)
            assert np.array_equal(decode(path), pillows(path))
            for size in ((1, 1), (5, 4), (40, 2)):
                assert decode(path, size).shape == (*size, 3)


class TestSize:
    @pytest.mark.parametrize(
        ("size", "scaled"),
        [
            ((64, 96), (64, 96)),
            ((32, 48), (32, 48)),
            ((16, 24), (16, 24)),
            ((8, 12), (8, 12)),
            ((30, 40), (32, 48)),
            ((33, 48), (64, 96)),
            ((32, 49), (64, 96)),
            ((3, 3), (8, 12)),
            ((100, 30), (64, 96)),
            ((128, 192), (64, 96)),
        ],
    )
    def test_is_reached_from_the_next_larger_scale_of_a_jpeg(
        self, tmp_path: Path, crop: Crop, size: tuple[int, int], scaled: tuple[int, int]
    ) -> None:
        path = saved(tmp_path / "x.jpg", crop(0, 64, 96), "JPEG")
        with Image.open(path) as image:
            image.draft("RGB", (scaled[1], scaled[0]))
            assert image.size == (scaled[1], scaled[0])
            start = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        expected = v2.functional.resize(start, list(size), antialias=True)
        assert np.array_equal(decode(path, size), expected.permute(1, 2, 0).numpy())

    def test_is_reached_by_resizing_what_is_no_jpeg(self, tmp_path: Path, crop: Crop) -> None:
        path = saved(tmp_path / "x.png", crop(0, 64, 96), "PNG")
        start = torch.from_numpy(pillows(path)).permute(2, 0, 1)
        expected = v2.functional.resize(start, [20, 31], antialias=True)
        assert np.array_equal(decode(path, (20, 31)), expected.permute(1, 2, 0).numpy())

    def test_looks_like_what_pillow_resizes(self, tmp_path: Path, crop: Crop) -> None:
        """Not a picture of something else: within what JPEG and the filters differ by."""
        image = crop(0, 256, 256)
        path = saved(tmp_path / "x.jpg", image, "JPEG", quality=95)
        resized = np.asarray(image.resize((100, 80), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(decode(path, (80, 100)) - resized).mean() < 6


def with_jpeg_size(data: bytes, height: int, width: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


class TestBombs:
    def test_are_refused_before_memory_is_asked_for(self, tmp_path: Path, crop: Crop) -> None:
        path = tmp_path / "x.jpg"
        crop().save(path)
        path.write_bytes(with_jpeg_size(path.read_bytes(), 65_000, 65_000))
        for size in (None, (10, 10)):
            with pytest.raises(SourceError, match="decompression bomb") as caught:
                decode(str(path), size)
            assert str(path) in str(caught.value)
        assert "decompression bomb" in find_fault(str(path))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_are_what_is_above_pillows_limit(
        self, tmp_path: Path, crop: Crop, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = saved(tmp_path / "x", crop(0, 64, 64), kind)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
        expected = decode(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
        with pytest.warns(Image.DecompressionBombWarning):
            assert np.array_equal(decode(path), expected)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
        with pytest.raises(SourceError, match="decompression bomb"):
            decode(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert np.array_equal(decode(path), expected)


class TestBrokenFiles:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
    def test_that_end_early_are_errors(
        self, tmp_path: Path, crop: Crop, kind: str, share: float
    ) -> None:
        path = tmp_path / "x"
        crop().save(path, kind)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SourceError, match="cannot be decoded") as caught:
            decode(str(path))
        assert str(path) in str(caught.value)
        assert find_fault(str(path)) == str(caught.value)

    def test_with_bytes_that_pillow_passes_over_are_decoded_as_by_pillow(
        self, tmp_path: Path, crop: Crop
    ) -> None:
        path = tmp_path / "x.jpg"
        crop().save(path, "JPEG")
        data = path.read_bytes()
        end = data.rindex(b"\xff\xd9")
        path.write_bytes(data[:end] + b"\x00\x11\x22\x33" * 4 + data[end:])
        assert np.array_equal(decode(str(path)), pillows(str(path)))
        assert find_fault(str(path)) == ""

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
    @pytest.mark.filterwarnings("ignore")  # Pillow warns of some of what it reads
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_are_an_error_or_an_image(
        self, kind: str, data: st.DataObject, tmp_path: Path, crop: Crop
    ) -> None:
        stream = io.BytesIO()
        crop(0, 24, 24).save(stream, kind)
        broken = bytearray(stream.getvalue())
        for _ in range(data.draw(st.integers(1, 6))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        broken = broken[: data.draw(st.integers(1, len(broken)))]
        path = tmp_path / "x"
        path.write_bytes(broken)
        for size in (None, (8, 8)):
            try:
                pixels = decode(str(path), size)
            except SourceError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert size is None or pixels.shape[:2] == size
