"""Braces, patterns, directories and lists of shards."""

import subprocess

import pytest

from headrace.data.shards.addresses import find_shards, written_out
from headrace.data.stores.remote import Stores
from headrace.errors import SourceError

from .conftest import write_tar


def shard_paths(addresses, ending):
    return [place.address for place in find_shards(addresses, ending, Stores())]


BRACES = [
    "{000..011}.tar",
    "{0..3}",
    "{8..11}",
    "{08..11}",
    "{3..1}",
    "{0..10..5}",
    "a{x,y}b{1..2}",
    "plain",
    "{-1..1}",
]


@pytest.mark.parametrize("address", BRACES)
def test_braces_are_written_out_as_a_shell_writes_them(address):
    told = subprocess.run(
        ["bash", "-c", f"echo {address}"], capture_output=True, text=True, check=True
    )
    assert sorted(written_out(address)) == sorted(told.stdout.split())


@pytest.mark.parametrize("address", ["{000..146}.tar", "x{0..3}", "{a,b}/{00..02}.tar"])
def test_the_order_of_braces_is_that_of_the_shell(address):
    told = subprocess.run(
        ["bash", "-c", f"echo {address}"], capture_output=True, text=True, check=True
    )
    assert list(written_out(address)) == told.stdout.split()


def test_one_a_list_a_pattern_a_directory(tmp_path):
    paths = [write_tar(tmp_path / f"{n}.tar", []) for n in (2, 0, 1)]
    for name in (".hidden.tar", "0.tar.index", "readme.txt"):
        (tmp_path / name).write_text("x")
    every = sorted(paths)
    assert shard_paths(tmp_path, ".tar") == every
    assert shard_paths(f"{tmp_path}/*.tar", ".tar") == every
    assert shard_paths(f"{tmp_path}/{{0..2}}.tar", ".tar") == every
    assert shard_paths(f"file://{tmp_path}/0.tar", ".tar") == every[:1]
    assert shard_paths([paths[0], f"{tmp_path}/{{0,1}}.tar"], ".tar") == paths


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ([], "there are no shards"),
        ("{0..100000000}.tar", "no range of at most 1,000,000"),
        ("{0..9..0}.tar", "no range"),
        ("{a,b{1..2}}.tar", "braces within braces"),
        ("empty", "no file in the directory"),
        ("*.nothing", "no file matches"),
    ],
)
def test_what_names_no_shard_is_an_error(tmp_path, monkeypatch, address, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=said):
        shard_paths(address, ".tar")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"3\.tar"):
        shard_paths(f"{tmp_path}/3.tar", ".tar")
