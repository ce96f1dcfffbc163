"""Padded, jagged and packed batches: the right values, masks and types, and back to the samples."""

import pickle
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from headrace import DataLoader, default_collate
from headrace.collate import (
    Masked,
    Packed,
    Padded,
    PaddedMasked,
    collate_by_key,
    jagged_collate,
    pack_collate,
    pad_collate,
    unpad,
)
from headrace.collate import pad as pad_module
from headrace.errors import MissingKeyError, NotCollatableError, ShapeMismatchError
from headrace.memory import lending
from headrace.sampling.buckets import BucketBatchSampler
from headrace.sampling.packing import PackedBatchSampler

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]
SHAPES = st.tuples(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sampled_from([(), (1,), (3,), (2, 3)])
)


def sequences(lengths, trailing, dtype):
    g = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 2, (n, *trailing), generator=g).to(dtype) for n in lengths]


def raw(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).view(-1).view(torch.uint8)


def same(one, other):
    """Equal bit for bit; torch compares neither 8-bit floats nor NaN."""
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    return one.numel() == 0 or torch.equal(raw(one), raw(other))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    SHAPES,
    st.sampled_from(DTYPES),
    st.sampled_from([0, 1]),
    st.sampled_from(["right", "left"]),
    st.sampled_from([None, 1, 4, 8]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, pad_module.SHORT_BYTES]),
)
def test_padded_values_lengths_and_mask_are_right(
    shape, dtype, value, side, multiple_of, lengths, mask, short_bytes
):
    samples = sequences(*shape, dtype)
    collate = pad_collate(value, side, multiple_of, lengths, mask)
    before, pad_module.SHORT_BYTES = pad_module.SHORT_BYTES, short_bytes
    try:
        batch = collate(samples)
    finally:
        pad_module.SHORT_BYTES = before
    kind = {(1, 1): PaddedMasked, (1, 0): Padded, (0, 1): Masked, (0, 0): torch.Tensor}
    assert type(batch) is kind[lengths, mask]
    values = batch if type(batch) is torch.Tensor else batch.values
    longest = max(map(len, samples))
    time = longest if multiple_of is None else -(-longest // multiple_of) * multiple_of
    assert values.shape == (len(samples), time, *shape[1])
    assert values.dtype == dtype
    assert values.is_contiguous()
    padding = torch.full((), value).to(dtype)
    for row, sample in zip(values, samples, strict=True):
        n = len(sample)
        inside = row[:n] if side == "right" else row[time - n :]
        outside = row[n:] if side == "right" else row[: time - n]
        assert same(inside, sample)
        assert same(outside, padding.expand_as(outside))
    if lengths:
        assert batch.lengths.dtype == torch.int64
        assert batch.lengths.tolist() == [len(s) for s in samples]
        back = unpad(values, batch.lengths, side)
        assert all(same(b, s) for b, s in zip(back, samples, strict=True))
    if mask:
        assert batch.mask.dtype == torch.bool
        assert batch.mask.shape == values.shape[:2]
        assert batch.mask.sum(1).tolist() == [len(s) for s in samples]
        assert same(values[batch.mask], torch.cat(samples))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SHAPES, st.sampled_from(DTYPES))
def test_jagged_and_packed_invert_to_the_samples(shape, dtype):
    samples = sequences(*shape, dtype)
    jagged = jagged_collate(samples)
    assert jagged.layout == torch.jagged
    assert jagged.dtype == dtype
    limits = jagged.offsets().tolist()
    parts = [jagged.values()[a:b] for a, b in pairwise(limits)]
    assert all(same(p, s) for p, s in zip(parts, samples, strict=True))
    assert all(same(p, s) for p, s in zip(jagged.unbind(), samples, strict=True))

    packed = pack_collate(samples)
    assert type(packed) is Packed
    assert all(same(p, s) for p, s in zip(packed.unpack(), samples, strict=True))
    assert packed.position_ids.tolist() == [t for s in samples for t in range(len(s))]
    assert packed.position_ids.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.tolist() == limits
    assert packed.max_seqlen == max(map(len, samples))


def test_a_jagged_batch_knows_its_longest_sequence():
    batch = jagged_collate([torch.ones(2, 3), torch.ones(5, 3), torch.ones(0, 3)])
    padded = torch.nested.to_padded_tensor(batch, 0.0)
    assert padded.sum((1, 2)).tolist() == [6, 15, 0]
    assert padded.shape == (3, 5, 3)


class Row(NamedTuple):
    tokens: object
    label: int


COLLATES = {
    "pad": (pad_collate(), lambda batch: unpad(*batch)),
    "jagged": (jagged_collate, lambda batch: list(batch.unbind())),
    "pack": (pack_collate, lambda batch: batch.unpack()),
}


@pytest.mark.parametrize("name", COLLATES)
def test_every_sequence_in_a_sample_is_collated_and_the_rest_by_default(name):
    collate, back = COLLATES[name]

    def sequence(n):
        return torch.arange(n)

    def check(batch):
        assert [t.tolist() for t in back(batch)] == [[0, 1, 2], [0]]

    tokens, label, scalar = collate(
        [(sequence(3), 7, torch.tensor(1.5)), (sequence(1), 8, torch.tensor(2.5))]
    )
    check(tokens)
    assert label.tolist() == [7, 8]
    assert scalar.tolist() == [1.5, 2.5]
    batch = collate([{"a": {"b": sequence(3)}, "id": "x"}, {"a": {"b": sequence(1)}, "id": "y"}])
    check(batch["a"]["b"])
    assert list(batch["id"]) == ["x", "y"]
    batch = collate([Row(sequence(3), 7), Row(sequence(1), 8)])
    assert type(batch) is Row
    check(batch.tokens)
    check(collate([[0, 1, 2], [0]]))
    check(collate([np.arange(3), np.arange(1)]))
    check(collate([np.arange(3), torch.arange(1)]))


@pytest.mark.parametrize("name", COLLATES)
def test_lists_arrays_and_views_become_the_tensors_one_expects(name):
    collate, back = COLLATES[name]
    assert back(collate([[], [1, 2]]))[1].dtype == torch.int64
    assert back(collate([[1.5], []]))[0].dtype == torch.float32
    assert [len(t) for t in back(collate([[], []]))] == [0, 0]
    read_only = np.arange(4.0)
    read_only.flags.writeable = False
    parts = back(collate([read_only, np.arange(8.0)[::-2], np.arange(8.0)[::2]]))
    assert [t.tolist() for t in parts] == [[0, 1, 2, 3], [7, 5, 3, 1], [0, 2, 4, 6]]


@pytest.mark.parametrize("name", COLLATES)
def test_a_gradient_flows_through(name):
    collate, back = COLLATES[name]
    samples = [torch.ones(3, 2, requires_grad=True), torch.ones(1, 2)]
    sum(t.sum() for t in back(collate(samples))).backward()
    assert samples[0].grad.tolist() == [[1, 1]] * 3


class Recorder:
    """Lends memory and counts it."""

    def __init__(self):
        self.lent = []

    def empty(self, shape, dtype):
        tensor = torch.full(shape, 1, dtype=dtype)  # not clean: what is not written shows
        self.lent.append(tensor)
        return tensor


@pytest.mark.parametrize("trailing", [(), (600,)])
@pytest.mark.parametrize("name", COLLATES)
def test_batches_are_written_to_lent_memory(name, trailing):
    collate, back = COLLATES[name]
    samples = [torch.rand(n, *trailing) for n in (3, 5, 4)]
    recorder = Recorder()
    with lending(recorder):
        batch = collate(samples)
    values = batch.values() if name == "jagged" else batch.values
    assert values.data_ptr() in {t.data_ptr() for t in recorder.lent}
    assert all(same(a, b) for a, b in zip(back(batch), samples, strict=True))


def test_the_functions_can_be_pickled():
    collate = collate_by_key(
        {"x": pad_collate(-1, mask=True), "y": pack_collate, "z": jagged_collate},
        rest=default_collate,
    )
    samples = [{"x": [1], "y": [2], "z": [3], "w": 4}, {"x": [1, 2], "y": [], "z": [3], "w": 5}]
    one, other = collate(samples), pickle.loads(pickle.dumps(collate))(samples)
    assert one["x"].values.tolist() == other["x"].values.tolist() == [[1, -1], [1, 2]]
    assert other["w"].tolist() == [4, 5]


def test_by_key_uses_each_function_for_its_key():
    collate = collate_by_key({"tokens": pad_collate(-1), "label": default_collate})
    batch = collate([{"tokens": [1, 2], "label": 0}, {"tokens": [3], "label": 1}])
    assert list(batch) == ["tokens", "label"]
    assert batch["tokens"].values.tolist() == [[1, 2], [3, -1]]
    assert batch["label"].tolist() == [0, 1]
    places = collate_by_key((pad_collate(), sum))
    tokens, total = places([([1, 2], 3), ([3], 4)])
    assert tokens.lengths.tolist() == [2, 1]
    assert total == 7


def test_by_key_other_keys_are_an_error_dropped_or_collated():
    samples = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    with pytest.raises(MissingKeyError, match="no function for the key 'b' of sample 0"):
        collate_by_key({"a": default_collate})(samples)
    assert list(collate_by_key({"a": default_collate}, rest="drop")(samples)) == ["a"]
    batch = collate_by_key({"a": default_collate}, rest=default_collate)(samples)
    assert batch["b"].tolist() == [2, 4]
    for order in (1, -1):
        uneven = [{"a": 1}, {"a": 3, "b": 4}][::order]
        with pytest.raises(MissingKeyError, match="'b'"):
            collate_by_key({"a": default_collate}, rest=default_collate)(uneven)


class Samples(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


PAD = pad_collate()


@pytest.mark.parametrize(
    ("collate", "samples", "error", "says"),
    [
        (
            PAD,
            [{"x": torch.zeros(2, 3)}, {"x": torch.zeros(2, 4)}],
            ShapeMismatchError,
            r"\(2, 3\) and \(2, 4\) at sample\['x'\] \(dataset indices 4 and 5\)",
        ),
        (
            PAD,
            [(1, torch.zeros(2)), (1, torch.zeros(2).int())],
            NotCollatableError,
            r"float32 and torch.int32 at sample\[1\] \(dataset indices 4 and 5\)",
        ),
        (
            PAD,
            [{"x": [1]}, {"y": [1]}],
            MissingKeyError,
            r"key 'x' .* not in sample 1 \(dataset index 5\)",
        ),
        (PAD, [([1], 2), ([1],)], ShapeMismatchError, r"2 entries and sample 1 has 1"),
        (PAD, [[1], 1], NotCollatableError, "sample 0 of the batch is a list and sample 1 a int"),
        (PAD, [{"x": [1]}, [1]], NotCollatableError, "is a dict and sample 1 a list"),
        (PAD, [([1], 2), {"x": 1}], NotCollatableError, "is a tuple and sample 1 a dict"),
        (PAD, [torch.zeros(2), torch.zeros(())], NotCollatableError, r"Tensor of shape \(\)"),
        (PAD, [torch.zeros(2, 2).to_sparse()] * 2, NotCollatableError, "sparse"),
        (pad_collate(-1), [torch.zeros(2, dtype=torch.uint8)] * 2, NotCollatableError, "uint8"),
        (
            collate_by_key({"x": PAD, "y": default_collate}),
            [{"x": [1], "y": 1}, {"x": [1]}],
            MissingKeyError,
            r"'y' is not in sample 1 .*\(dataset index 5\)",
        ),
        (
            collate_by_key({"x": PAD}),
            [{"x": torch.zeros(2, 3)}, {"x": torch.zeros(2)}],
            ShapeMismatchError,
            r"at sample\['x'\] \(dataset indices 4 and 5\)",
        ),
        (collate_by_key({"x": PAD}), [1, 2], NotCollatableError, "is a int"),
        (collate_by_key((PAD, PAD)), [([1], [2]), ([1],)], ShapeMismatchError, "has 1 entries"),
        (collate_by_key((PAD, PAD)), [1, 2], ShapeMismatchError, "it is a int"),
    ],
)
def test_errors_name_key_index_and_shape(collate, samples, error, says):
    loader = DataLoader(
        Samples([None] * 4 + samples), sampler=[4, 5], batch_size=2, collate_fn=collate
    )
    with pytest.raises(error, match=says):
        next(iter(loader))


def test_an_error_in_a_function_by_key_keeps_its_type_and_names_the_key():
    def broken(samples):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        collate_by_key({"x": broken})([{"x": 1}])
    assert any("sample['x']" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"padding_value": [torch.zeros(1)]}, TypeError, r"collate_fn=pad_collate\(\)"),
        ({"padding_value": "0"}, TypeError, "must be a number"),
        ({"side": "top"}, ValueError, '"right" or "left"'),
        ({"multiple_of": 0}, ValueError, "multiple_of must be 1 or more"),
    ],
)
def test_padding_options_that_cannot_be_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        pad_collate(**options)


def test_options_by_key_that_cannot_be_are_refused():
    with pytest.raises(TypeError, match="needs a function for 'x'"):
        collate_by_key({"x": "pad"})
    with pytest.raises(TypeError, match="rest must be"):
        collate_by_key({"x": PAD}, rest="keep")
    with pytest.raises(TypeError, match="rest must be"):
        collate_by_key((PAD,), rest="drop")


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (-100, torch.int64, True),
        (255, torch.uint8, True),
        (256, torch.uint8, False),
        (2, torch.bool, False),
        (True, torch.bool, True),
        (0.5, torch.int32, False),
        (float("nan"), torch.int32, False),
        (float("nan"), torch.float32, True),
        (float("-inf"), torch.float16, True),
        (1e30, torch.float16, False),
        (0.1, torch.bfloat16, True),
        (1j, torch.float32, False),
        (1j, torch.complex64, True),
    ],
)
def test_a_padding_value_has_to_fit_the_type(value, dtype, fits):
    samples = [torch.zeros(2, dtype=dtype), torch.zeros(1, dtype=dtype)]
    if not fits:
        with pytest.raises(NotCollatableError, match="cannot be held"):
            pad_collate(value)(samples)
        return
    held = pad_collate(value)(samples).values[1, 1]
    assert same(held, torch.full((), value, dtype=dtype))


def test_with_the_samplers_in_a_loader():
    g = torch.Generator().manual_seed(0)
    data = Samples([(torch.randint(1, 9, (n,), generator=g), n % 2) for n in range(1, 60)])
    lengths = [len(x) for x, _ in data.samples]
    sampler = BucketBatchSampler(lengths, max_tokens=200)
    seen = 0
    for (values, sizes), _ in DataLoader(data, batch_sampler=sampler, collate_fn=pad_collate()):
        assert values.numel() <= 200
        assert ((values > 0).sum(1) == sizes).all()
        seen += len(sizes)
    assert seen == 59
    rows = PackedBatchSampler(lengths, max_tokens=100)
    total = 0
    for packed, labels in DataLoader(data, batch_sampler=rows, collate_fn=pack_collate):
        assert len(packed.values) <= 100
        assert len(labels) == len(packed.cu_seqlens) - 1
        total += len(packed.values)
    assert total == sum(lengths)


class Attention(torch.nn.Module):
    """One layer of self-attention with two heads, for the three forms of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(8, 24)
        self.out = torch.nn.Linear(8, 8)

    def heads(self, x):
        return (h.unflatten(-1, [2, 4]).transpose(-3, -2) for h in self.qkv(x).chunk(3, -1))

    def attend(self, x, mask=None):
        q, k, v = self.heads(x)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(-3, -2).flatten(-2))


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning"
)  # of torch's own
@pytest.mark.parametrize("side", ["right", "left"])
def test_attention_gives_the_same_for_padded_jagged_and_packed(side):
    model = Attention().eval()
    samples = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 9, 1, 6)]
    with torch.no_grad():
        expected = [model.attend(s) for s in samples]

        padded = pad_collate(side=side, mask=True)(samples)
        y = model.attend(padded.values, padded.mask[:, None, None, :])
        from_padded = unpad(y, padded.lengths, side)

        jagged = jagged_collate(samples)
        parts = [h.contiguous() for h in model.qkv(jagged).chunk(3, -1)]
        q, k, v = (h.unflatten(-1, [2, 4]).transpose(1, 2) for h in parts)
        # torch asks for a GPU to choose another, even where there is none.
        with sdpa_kernel(SDPBackend.MATH):
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        from_jagged = model.out(y.transpose(1, 2).flatten(-2)).unbind()

        packed = pack_collate(samples)
        which = torch.searchsorted(packed.cu_seqlens, torch.arange(len(packed.values)), right=True)
        y = model.attend(packed.values, which[:, None] == which[None, :])
        from_packed = packed._replace(values=y).unpack()
    for outputs in (from_padded, from_jagged, from_packed):
        for output, wanted in zip(outputs, expected, strict=True):
            assert torch.allclose(output, wanted, atol=1e-5)
