"""Members of archives: as tarfile finds them, in every format, and behind what is damaged."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.data.shards.headers import BLOCK, members_of

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def scan(data):
    return members_of(lambda offset, size: data[offset : offset + size], len(data))


def archive_of(files, format):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


def found_in(data):
    found = scan(data)
    return list(zip(found.names, found.offsets, found.sizes, strict=True))


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1)
PATHS = st.lists(NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=6).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(PATHS, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_that_tarfile_finds(files, format):
    data = archive_of(files, format)
    assert found_in(data) == by_tarfile(data)
    assert scan(data).has_end
    assert not scan(data).faults


@pytest.mark.parametrize("format", FORMATS)
def test_names_longer_than_the_field_for_them(format):
    names = ["a" * 60 + "/" + "b" * 80 + ".txt", "short.txt"]
    if format != tarfile.USTAR_FORMAT:
        names.append("c" * 3000 + ".txt")
    data = archive_of([(name, b"x") for name in names], format)
    assert [name for name, _, _ in found_in(data)] == names


def test_a_size_that_octal_digits_do_not_hold_is_read_from_base_256_and_from_pax():
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("large.bin")
        info.size = 9 << 30
        header = info.tobuf(format)
        whole = len(header) + info.size

        def read(offset, size, header=header):
            return header[offset : offset + size].ljust(size, b"\0")

        found = members_of(read, whole + 2 * BLOCK)
        assert list(found.sizes) == [9 << 30]
        assert list(found.offsets) == [len(header)]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_the_tar_program_writes(tmp_path, format):
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").write_text("x" * number * 300)
    os.symlink("0.txt", folder / "link.txt")
    os.link(folder / "1.txt", folder / "hard.txt")
    with open(folder / "sparse.bin", "wb") as file:
        for at in range(0, 1 << 22, 1 << 17):
            file.seek(at)
            file.write(b"y" * 4096)
    path = tmp_path / "x.tar"
    options = ["--sparse"] if format in ("gnu", "posix") else []
    command = ["tar", f"--format={format}", *options, "-cf", path, "-C", tmp_path, "files"]
    subprocess.run(command, check=True)
    data = path.read_bytes()
    expected = by_tarfile(data)
    sparse = {name for name, _, _ in expected if name.endswith("sparse.bin") and options}
    assert found_in(data) == [m for m in expected if m[0] not in sparse]
    found = scan(data)
    assert found.left_out == {
        "link": 1,
        "hard link": 1,
        **({"sparse file": 1} if sparse else {}),
    }
    assert found.has_end
    assert not found.faults


def three():
    return archive_of([(f"{n}.txt", bytes([65 + n]) * 700) for n in range(3)], tarfile.GNU_FORMAT)


def test_a_damaged_header_is_a_fault_and_the_next_whole_one_is_found():
    data = bytearray(three())
    second = BLOCK + 1024
    data[second + 3] ^= 1
    found = scan(bytes(data))
    assert found.names == ["0.txt", "2.txt"]
    assert [(fault.offset, fault.name) for fault in found.faults] == [(second, "")]
    assert "checksum" in found.faults[0].reason


def test_content_that_looks_like_a_header_is_content():
    inner = three()
    data = archive_of([("a.tar", inner), ("b.txt", b"x")], tarfile.GNU_FORMAT)
    assert found_in(data) == by_tarfile(data)
    assert len(found_in(data)) == 2


@pytest.mark.parametrize("cut", [BLOCK + 100, BLOCK + 1024 + BLOCK + 5])
def test_an_archive_cut_short_in_a_member_names_it(cut):
    found = scan(three()[:cut])
    assert len(found.faults) == 1
    assert found.faults[0].name == f"{len(found.names)}.txt"
    assert "cut short" in found.faults[0].reason


def test_an_archive_cut_short_in_a_header_says_so():
    found = scan(three()[: BLOCK + 1024 + 100])
    assert [fault.reason for fault in found.faults] == [
        "the archive is cut short: 100 bytes of a header"
    ]


def test_an_archive_cut_short_between_members_has_no_end():
    found = scan(three()[: BLOCK + 1024])
    assert (found.names, found.faults, found.has_end) == (["0.txt"], [], False)


def test_archives_joined_are_seen_by_what_is_behind_the_end():
    large = archive_of([("x.txt", b"x" * (2 << 20))], tarfile.GNU_FORMAT)
    assert scan(three() + large).behind_end_bytes > 1 << 20
    assert scan(three()).behind_end_bytes == 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_raises_or_goes_on_for_ever(draw):
    data = bytearray(three())
    for _ in range(draw.draw(st.integers(1, 20))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    end = draw.draw(st.integers(0, len(data)))
    found = scan(bytes(data[:end]))
    for offset, size in zip(found.offsets, found.sizes, strict=True):
        assert offset >= 0
        assert size >= 0
        assert offset + size <= end
