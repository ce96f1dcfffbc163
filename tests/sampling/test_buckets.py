"""Length buckets: nothing lost, no limit broken, still a shuffle, even over ranks."""

import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.sampling.buckets import BucketBatchSampler

ERROR_RATE = 1e-4

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=80)
LIMITS = st.one_of(
    st.fixed_dictionaries({"batch_size": st.integers(1, 20)}),
    st.fixed_dictionaries({"max_tokens": st.integers(60, 400)}),
    st.fixed_dictionaries({"max_tokens": st.integers(60, 400), "batch_size": st.integers(1, 20)}),
    st.fixed_dictionaries(
        {
            "max_ratio": st.sampled_from([1.0, 1.02, 1.5, 3.0]),
            "min_batch_size": st.integers(1, 6),
        },
        optional={"max_tokens": st.integers(60, 400), "batch_size": st.integers(6, 20)},
    ),
)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def log_normal(n, seed=0, longest=4096):
    lengths = np.random.default_rng(seed).lognormal(np.log(200) - 0.5, 1, n)
    return np.clip(np.round(lengths), 1, longest).astype(np.int64)


def check_limits(
    batch, lengths, batch_size=None, max_tokens=None, max_ratio=None, min_batch_size=1
):
    of = lengths[batch]
    assert batch_size is None or len(batch) <= batch_size
    assert max_tokens is None or len(batch) * of.max() <= max_tokens
    assert max_ratio is None or len(batch) <= min_batch_size or of.max() <= max_ratio * of.min()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, LIMITS, st.booleans(), st.sampled_from([None, 0.0, 0.04, 0.5]), st.integers(0, 9))
def test_every_sample_once_within_the_limits_and_as_many_batches_as_promised(
    lengths, limits, shuffle, spread, seed
):
    options = {"generator": generator(seed), "spread": spread} if shuffle else {"shuffle": False}
    sampler = BucketBatchSampler(lengths, **limits, **options)
    lengths = np.array(lengths)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
        assert all(type(i) is int for b in batches for i in b)
        for batch in batches:
            check_limits(batch, lengths, **limits)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LENGTHS, LIMITS, st.booleans(), st.integers(0, 9))
def test_drop_last_leaves_out_less_than_a_batch(lengths, limits, shuffle, seed):
    assume("batch_size" in limits or "max_tokens" in limits)
    options = {"generator": generator(seed)} if shuffle else {"shuffle": False}
    whole = BucketBatchSampler(lengths, **limits, **options)
    sampler = BucketBatchSampler(lengths, **limits, **options, drop_last=True)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(whole) - 1 <= len(sampler) <= len(whole)
    seen = [i for b in batches for i in b]
    assert len(set(seen)) == len(seen)
    lengths = np.array(lengths)
    for batch in batches:
        check_limits(batch, lengths, **limits)
    if set(limits) == {"batch_size"}:
        assert len(seen) == len(lengths) // limits["batch_size"] * limits["batch_size"]


def test_drop_last_leaves_out_others_in_each_epoch():
    sampler = BucketBatchSampler(
        np.arange(1, 36), batch_size=8, drop_last=True, generator=generator(1)
    )
    missing = np.zeros(35)
    for _ in range(2000):
        seen = np.concatenate(list(sampler))
        assert len(seen) == 32
        missing += np.bincount(np.setdiff1d(np.arange(35), seen), minlength=35)
    assert stats.chisquare(missing).pvalue > ERROR_RATE


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LENGTHS, LIMITS, st.integers(2, 5), st.booleans(), st.booleans(), st.integers(0, 9))
def test_over_ranks_every_sample_once_and_equally_many_batches(
    lengths, limits, ranks, shuffle, drop_last, seed
):
    assume(not drop_last or "batch_size" in limits or "max_tokens" in limits)
    options = {"shuffle": shuffle, "drop_last": drop_last, "num_replicas": ranks}
    try:
        samplers = [
            BucketBatchSampler(
                lengths, **limits, **options, rank=r, generator=generator(seed) if shuffle else None
            )
            for r in range(ranks)
        ]
    except ValueError as error:
        whole = len(lengths) % ranks == 0 or limits.get("batch_size", 0) > 1
        possible = set(limits) == {"batch_size"} and len(lengths) >= ranks and whole
        if "cannot be shared evenly" in str(error) and not (possible or drop_last):
            return
        raise
    batches = [list(s) for s in samplers]
    assert {len(b) for b in batches} == {len(samplers[0])}
    seen = [i for rank in batches for b in rank for i in b]
    assert len(set(seen)) == len(seen)
    assert drop_last or sorted(seen) == list(range(len(lengths)))
    lengths = np.array(lengths)
    for batch in (b for rank in batches for b in rank):
        assert batch
        check_limits(batch, lengths, **limits)


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("n", [5_000, 50_000])
def test_over_ranks_the_tokens_of_a_step_are_within_5_percent(n, ranks):
    lengths = log_normal(n)
    sizes, seen = [], []
    for rank in range(ranks):
        sampler = BucketBatchSampler(
            lengths, max_tokens=16384, generator=generator(), num_replicas=ranks, rank=rank
        )
        batches = list(sampler)
        sizes.append([len(b) * lengths[b].max() for b in batches])
        seen += [i for b in batches for i in b]
    assert sorted(seen) == list(range(n))
    sizes = np.array(sizes)
    assert sizes.max() <= 16384
    assert np.all(sizes.min(0) >= 0.95 * sizes.max(0))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(2, 5))
def test_over_ranks_the_batches_of_a_step_have_equally_many_samples(n, size, ranks):
    assume(n >= ranks and (size > 1 or n % ranks == 0))
    samplers = [
        BucketBatchSampler(
            range(n), batch_size=size, num_replicas=ranks, rank=r, generator=generator()
        )
        for r in range(ranks)
    ]
    for step in zip(*samplers, strict=True):
        assert max(map(len, step)) - min(map(len, step)) <= 1


def test_over_ranks_more_tokens_are_as_likely_on_one_as_on_another():
    lengths = log_normal(20_000)
    totals = np.zeros(4)
    for seed in range(50):
        samplers = [
            BucketBatchSampler(
                lengths, max_tokens=16384, generator=generator(seed), num_replicas=4, rank=r
            )
            for r in range(4)
        ]
        sizes = np.array([[lengths[b].sum() for b in s] for s in samplers])
        totals += np.bincount(sizes.argmax(0), minlength=4)
    assert stats.chisquare(totals).pvalue > ERROR_RATE


def test_shard_makes_the_sampler_of_a_rank():
    lengths = log_normal(2000)
    whole = BucketBatchSampler(lengths, max_tokens=8192, generator=generator())
    for rank in range(3):
        expected = BucketBatchSampler(
            lengths, max_tokens=8192, generator=generator(), num_replicas=3, rank=rank
        )
        sharded = whole.shard(rank, 3)
        sharded.generator = generator()
        assert list(sharded) == list(expected)
    with pytest.raises(ValueError, match="rank 1 of 3 already"):
        whole.shard(1, 3).shard(0, 2)


def test_the_promised_figures_on_a_tenth_of_the_benchs_data():
    lengths = log_normal(100_000)
    sampler = BucketBatchSampler(lengths, max_tokens=16384, generator=generator())
    batches = list(sampler)
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert 1 - lengths.sum() / padded <= 0.03
    place = np.repeat(np.arange(len(batches)), [len(b) for b in batches])
    order = np.concatenate(batches)
    # Four standard deviations: one seed in 15,000. The lengths of a batch are alike, so there it is
    # the number of batches that counts.
    assert abs(np.corrcoef(place, lengths[order])[0, 1]) < 4 / np.sqrt(len(batches))
    assert abs(np.corrcoef(place, order)[0, 1]) < 4 / np.sqrt(len(order))


def test_the_company_of_a_sample_is_chance():
    lengths = [10] * 60
    sampler = BucketBatchSampler(lengths, batch_size=6, generator=generator())
    together, place = np.zeros(60), np.zeros(10)
    for _ in range(3000):
        batches = list(sampler)
        at = next(k for k, b in enumerate(batches) if 0 in b)
        place[at] += 1
        together += np.bincount(batches[at], minlength=60)
    assert stats.chisquare(place).pvalue > ERROR_RATE
    assert stats.chisquare(together[1:]).pvalue > ERROR_RATE


def test_spread_mixes_and_pads():
    lengths = log_normal(20_000)
    padding = []
    for spread in (0.0, 0.04, 0.2):
        sampler = BucketBatchSampler(
            lengths, max_tokens=16384, spread=spread, generator=generator()
        )
        padded = sum(len(b) * lengths[b].max() for b in sampler)
        padding.append(1 - lengths.sum() / padded)
    assert padding == sorted(padding)


def test_an_epoch_is_a_function_of_the_generator_and_each_is_another():
    lengths = log_normal(3000)
    one, other = (
        BucketBatchSampler(lengths, max_tokens=8192, generator=generator()) for _ in range(2)
    )
    first, second = list(one), list(one)
    assert first == list(other) != second
    state = one.generator.get_state()
    third = list(one)
    one.generator.set_state(state)
    assert list(one) == third
    copy = pickle.loads(pickle.dumps(one))
    assert list(copy) == list(one)


def test_the_plan_is_what_is_iterated():
    sampler = BucketBatchSampler(log_normal(3000), max_tokens=8192, generator=generator())
    batches = list(sampler)
    sampler.generator = generator()
    indices, offsets = sampler.plan(sampler.draw_seed())
    assert [b.tolist() for b in np.split(indices, offsets[1:-1])] == batches


def test_one_number_is_drawn_from_the_global_generator_at_the_first_batch():
    sampler = BucketBatchSampler([1, 2, 3], batch_size=2)
    torch.manual_seed(1)
    iterator = iter(sampler)
    before = torch.get_rng_state()
    next(iterator)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(torch.get_rng_state(), after)
    list(BucketBatchSampler([1, 2, 3], batch_size=2, shuffle=False))
    assert torch.equal(torch.get_rng_state(), after)


def test_without_shuffle_the_longest_come_first_ties_in_their_order():
    sampler = BucketBatchSampler([5, 9, 5, 7, 9], batch_size=2, shuffle=False)
    assert list(sampler) == [[1, 4], [3, 0], [2]]


def test_the_rule_of_one_and_a_half():
    lengths = [10, 11, 12, 15, 16, 30, 31, 100]
    sampler = BucketBatchSampler(lengths, max_ratio=1.5, min_batch_size=2, shuffle=False)
    assert [[lengths[i] for i in b] for b in sampler] == [[100, 31], [30, 16], [15, 12, 11, 10]]


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.3, 1.0])
def test_the_ratio_holds_whatever_counts_as_equal(spread):
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    sampler = BucketBatchSampler(lengths, max_ratio=1.5, spread=spread, generator=generator())
    for batch in sampler:
        check_limits(batch, lengths, max_ratio=1.5)
    # log(300) / log(1.5) = 14 bands; a class wider than the ratio would be cut to pieces.
    assert len(sampler) <= 35


def test_a_ratio_alone_that_makes_a_huge_batch_warns():
    with pytest.warns(UserWarning, match="5,000 samples.*max_tokens="):
        BucketBatchSampler([10] * 5000, max_ratio=1.5)


def test_oversize_samples_are_named_or_skipped_and_counted():
    lengths = [5, 200, 7, 300]
    with pytest.raises(ValueError, match=r"sample 1 alone has 200 tokens.*\(2 samples do\)"):
        BucketBatchSampler(lengths, max_tokens=100)
    sampler = BucketBatchSampler(lengths, max_tokens=100, oversize="skip")
    assert sampler.skipped == 2
    assert sorted(i for b in sampler for i in b) == [0, 2]
    with pytest.raises(ValueError, match="every sample"):
        BucketBatchSampler([200], max_tokens=100, oversize="skip")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing bounds a batch"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"max_tokens": 1.5}, "max_tokens must be a positive integer"),
        ({"max_ratio": 0.5}, "1 or more, got 0.5"),
        ({"max_ratio": float("nan")}, "1 or more, got nan"),
        ({"batch_size": 4, "min_batch_size": 2}, "does nothing without max_ratio"),
        ({"batch_size": 4, "min_batch_size": 5, "max_ratio": 2}, "more than batch_size=4"),
        ({"batch_size": 4, "oversize": "skip"}, "does nothing without max_tokens"),
        ({"max_tokens": 9, "oversize": "drop"}, 'must be "raise" or "skip"'),
        ({"max_ratio": 1.5, "drop_last": True}, "drop_last does nothing"),
        ({"batch_size": 4, "shuffle": False, "spread": 0.1}, "spread= does nothing"),
        ({"batch_size": 4, "shuffle": False, "generator": generator()}, "generator= does nothing"),
        ({"batch_size": 4, "spread": -1}, "spread must be from 0 to 1"),
        ({"batch_size": 4, "key": len}, "key= does nothing with lengths="),
        ({"batch_size": 4, "cache": "x"}, "cache= does nothing with lengths="),
        ({"batch_size": 4, "dataset": [1]}, "both lengths and dataset"),
        ({"batch_size": 4, "lengths": None}, "neither lengths and dataset"),
        ({"batch_size": 4, "lengths": None, "dataset": [1]}, "needs key="),
        ({"batch_size": 4, "lengths": []}, "one number per sample"),
        ({"batch_size": 4, "lengths": [[1]]}, r"shape \(1, 1\)"),
        ({"batch_size": 4, "lengths": [3, -1]}, "sample 1 has -1"),
        ({"batch_size": 4, "num_replicas": 0}, "num_replicas must be a positive"),
        ({"batch_size": 4, "num_replicas": 2, "rank": 2}, "from 0 to 1"),
        ({"batch_size": 4, "num_replicas": 3}, "cannot be shared evenly"),
    ],
)
def test_options_that_cannot_be_say_what_to_write(options, says):
    with pytest.raises(ValueError, match=says):
        BucketBatchSampler(**{"lengths": [1, 2], **options})


def test_lengths_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="integers, got float64"):
        BucketBatchSampler([1.5, 2.0], batch_size=2)


class Texts(torch.utils.data.Dataset):
    """Reads are counted, and draw random numbers."""

    def __init__(self, n=50):
        self.n = n
        self.reads = 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        torch.rand(1)
        np.random.rand()
        return torch.zeros(i % 7 + 1), i


def length_of(sample):
    return len(sample[0])


def test_lengths_are_measured_once_without_disturbing_the_generators():
    texts = Texts()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    sampler = BucketBatchSampler(dataset=texts, key=length_of, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert sampler.lengths.tolist() == [i % 7 + 1 for i in range(50)]
    assert texts.reads == 50
    BucketBatchSampler(dataset=texts, key=length_of, batch_size=8)
    assert texts.reads == 50
    texts.n = 51
    BucketBatchSampler(dataset=texts, key=length_of, batch_size=8)
    assert texts.reads == 101


def test_lengths_are_kept_in_a_file(tmp_path):
    path = tmp_path / "lengths.npz"
    first = BucketBatchSampler(dataset=Texts(), key=length_of, batch_size=4, cache=path)
    texts = Texts()
    second = BucketBatchSampler(dataset=texts, key=length_of, batch_size=4, cache=path)
    assert texts.reads == 0
    assert np.array_equal(first.lengths, second.lengths)
    assert [p.name for p in tmp_path.iterdir()] == ["lengths.npz"]
    with pytest.raises(ValueError, match="holds 50 lengths, the dataset 40 samples"):
        BucketBatchSampler(dataset=Texts(40), key=length_of, batch_size=4, cache=path)
    with pytest.raises(ValueError, match=r"measured by key .*length_of, not by"):
        BucketBatchSampler(dataset=Texts(), key=lambda s: 1, batch_size=4, cache=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="holds no lengths"):
        BucketBatchSampler(dataset=Texts(), key=length_of, batch_size=4, cache=path)


def test_a_key_that_returns_no_integer_is_named():
    with pytest.raises(TypeError, match=r"key\(dataset\[0\]\) returned Tensor"):
        BucketBatchSampler(dataset=Texts(), key=lambda s: s[0] / 2, batch_size=4)
    with pytest.raises(TypeError, match="returned float"):
        BucketBatchSampler(dataset=[[1]], key=lambda s: 1.5, batch_size=4)


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    from headrace.sampling import measure

    monkeypatch.setattr(measure, "QUIET_S", 0)
    monkeypatch.setattr(measure, "PROGRESS_EVERY_S", 0)
    BucketBatchSampler(dataset=Texts(), key=length_of, batch_size=4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    BucketBatchSampler(dataset=Texts(), key=length_of, batch_size=4)
    assert "measuring lengths [##############################] 100%" in capsys.readouterr().err
