"""The reader of pickles: plain values come out, and no attack on an unpickler does anything."""

import builtins
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.data.images.unpickle import read_pickle
from headrace.errors import SourceError

PROTO = b"\x80\x02"


def read(tmp_path: Path, data: bytes) -> dict[str, Any]:
    path = tmp_path / "batch"
    path.write_bytes(data)
    return read_pickle(str(path))


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, data)
    assert str(tmp_path / "batch") in str(caught.value)
    return str(caught.value)


def in_dict(value: bytes) -> bytes:
    """A pickle of {"data": value}."""
    return PROTO + b"}U\x04data" + value + b"s."


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),  # Python 3 writes the empty one for Python 2 as a call
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.lists(inner).map(tuple)
    ),
    max_leaves=12,
)


class TestPlainValues:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(content=st.dictionaries(st.text(), PLAIN), protocol=st.integers(2, 5))
    def test_come_out_as_they_went_in(
        self, content: dict[str, Any], protocol: int, tmp_path: Path
    ) -> None:
        assert read(tmp_path, pickle.dumps(content, protocol)) == content

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_may_be_arrays_of_bytes(self, tmp_path: Path, protocol: int) -> None:
        arrays: list[Any] = [
            np.arange(200, dtype=np.uint8).reshape(20, 10),
            np.asfortranarray(np.arange(200, dtype=np.uint8).reshape(20, 10)),
            np.arange(100, dtype=np.uint8)[::2],
        ]
        for array in arrays:
            found = read(tmp_path, pickle.dumps({"data": array}, protocol))["data"]
            assert np.array_equal(found, array)

    def test_may_refer_to_each_other(self, tmp_path: Path) -> None:
        shared = ["x"]
        found = read(tmp_path, pickle.dumps({"a": shared, "b": shared}, 2))
        assert found["a"] is found["b"]


class Calls:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Slotted:
    __slots__ = ("x",)


class TestAttacks:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    @pytest.mark.parametrize(
        "call",
        [
            (os.system, "touch OWNED"),
            (subprocess.Popen, ["touch", "OWNED"]),
            (builtins.eval, "open('OWNED', 'w')"),
            (builtins.exec, "open('OWNED', 'w')"),
            (builtins.open, "OWNED", "w"),
            (builtins.getattr, os, "system"),
            (builtins.__import__, "os"),
            (pickle.loads, b"cos\nsystem\n(S'touch OWNED'\ntR."),
            (np.load, "OWNED"),
            (np.fromfile, "OWNED"),
            (np.ndarray, (10**6,)),
            (np.dtype, "O"),
            (np.frombuffer, b"abc", "u1"),
            (copyreg._reconstructor, Slotted, object, None),  # type: ignore[attr-defined]
            (bytearray, 10**12),
        ],
        ids=lambda call: f"{call[0].__module__}.{call[0].__qualname__}",
    )
    def test_that_call_something_are_refused_unrun(
        self, tmp_path: Path, call: Any, protocol: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        function, *arguments = call
        if function is builtins.getattr:
            arguments = [Path, "touch"]
        for content in (
            {"data": Calls(function, *arguments)},
            {"labels": [[(1, Calls(function, *arguments))]]},
            Calls(function, *arguments),
        ):
            refused(tmp_path, pickle.dumps(content, protocol))
        assert os.listdir(tmp_path) == ["batch"]

    @pytest.mark.parametrize(
        "name",
        [
            b"os\nsystem",
            b"posix\nsystem",
            b"builtins\neval",
            b"__builtin__\neval",
            b"numpy\nload",
            b"numpy\nndarray.__reduce__",
            b"numpy.core.multiarray\n_reconstruct.__globals__",
            b"numpy.core.multiarray\nscalar",
            b"numpy core.multiarray\n_reconstruct",
            b"_codecs\nencode.__self__",
            b"codecs\nencode",
            b"headrace.data.images.unpickle\nread_pickle",
        ],
    )
    def test_that_name_something_are_refused(self, tmp_path: Path, name: bytes) -> None:
        module, _, attribute = name.partition(b"\n")
        text = refused(tmp_path, in_dict(b"c" + name + b"\n"))
        assert "the name" in text
        stacked = b"U%c%bU%c%b\x93" % (len(module), module, len(attribute), attribute)
        assert "the name" in refused(tmp_path, in_dict(stacked))

    @pytest.mark.parametrize(
        "value",
        {
            "a call of the array type": b"cnumpy\nndarray\nK\x09\x85R",
            "a call of a value": b"K\x01)R",
            "a call of text": b"U\x06system)R",
            "a call without a tuple": b"cnumpy\ndtype\nU\x02u1R",
            "a call without arguments": b"cnumpy.core.multiarray\n_reconstruct\n)R",
            "another type to reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n"
            b"cnumpy\ndtype\nK\x00\x85U\x01b\x87R",
            "objects": b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R",
            "records": b"cnumpy\ndtype\nU\x03V10K\x00K\x01\x87R",
            "another encoding": b"c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0rot\x86R",
            "encoding of a number": b"c_codecs\nencode\nK\x01X\x06\0\0\0latin1\x86R",
            "a state for a list": b"]}U\x01aK\x01sb",
            "a state for a name": b"cnumpy\ndtype\n}U\x01aK\x01sb",
            "a state for a name in slots": b"cnumpy\ndtype\nN}U\x01aK\x01s\x86b",
            "a new object": b"cnumpy\nndarray\n)\x81",
            "a new object with keywords": b"cnumpy\nndarray\n)}\x92",
            "an instance": b"(inumpy\nndarray\n",
            "an object": b"(cnumpy\nndarray\no",
            "a persistent id": b"Pabc\n",
            "a persistent value": b"K\x01Q",
            "an extension": b"\x82\x01",
            "a long extension": b"\x84\x01\0\0\0",
            "a buffer from outside": b"\x97",
            "a set": b"\x8f",
            "text to parse": b"I" + b"9" * 10_000 + b"\n",
            "a list as a key": b"}]K\x01s",
            "a tuple as a key": b"})K\x01s",
            "half an item": b"}(K\x01u",
            "append to a dict": b"}K\x01a",
            "append to nothing": b"K\x01a",
            "an item of a list": b"]K\x01K\x02s",
            "what is not remembered": b"h\x07",
            "a mark that is not there": b"t",
            "a tuple of too much": b"\x87",
        }.items(),
        ids=lambda item: item[0],
    )
    def test_by_single_instructions_are_refused(self, tmp_path: Path, value: Any) -> None:
        refused(tmp_path, in_dict(value[1]))

    def test_through_the_registry_of_extensions_are_refused(self, tmp_path: Path) -> None:
        copyreg.add_extension("os", "system", 200)  # type: ignore[attr-defined]
        try:
            pickle.loads(b"\x80\x02\x82\xc8.")  # now it is in pickle's cache
            refused(tmp_path, in_dict(b"\x82\xc8"))
        finally:
            copyreg.remove_extension("os", "system", 200)  # type: ignore[attr-defined]

    def test_by_persistent_ids_are_refused(self, tmp_path: Path) -> None:
        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> Any:
                return ("os", "system") if value == "x" else None

        stream = io.BytesIO()
        Pickler(stream, 2).dump({"data": "x"})
        refused(tmp_path, stream.getvalue())

    @pytest.mark.parametrize("dtype", ["O", "i2", "f8", "U3", "M8[s]", [("a", "u1")]])
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_by_other_arrays_are_refused(self, tmp_path: Path, dtype: Any, protocol: int) -> None:
        array = np.zeros((2, 3), dtype)
        refused(tmp_path, pickle.dumps({"data": array}, protocol))
        refused(tmp_path, pickle.dumps({"data": [array]}, protocol))

    def test_by_shapes_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        good = pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 2)
        assert good.count(b"K\x02K\x03\x86") == 1
        for shape in (
            b"K\x02K\x04\x86",
            b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86",
            b"K\x06\x88\x86",
            b"]",
            b")",
            b"K\x06K\x01G?\xf0\0\0\0\0\0\0\x87",
            b"\x8a\x09\0\0\0\0\0\0\0\0\x01K\x00\x86",
        ):
            refused(tmp_path, good.replace(b"K\x02K\x03\x86", shape))


class TestBombs:
    @pytest.mark.parametrize(
        "value",
        {
            "text that is not there": b"T\xff\xff\xff\x7fabc",
            "bytes that are not there": b"B\xff\xff\xff\xffabc",
            "8-byte lengths": b"\x8e" + struct.pack("<Q", 2**40) + b"abc",
            "a bytearray": b"\x96" + struct.pack("<Q", 2**40),
            "a far place to remember": b"K\x01r\xff\xff\xff\x7f0",
            "text encoded over and over": b"c_codecs\nencode\nq\x00X"
            + struct.pack("<I", 1 << 20)
            + b"a" * (1 << 20)
            + b"q\x01X\x06\0\0\0latin1q\x02"
            + b"h\x00h\x01h\x02\x86R" * 500,
            "arrays of one text over and over": b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87Rq\x00"
            + b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
            + b"J\0\0\x10\0\x85q\x03T"
            + struct.pack("<I", 1 << 20)
            + b"a" * (1 << 20)
            + b"q\x04"
            + b"h\x01h\x02\x85R(K\x01h\x03h\x00\x89h\x04tb" * 500,
        }.items(),
        ids=lambda item: item[0],
    )
    def test_take_no_memory(self, tmp_path: Path, value: Any) -> None:
        tracemalloc.start()
        refused(tmp_path, in_dict(value[1]))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 << 20

    def test_of_depth_do_not_end_the_interpreter(self, tmp_path: Path) -> None:
        """In a process of its own: a stack that overflows takes the interpreter with it."""
        depth = 150_000  # 150,000 C calls deep is far beyond 8 MiB of stack
        nested = {
            "tuples": b"K\x01" + b"\x85" * depth,
            "lists": b"]" * depth + b"a" * (depth - 1),
            "a key": b"}K\x01" + b"\x85" * depth + b"K\x01s",
            "marks": b"(" * depth,
            "in itself": b"]q\x00h\x00a",
        }
        for number, value in enumerate(nested.values()):
            (tmp_path / str(number)).write_bytes(in_dict(value))
        program = (
            "from headrace.data.images.unpickle import read_pickle\n"
            "from headrace.errors import SourceError\n"
            f"for number in range({len(nested)}):\n"
            "    try:\n"
            f"        found = read_pickle({str(tmp_path)!r} + f'/{{number}}')\n"
            "        del found\n"
            "        print('read')\n"
            "    except SourceError:\n"
            "        print('refused')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["read", "read", "refused", "refused", "read"]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), protocol=st.sampled_from([2, 4, 5]))
    def test_of_any_bytes_are_an_error_or_a_dict(
        self, data: st.DataObject, protocol: int, tmp_path: Path
    ) -> None:
        content = {"data": np.zeros((2, 6), np.uint8), "labels": [1, 2], "names": ["a", b"b", 0.5]}
        broken = bytearray(pickle.dumps(content, protocol))
        for _ in range(data.draw(st.integers(1, 5))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        try:
            found = read(tmp_path, bytes(broken[: data.draw(st.integers(1, len(broken)))]))
        except SourceError:
            return
        assert type(found) is dict
