"""headrace shards, and headrace peek of shards."""

import json

import pytest
from PIL import Image

from headrace.data import TarDataset, write_shards


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_pack_then_index_then_peek(place, headrace):
    for name in ("ash", "birch"):
        (place / "trees" / name).mkdir(parents=True)
        for n in range(3):
            Image.new("RGB", (12, 10), (n * 40, 0, 0)).save(place / "trees" / name / f"{n}.png")
    packed = headrace("shards", "pack", "trees", "out", "--classes", "--shuffle", "0")
    assert (packed.code, packed.err) == (0, "")
    assert packed.out.startswith("1 shards, ")
    assert len(TarDataset("out")) == 6
    again = headrace("shards", "pack", "trees", "out", "--classes")
    assert again.code == 1
    assert "--resume" in again.err
    kept = headrace("shards", "pack", "trees", "out", "--classes", "--shuffle", "0", "--resume")
    assert kept.code == 0
    (place / "out" / "00000.tar.index").unlink()
    assert headrace("shards", "index", "out").out == "1 indexes written, 0 were there\n"
    assert headrace("shards", "index", "out/*.tar").out == "0 indexes written, 1 were there\n"
    seen = headrace("peek", "out", "--json", "--out", "grid.png")
    facts = json.loads(seen.out)
    assert (facts["samples"], facts["dataset"]) == (6, "TarDataset")
    leaves = {leaf["path"]: leaf for leaf in facts["batch"]["leaves"]}
    assert leaves["batch['png']"]["shape"] == [6, 3, 10, 12]
    assert leaves["batch['cls']"]["max"] == 1
    assert (place / "grid.png").exists()


def test_peek_of_a_shard_with_pickles_says_what_keeps_a_loader_from_it(place, headrace):
    write_shards([{"pkl": b"x" * 1_000, "cls": 1}], "{}.tar")
    seen = headrace("peek", "0.tar", "--json")
    assert seen.code == 0
    facts = json.loads(seen.out)
    assert "pickles" in seen.out
    assert facts["rows"][0]["pkl"] == "1,000 bytes"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pack", "nowhere", "out"], 2, "nowhere is no directory"),
        (["pack", ".", "out", "--shard-mib", "0"], 2, "--shard-mib must be at least 1"),
        (["pack", "empty", "out"], 1, "there are no files in empty"),
        (["index", "missing.tar"], 1, "missing.tar"),
    ],
)
def test_one_line_for_what_cannot_be_done(place, headrace, arguments, code, said):
    (place / "empty").mkdir()
    outcome = headrace("shards", *arguments)
    assert outcome.code == code
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_help_shows_the_commands(headrace):
    outcome = headrace("shards")
    assert outcome.code == 0
    assert "pack" in outcome.out
    assert "index" in outcome.out
