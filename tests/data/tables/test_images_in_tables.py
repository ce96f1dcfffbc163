"""Images in structs, as Hugging Face publishes them: decoded, by the rules of folders."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from headrace import DataLoader
from headrace.data import ImageDecoder, ParquetDataset, TableDataset
from headrace.errors import OptionError, SourceError


def png(number: int, size: tuple[int, int] = (6, 4), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(file, kind)
    return file.getvalue()


class TestImages:
    @pytest.fixture
    def table(self) -> pa.Table:
        rows = [{"bytes": png(n), "path": f"{n}.png"} for n in range(5)]
        pages = [[{"bytes": png(9), "path": None}] * n for n in range(5)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.table({"image": rows, "pages": pa.array(pages, pa.list_(kind)), "y": range(5)})

    @pytest.mark.parametrize("workers", [0, 2])
    def test_in_structs_are_decoded(self, table: pa.Table, workers: int, read: Any) -> None:
        data = read(table.select(["image", "y"]))
        for batch in DataLoader(data, 2, num_workers=workers):
            assert batch["image"].shape[1:] == (3, 4, 6)
            assert batch["image"].dtype == torch.uint8
            assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["y"])

    def test_in_lists_are_decoded(self, table: pa.Table, read: Any) -> None:
        pages = read(table)[3]["pages"]
        assert [page.shape for page in pages] == [(3, 4, 6)] * 3

    def test_are_read_by_a_decoder_of_ones_own(self, table: pa.Table, read: Any) -> None:
        data = read(table, images=ImageDecoder(size=(2, 3), decode="pil"))
        assert data[1]["image"].size == (3, 2)

    def test_are_structs_when_asked_for(self, table: pa.Table, read: Any) -> None:
        row = read(table, images=False)[2]
        assert row["image"] == {"bytes": png(2), "path": "2.png"}
        assert row["pages"] == [{"bytes": png(9), "path": ""}] * 2
        with pytest.raises(OptionError, match=r"images=ImageDecoder\(size=224\)"):
            read(table, images=True)

    def test_of_more_than_8_bits_follow_the_same_rules(self, read: Any) -> None:
        deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
        file = io.BytesIO()
        Image.fromarray(deep).save(file, "PNG")
        table = pa.table({"a": [{"bytes": file.getvalue(), "path": "x"}]})
        with pytest.raises(SourceError, match=r'images=ImageDecoder\(deep="keep"\)'):
            _ = read(table)[0]
        kept = read(table, images=ImageDecoder(deep="keep"))[0]["a"]
        assert np.array_equal(kept[0].numpy(), deep)

    def test_that_cannot_be_decoded_are_named(self, read: Any) -> None:
        rows = [{"bytes": png(0), "path": ""}, {"bytes": png(0)[:20], "path": ""}]
        with pytest.raises(SourceError, match=r"column 'a', image 1 cannot be decoded"):
            _ = read(pa.table({"a": rows}))[1]

    def test_that_are_elsewhere_are_named(self, read: Any) -> None:
        rows = [{"bytes": png(0), "path": ""}, {"bytes": None, "path": "x/1.png"}]
        with pytest.raises(SourceError, match=r"row 1, .*only its path 'x/1.png'.*images=False"):
            _ = read(pa.table({"a": rows}))[1]

    def test_that_are_missing_are_named(self, read: Any) -> None:
        table = pa.table({"a": [{"bytes": png(0), "path": ""}, None]})
        for missing in ("error", 0):
            with pytest.raises(SourceError, match=r"row 1, .*'a': the image is missing.*images="):
                _ = read(table, missing=missing)[1]
        assert read(table, images=False, missing=0)[1]["a"] == {"bytes": b"", "path": ""}

    @pytest.mark.parametrize("sound", [b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"ID3", b"OggS", b""])
    def test_sounds_are_structs(self, sound: bytes, read: Any) -> None:
        table = pa.table({"audio": [{"bytes": sound, "path": "x.wav"}] * 3})
        assert read(table)[0]["audio"] == {"bytes": sound, "path": "x.wav"}

    @pytest.mark.parametrize(
        "kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]
    )
    def test_are_known_by_their_bytes(self, kind: str) -> None:
        table = pa.table({"a": [{"bytes": png(7, kind=kind), "path": None}] * 2})
        table = table.set_column(
            0, "a", table["a"].cast(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        )
        assert TableDataset(table)[1]["a"].shape == (3, 4, 6)

    def test_of_hugging_face_datasets_go_by_the_same_rules(self, tmp_path: Path) -> None:
        pictures = [Image.new("RGB", (6, 4), (n, 0, 0)) for n in range(6)]
        features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
        dataset = datasets.Dataset.from_dict({"image": pictures, "y": range(6)}, features)
        dataset.to_parquet(tmp_path / "t.parquet")
        shuffled = dataset.select([4, 2])
        for data, rows in (
            (TableDataset(dataset), range(6)),
            (TableDataset(shuffled), [4, 2]),
            (ParquetDataset(tmp_path / "t.parquet"), range(6)),
        ):
            assert [row["y"] for row in data] == list(rows)
            assert [int(row["image"][0, 0, 0]) for row in data] == list(rows)
