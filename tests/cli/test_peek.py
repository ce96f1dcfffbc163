"""headrace peek: what it shows of each kind of source, and one line for what it cannot show."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import zstandard
from PIL import Image
from safetensors.torch import save_file

from data.tokens.files import write_megatron
from headrace.cli.peek import looking

MINE = """
import torch

class Pictures(torch.utils.data.Dataset):
    classes = ["ash", "birch"]
    def __len__(self):
        return 10
    def __getitem__(self, index):
        return {"image": torch.randn(3, 20, 24), "y": index % 2, "name": f"s{index}"}

class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(2)

def ragged():
    return [torch.zeros(n + 1) for n in range(8)]

def empty():
    return []

def number():
    return 3

def fails():
    raise KeyError("no")

class Broken(Pictures):
    def __getitem__(self, index):
        raise OSError("disk on fire")

ready = Pictures()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_csv(path: Path, separator: str = ",") -> None:
    rows = [["age", "city", "bought"], *([str(20 + n), "Bern", str(n % 3)] for n in range(40))]
    path.write_text("".join(separator.join(row) + "\n" for row in rows))


def write_idx(path: Path, array: Any) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def write_pictures(root: Path, sizes: tuple[int, ...] = (16, 16)) -> None:
    for name in ("ash", "birch"):
        (root / name).mkdir(parents=True)
        for n, size in enumerate(sizes * 2):
            pixels = np.full((size, 20, 3), 40 * n, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{n}.png")


def make(place: Path, kind: str) -> str:
    """Write a source of a kind; return what to type for it."""
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20)
    lines = "".join(json.dumps({"id": n, "text": "word " * n}) + "\n" for n in range(20))
    if kind in ("table.csv", "table.tsv"):
        write_csv(place / kind, "\t" if kind.endswith("tsv") else ",")
    elif kind in ("table.parquet", "parts"):
        (place / "parts").mkdir()
        path = place / ("parts/0.parquet" if kind == "parts" else kind)
        parquet.write_table(pa.table({"x": x[:, 0], "y": y}), path)
    elif kind == "x.npy":
        np.save(place / kind, x)
    elif kind == "x.npz":
        np.savez(place / kind, x=x, y=y)
    elif kind == "x.safetensors":
        save_file(
            {"x": torch.from_numpy(x), "h": torch.ones(20, 2, dtype=torch.bfloat16)}, place / kind
        )
    elif kind in ("x.bin", "x.idx"):
        write_megatron(place / "x", [[range(500)], [range(9)]])
    elif kind == "pictures":
        write_pictures(place / kind)
    elif kind in ("data", "data/MNIST"):
        (place / "data/MNIST/raw").mkdir(parents=True)
        write_idx(
            place / "data/MNIST/raw/train-images-idx3-ubyte", np.zeros((20, 28, 28), np.uint8)
        )
        write_idx(place / "data/MNIST/raw/train-labels-idx1-ubyte", (y % 10).astype(np.uint8))
    elif kind == "mine:Pictures":
        (place / "mine.py").write_text(MINE)
    else:
        data = lines.encode()
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(kind).suffix, bytes)
        (place / kind).write_bytes(compress(data))
    return kind


SHOWN = {
    "table.csv": ["CSVDataset, 40 samples", "batch[0]", "(32, 2)", "float32", "age", "city"],
    "table.tsv": ["CSVDataset, 40 samples", "(32, 3)"],
    "table.parquet": ["ParquetDataset, 20 samples", "batch['x']", "batch['y']", "int64"],
    "parts": ["ParquetDataset, 20 samples"],
    "x.npy": ["ArrayDataset, 20 samples", "(20, 3)", "float32", "0 to 59"],
    "x.npz": ["batch['x']", "batch['y']", "(20,)"],
    "x.safetensors": ["batch['h']", "bfloat16", "all 1"],
    "x.bin": ["TokenBlocks, 4 samples", "(4, 128)", "int64", "0 to 499"],
    "x.idx": ["TokenBlocks, 4 samples"],
    "x.txt": ["TextLines, 20 samples", "list of str", '{"id": 0, "text": ""}'],
    "x.jsonl": ["JSONLines, 20 samples", "batch['id']", "0 to 95 long", "word word"],
    "x.ndjson": ["JSONLines, 20 samples"],
    "x.txt.gz": ["StreamedTextLines, a stream", '{"id": 0, "text": ""}'],
    "x.jsonl.zst": ["StreamedJSONLines, a stream", "batch['id']", "0 to 19"],
    "pictures": [
        "ImageFolder, 8 samples",
        "(8, 3, 16, 20)",
        "2 classes",
        "birch",
        "--out grid.png",
    ],
    "data": ["MNIST, 20 samples", "(20, 1, 28, 28)", "10 classes", "7 - seven"],
    "data/MNIST": ["MNIST, 20 samples"],
    "mine:Pictures": ["Pictures, 10 samples", "(10, 3, 20, 24)", "s0"],
}


@pytest.mark.parametrize("kind", SHOWN)
def test_shows_each_kind_of_source(headrace, place, kind):
    arguments = ["--target", "bought"] if kind.startswith("table.c") else []
    outcome = headrace("peek", make(place, kind), *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    for text in SHOWN[kind]:
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    if arguments:
        assert "3 classes" in outcome.out


@pytest.mark.parametrize("kind", SHOWN)
def test_the_same_as_json(headrace, place, kind):
    outcome = headrace("peek", make(place, kind), "--json", "--rows", "2", "--batch-size", "4")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["batch"]["size"] == 4
    assert all(leaf["shape"][0] == 4 for leaf in facts["batch"]["leaves"])
    assert len(facts["rows"]) == 2


def test_counts_of_classes_are_those_of_the_whole(headrace, place):
    write_pictures(place / "pictures", (16, 16, 16))
    (place / "pictures/ash/0.png").unlink()
    facts = json.loads(headrace("peek", "pictures", "--json").out)
    assert facts["classes"] == {"ash": 5, "birch": 6}


def test_a_batch_is_not_all_of_one_class(headrace, place):
    np.savez(place / "x.npz", y=np.repeat([0, 1], 500))
    [leaf] = json.loads(headrace("peek", "x.npz", "--json").out)["batch"]["leaves"]
    assert (leaf["min"], leaf["max"]) == (0, 1)


def test_images_are_drawn_as_a_labelled_grid(headrace, place):
    write_pictures(place / "pictures", (16, 24, 8))
    outcome = headrace("peek", "pictures", "--out", "grid.png")
    assert outcome.code == 0
    assert "12 images of the batch are in grid.png" in outcome.out
    # Of several sizes: what the default collation says of them, with the indices.
    assert "cannot make one" in outcome.out
    assert "dataset indices" in outcome.out
    with Image.open(place / "grid.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_images_of_a_dataset_of_ones_own_carry_its_class_names(place):
    images = looking.look("x", _Labelled(), 4, 0).images
    assert [label for _, label in images] == ["one"] * 4
    assert [image.shape for image, _ in images] == [(8, 9, 3)] * 4


class _Labelled:
    classes = ["zero", "one"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(3, 8, 9), torch.tensor(1)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (torch.zeros(3, 8, 9), (8, 9, 3)),
        (torch.zeros(1, 8, 9, dtype=torch.uint8), (8, 9)),
        (np.zeros((8, 9, 3), np.uint8), (8, 9, 3)),
        (np.zeros((8, 9), np.uint8), (8, 9)),
        (Image.new("RGB", (9, 8)), (8, 9, 3)),
        (torch.zeros(8, 9), None),
        (torch.zeros(5, 8, 9), None),
        (torch.zeros(3, 2, 2), None),
        (torch.zeros(3, 0, 9), None),
        ("text", None),
        (3, None),
    ],
)
def test_what_counts_as_an_image(value, shape):
    found = looking._pixels(value)
    assert (None if found is None else found.shape) == shape


def test_samples_that_do_not_stack_are_shown_all_the_same(headrace, place):
    (place / "mine.py").write_text(MINE)
    outcome = headrace("peek", "mine:ragged")
    assert outcome.code == 0
    assert "The default collation cannot make one of these samples:" in outcome.out
    assert "[0 0 0]" in outcome.out


def test_a_stream_without_end_and_an_object_that_is_made_already(headrace, place):
    (place / "mine.py").write_text(MINE)
    assert "a stream" in headrace("peek", "mine:Endless").out
    assert "Pictures, 10 samples" in headrace("peek", "mine:ready").out


def test_columns_that_have_no_room_are_counted(headrace, place):
    header = ",".join(f"a_long_name_{n}" for n in range(30))
    row = ",".join(map(str, range(30)))
    (place / "wide.csv").write_text(f"{header}\n{row}\n{row}\n")
    outcome = headrace("peek", "wide.csv")
    assert "and 26 more columns" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_missing_values_are_counted(headrace, place):
    np.save(place / "x.npy", np.array([1.5, np.nan, -2, np.nan]))
    assert "-2 to 1.5, 2 NaN" in headrace("peek", "x.npy").out


def test_a_table_with_missing_values_is_shown_and_says_what_to_write(headrace, place):
    (place / "t.csv").write_text("age,city,y\n1,Bern,0\n,,1\n,Oslo,1\n")
    outcome = headrace("peek", "t.csv", "--target", "y")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "t.csv, line 3, column 'age': a value is missing" in said
    assert "2 NaN" in said
    assert 'here it is read with missing=float("nan")' in said
    assert "age whole numbers all 1 2" in said
    assert "city categories 0 Bern, 1 Oslo 1" in said
    facts = json.loads(headrace("peek", "t.csv", "--json").out)
    assert facts["missing"] == {"age": 2, "city": 1}
    assert facts["problem"].startswith("t.csv, line 3, column 'age'")
    parquet.write_table(pa.table({"x": [0.5, None], "y": [1, 2]}), place / "t.parquet")
    outcome = headrace("peek", "t.parquet")
    assert "row 1, column 'x': a value is missing" in " ".join(outcome.out.split())
    assert "all 0.5, 1 NaN" in outcome.out


def test_many_categories_are_cut(headrace, place):
    (place / "t.csv").write_text("k\n" + "".join(f"k{n}\n" for n in range(12)))
    said = " ".join(headrace("peek", "t.csv").out.split())
    assert "k categories 0 k0, 1 k1" in said
    assert "Doubtful: t.csv, column 'k' has 12 different texts in 12 rows" in said


def test_the_first_split_of_emnist_that_is_there(headrace, place):
    raw = place / "EMNIST/raw"
    raw.mkdir(parents=True)
    assert "there is no emnist-byclass-train" in headrace("peek", "EMNIST").err
    write_idx(raw / "emnist-digits-train-images-idx3-ubyte", np.zeros((5, 28, 28), np.uint8))
    write_idx(raw / "emnist-digits-train-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    assert "EMNIST, 5 samples" in headrace("peek", "EMNIST").out


WRONG = [
    (["hole.parquet"], 1, "headrace peek: /"),  # whole numbers have no NaN
    (["hole.csv", "--target", "y"], 1, "headrace peek: hole.csv, line 2, column 'y': the target"),
    (["nope.csv"], 2, "headrace peek: there is no file or directory nope.csv"),
    (["mine.py"], 2, "headrace peek: mine.py is of no kind that is known: .csv"),
    (["mine:nothing"], 2, "headrace peek: mine:nothing cannot be found"),
    (["nomodule:x"], 2, "headrace peek: nomodule:x cannot be found"),
    (["mine:number"], 2, "headrace peek: mine:number() gave a int; it must give a dataset"),
    (["table.csv", "--target", "nope"], 2, "headrace peek: table.csv has no column 'nope'"),
    (["x.npy", "--target", "y"], 2, "headrace peek: --target is for .csv and .tsv files"),
    (["x.npy", "--rows", "-1"], 2, "headrace peek: --rows must be at least 0, not -1"),
    (["x.npy", "--batch-size", "0"], 2, "headrace peek: --batch-size must be at least 1, not 0"),
    (["x.npy", "--batch-size", "x"], 2, "headrace peek: --batch-size must be a whole number"),
    (["x.npy", "--out", "grid.png"], 2, "headrace peek: there are no images in the samples"),
    (["x.npy", "--out", "grid.jpg"], 2, "headrace peek: --out grid.jpg must be the name of"),
    (
        ["mine:Pictures", "--out", "bad.npz/grid.png"],
        1,
        "headrace peek: --out bad.npz/grid.png cannot be",
    ),
    (["mine:fails"], 1, "headrace peek: mine:fails() raised KeyError: 'no'"),
    (["mine:Broken"], 1, "headrace peek: OSError: disk on fire (headrace: while fetching"),
    (["blank.jsonl.gz"], 1, "headrace peek: blank.jsonl.gz has no samples"),
    (["mine:empty"], 1, "headrace peek: mine:empty has no samples"),
    (["bad.jsonl"], 1, "headrace peek: SourceError: bad.jsonl, line 2: no JSON"),
    (["empty.txt"], 1, "headrace peek: empty.txt is an empty file"),
    (["bad.npz"], 1, "headrace peek: bad.npz is no .npz archive"),
    (["nothing"], 1, "headrace peek: "),
]


@pytest.mark.parametrize(("arguments", "code", "line"), WRONG)
def test_what_cannot_be_shown_gets_one_line(headrace, place, arguments, code, line):
    (place / "mine.py").write_text(MINE)
    write_csv(place / "table.csv")
    np.save(place / "x.npy", np.zeros(3))
    (place / "bad.jsonl").write_text('{"a": 1}\n{\n')
    (place / "empty.txt").touch()
    (place / "blank.jsonl.gz").write_bytes(gzip.compress(b"\n \n"))
    (place / "hole.csv").write_text("x,y\n1,\n")
    parquet.write_table(pa.table({"i": [1, None]}), place / "hole.parquet")
    (place / "bad.npz").write_bytes(b"garbage")
    (place / "nothing").mkdir()
    outcome = headrace("peek", *arguments)
    assert outcome.code == code
    [said] = [text for text in outcome.err.splitlines() if not text.startswith("headrace: ")]
    assert said.startswith(line)
    assert outcome.out == ""


def test_help_gives_examples(headrace):
    outcome = headrace("peek", "--help")
    assert outcome.code == 0
    assert "headrace peek photographs --out grid.png" in " ".join(outcome.out.split())


class TestDoubts:
    def test_of_images_are_shown_with_the_option(self, place: Path, headrace: Any) -> None:
        write_pictures(place / "pictures")
        exif = Image.Exif()
        exif[0x0112] = 6
        for suffix, options in (("jpg", {"exif": exif}), ("tif", {})):
            Image.new("RGB", (20, 16)).save(place / f"pictures/ash/lying.{suffix}", **options)
        Image.new("RGBA", (20, 16), (9, 9, 9, 0)).save(place / "pictures/ash/clear.png")
        frames = [Image.new("RGB", (20, 16), (200 * n, 0, 0)) for n in range(2)]
        frames[0].save(place / "pictures/ash/two.webp", save_all=True, append_images=frames[1:])
        (place / "pictures/.ipynb_checkpoints").mkdir()
        result = headrace("peek", "pictures", "--json")
        doubts = [doubt["text"] for doubt in json.loads(result.out)["doubts"]]
        for text, option in (
            ("left out: '.ipynb_checkpoints'", "like_torchvision=True"),
            ("1 of the 12 files that were looked at are not upright", 'exif="apply"'),
            ("lying.jpg", "turns them"),
            ("1 of the 12 files that were looked at are transparent", "background=(255, 255, 255)"),
            ("1 of the 12 files that were looked at have several", "frame=1"),
        ):
            assert any(text in doubt and option in doubt for doubt in doubts), text
        assert len(doubts) == 4
        assert 'exif="apply"' in headrace("peek", "pictures").out.replace("\n", "")

    @pytest.mark.parametrize("kind", ["grey", "colour"])
    def test_of_deep_images_say_how_they_were_opened(
        self, kind: str, place: Path, headrace: Any
    ) -> None:
        (place / "deep/a").mkdir(parents=True)
        if kind == "grey":
            Image.fromarray(np.full((8, 9), 4_000, np.uint16)).save(place / "deep/a/1.png")
        else:
            head, pixels = b"P6 8 9 65535\n", np.full(8 * 9 * 3, 4_000, ">u2").tobytes()
            (place / "deep/a/1.ppm").write_bytes(head + pixels)
        facts = json.loads(headrace("peek", "deep", "--json").out)
        assert "more than 8 bits" in facts["problem"]
        assert facts["opened_with"] == ('deep="keep"' if kind == "grey" else 'deep="scale"')
        assert facts["batch"]["leaves"][0]["max"] == (4_000 if kind == "grey" else 16)

    def test_of_clean_images_there_are_none(self, place: Path, headrace: Any) -> None:
        write_pictures(place / "pictures")
        assert json.loads(headrace("peek", "pictures", "--json").out)["doubts"] == []


def test_parquet_in_directories_of_columns_shows_units(place: Path, headrace: Any) -> None:
    when = pa.array([1, 2], pa.timestamp("us", "UTC"))
    day = pa.array([1, 2], pa.int32()).cast(pa.date32())
    table = pa.table({"when": when, "day": day, "year": [2020, 2021]})
    parquet.write_to_dataset(table, place / "sales", partition_cols=["year"])
    facts = json.loads(headrace("peek", "sales", "--json").out)
    assert facts["dataset"] == "ParquetDataset"
    assert [row["year"] for row in facts["rows"]] == [2020, 2021]
    assert facts["units"] == {"when": "us since 1970-01-01 UTC", "day": "days since 1970-01-01"}
    assert "day: days since 1970-01-01" in headrace("peek", "sales").out


def test_each_column_of_a_csv_file_and_what_is_doubted_about_it(headrace, place):
    rows = "".join(f'{n},"{1 + n % 2},5",{20 + n}\n' for n in range(30))
    (place / "t.csv").write_text(f",price,age\n{rows}")
    outcome = headrace("peek", "t.csv")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "(no name) whole numbers 0 to 29" in said
    assert "price categories 0 1,5, 1 2,5" in said
    assert "age whole numbers 20 to 49" in said
    assert "Doubtful: t.csv, column 1 has no name" in said
    assert "An error, unless on_doubt='warn': t.csv, column 'price' has numbers" in said
    assert said.count("column 'price' has numbers") == 1
    facts = json.loads(headrace("peek", "t.csv", "--json").out)
    assert [c["kind"] for c in facts["columns"]] == ["whole numbers", "categories", "whole numbers"]
    assert [(d["column"], d["sure"]) for d in facts["doubts"]] == [("", False), ("price", True)]


def test_a_csv_file_of_another_separator_is_shown_with_the_one_it_has(headrace, place):
    (place / "t.csv.gz").write_bytes(gzip.compress(b"a;b\n1;2\n3;4\n"))
    outcome = headrace("peek", "t.csv.gz")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "Write separator=';'" in said
    assert "here it is read with separator=None" in said
    assert "b whole numbers 2 to 4" in said


def test_a_corpus_that_does_not_say_its_type(headrace: Any, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(range(1, 101)))
    outcome = headrace("peek", str(tmp_path / "x.bin"))
    assert outcome.code == 1
    assert "does not say of what type they are. Write module:callable" in outcome.err
