"""User code draws from its task's generators, and finds its own where it left them."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset

from headrace import DataLoader, mersenne
from headrace.engine.order import order
from headrace.rng import BorrowedGenerators, ProcessGenerators, mix, mix_range, task_seed
from oracle import generator_states, seed_everything


def draw() -> tuple[float, ...]:
    """One number from each way into the global generators."""
    return (
        float(torch.rand(())),
        float(torch.randn(())),
        int(torch.randint(2**31, ())),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        int(np.random.randint(2**31)),
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(50),
    )


class Noisy(Dataset[Any]):
    def __init__(self, n: int = 8) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return [index, *draw()]


class NoisyStream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        first = draw()
        return ([i, *first, *draw()] for i in range(8))


class Breaking(Noisy):
    def __getitem__(self, index: int) -> Any:
        draw()
        raise OSError("lost")


def collate(samples: Any) -> Any:
    return [samples, draw()]


@pytest.fixture(params=["raw", "public"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states as memory, and through the public calls where they cannot be found."""
    if request.param == "public":
        monkeypatch.setattr(mersenne, "_find", lambda *_: None)


def with_new_generators(dataset: Any) -> None:
    """Run one task on generators that are looked for now."""
    borrowed = BorrowedGenerators(ProcessGenerators())
    saved = borrowed.save()
    try:
        borrowed.begin(99)
        draw()
        dataset()
    finally:
        borrowed.end(saved)


class TestTheUsersGenerators:
    @pytest.mark.parametrize(
        "dataset", [Noisy(), NoisyStream(), [1, 2, 3]], ids=["map", "stream", "list"]
    )
    @pytest.mark.parametrize("options", [{}, {"collate_fn": collate}, {"batch_size": None}])
    def test_are_where_they_were_whatever_user_code_draws(self, dataset: Any, options: Any) -> None:
        seed_everything(3)
        loader = DataLoader(dataset, generator=torch.Generator().manual_seed(1), **options)
        draw()
        before = generator_states()
        batches = iter(loader)
        assert generator_states() == before
        for _ in batches:
            assert generator_states() == before
        assert generator_states() == before

    def test_are_where_they_were_when_user_code_raises(self) -> None:
        seed_everything(3)
        draw()
        batches = iter(DataLoader(Breaking(), generator=torch.Generator()))
        before = generator_states()
        for error in (OSError, OSError):
            with pytest.raises(error):
                next(batches)
            assert generator_states() == before

    def test_are_where_they_were_when_user_code_is_interrupted(self) -> None:
        class Interrupted(Noisy):
            def __getitem__(self, index: int) -> Any:
                draw()
                raise KeyboardInterrupt

        seed_everything(3)
        batches = iter(DataLoader(Interrupted(), generator=torch.Generator()))
        before = generator_states()
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        assert generator_states() == before

    def test_are_where_they_were_when_user_code_seeds_them(self) -> None:
        class Seeding(Noisy):
            def __getitem__(self, index: int) -> Any:
                seed_everything(index)
                return draw()

        seed_everything(3)
        before = generator_states()
        batches = list(DataLoader(Seeding(), generator=torch.Generator()))
        assert generator_states() == before
        seed_everything(5)
        assert [float(x) for x in batches[5]] == pytest.approx(draw())

    def test_keep_the_second_half_of_a_pair_of_normal_deviates(self) -> None:
        """NumPy's, Python's and torch's generators each keep one back."""
        for before_loading in (True, False):
            seed_everything(3)
            expected = [(np.random.standard_normal(), random.gauss(0, 1)) for _ in range(3)]
            seed_everything(3)
            got = []
            for _ in range(3):
                if before_loading:
                    list(DataLoader(Noisy(2), generator=torch.Generator()))
                got.append((np.random.standard_normal(), random.gauss(0, 1)))
                list(DataLoader(Noisy(2), generator=torch.Generator()))
            assert got == expected

    def test_of_torch_keep_theirs_too(self) -> None:
        def normals(load: bool) -> list[float]:
            torch.manual_seed(4)
            made = []
            for _ in range(5):
                made.append(float(torch.randn((), dtype=torch.float64)))
                if load:
                    list(DataLoader(Noisy(2), generator=torch.Generator()))
            return made

        assert normals(True) == normals(False)

    @pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.MT19937])
    def test_of_numpy_may_be_of_another_kind(self, kind: Any) -> None:
        original = np.random.mtrand._rand._bit_generator
        list(DataLoader(Noisy(2)))
        try:
            np.random.set_bit_generator(kind(7))
            np.random.standard_normal()
            before = repr(np.random.get_state(legacy=False))
            one = list(DataLoader(Noisy(4), generator=torch.Generator().manual_seed(1)))
            assert repr(np.random.get_state(legacy=False)) == before
            np.random.rand(3)
            again = list(DataLoader(Noisy(4), generator=torch.Generator().manual_seed(1)))
            assert one == again
        finally:
            np.random.set_bit_generator(original)
        state = repr(np.random.get_state())
        list(DataLoader(Noisy(2)))
        assert repr(np.random.get_state()) == state

    @pytest.mark.usefixtures("ways")
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, 2**63), st.integers(0, 700), st.booleans())
    def test_are_put_back_from_anywhere_in_their_stream(
        self, seed: int, drawn: int, odd: bool
    ) -> None:
        seed_everything(seed)
        np.random.rand(drawn)
        torch.rand(drawn)
        for _ in range(drawn):
            random.random()
        if odd:
            np.random.standard_normal()
            random.gauss(0, 1)
        before = generator_states()
        with_new_generators(lambda: (np.random.rand(1_000), torch.rand(1_000), random.random()))
        assert generator_states() == before

    def test_is_not_disturbed_where_no_user_code_runs(self) -> None:
        """And nothing is seeded there: it would cost more than the batch."""
        data = torch.utils.data.TensorDataset(torch.arange(6))
        for dataset in (data, [1, 2, 3], range(5)):
            seed_everything(1)
            before = generator_states()
            list(DataLoader(dataset, generator=torch.Generator()))
            assert generator_states() == before


class TestTasks:
    def run(self, base: int, epochs: int = 1, dataset: Any = None, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(base)
        loader = DataLoader(dataset or Noisy(), generator=generator, **options)
        return [list(loader) for _ in range(epochs)]

    @pytest.mark.parametrize("dataset", [Noisy(), NoisyStream()], ids=["map", "stream"])
    def test_make_the_same_batches_from_the_same_seed(self, dataset: Any) -> None:
        seed_everything(1)
        one = self.run(5, dataset=dataset, batch_size=3, collate_fn=collate)
        seed_everything(2)
        draw()
        other = self.run(5, dataset=dataset, batch_size=3, collate_fn=collate)
        assert repr(one) == repr(other)
        assert repr(one) != repr(self.run(6, dataset=dataset, batch_size=3, collate_fn=collate))

    def test_do_not_depend_on_what_the_training_draws(self) -> None:
        def train(noise: bool) -> str:
            torch.manual_seed(0)
            seen = []
            for batch in DataLoader(Noisy(), batch_size=2):
                seen.append(batch)
                if noise:
                    draw()
            return repr(seen)

        assert train(True) == train(False)

    def test_depend_on_the_global_seed_without_a_generator(self) -> None:
        def train(seed: int) -> str:
            torch.manual_seed(seed)
            return repr(list(DataLoader(Noisy(), batch_size=2, shuffle=True)))

        assert train(1) == train(1)
        assert train(1) != train(2)

    def test_draw_numbers_of_their_own_in_each_step_and_epoch(self) -> None:
        epochs = self.run(5, epochs=3, batch_size=1)
        numbers = [tuple(float(x) for x in batch[1:]) for epoch in epochs for batch in epoch]
        assert len(numbers) == 24
        for column in zip(*numbers, strict=True):
            assert len(set(column)) == 24

    def test_of_samples_in_a_batch_draw_one_after_the_other(self) -> None:
        (batches,) = self.run(5, batch_size=8)
        assert all(len(set(column.tolist())) == 8 for column in batches[0][1:])

    def test_find_the_initial_seed_unchanged(self) -> None:
        seen: list[int] = []

        class Asking(Noisy):
            def __getitem__(self, index: int) -> int:
                seen.append(torch.initial_seed())
                torch.rand(3)
                seen.append(torch.initial_seed())
                return 0

        for seed in (17, 2**40 + 3, 2**63 + 5):
            torch.manual_seed(seed)
            list(DataLoader(Asking(), generator=torch.Generator()))
            assert set(seen) == {seed}
            assert torch.initial_seed() == seed
            seen.clear()

    def test_of_a_stream_begin_with_a_seed_of_their_own(self) -> None:
        """What ``iter(dataset)`` draws, such as a shuffle of shards, repeats with the seed."""
        (one,) = self.run(5, dataset=NoisyStream(), batch_size=8)
        (other,) = self.run(5, dataset=NoisyStream(), batch_size=8)
        assert repr(one) == repr(other)

    def test_give_the_same_shuffle_as_torch_with_noise_in_the_dataset(self) -> None:
        """The dataset's draws do not move the order, in torch only because it is drawn before."""
        orders = []
        for cls in (torch.utils.data.DataLoader, DataLoader):
            torch.manual_seed(4)
            orders.append([int(b[0]) for b in cls(Noisy(), shuffle=True)])
        assert orders[0] == orders[1]


class TestSeeds:
    def test_are_a_function_of_base_seed_epoch_and_step(self) -> None:
        assert task_seed(1, 2, 3) == task_seed(1, 2, 3)
        made = {
            task_seed(base, epoch, step)
            for base in (0, 1, -1, 2**63 - 1, -(2**63))
            for epoch in range(20)
            for step in [*range(100), None]
        }
        assert len(made) == 5 * 20 * 101
        assert all(0 <= seed < 2**64 for seed in made)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.lists(st.integers(-(2**63), 2**64), min_size=1, max_size=4))
    def test_mix_depends_on_every_value_and_their_order(self, values: list[int]) -> None:
        assert mix(*values) == mix(*values)
        assert mix(*values) != mix(*values, 0)
        changed = [values[0] + 1, *values[1:]]
        assert mix(*changed) != mix(*values)

    def test_bits_are_balanced(self) -> None:
        seeds = [task_seed(7, 0, step) for step in range(4_000)]
        for bit in range(64):
            ones = sum(seed >> bit & 1 for seed in seeds)
            assert 1_800 < ones < 2_200, f"bit {bit} is one in {ones} of 4000 steps"

    def test_do_not_change_from_version_to_version(self) -> None:
        """A resumed run must draw what the first one would have drawn."""
        assert task_seed(12345, 0, 0) == 12248531701917948781
        assert task_seed(12345, 1, 7) == 9945394329679531997
        assert task_seed(0, 0, None) == 3400964856525257824


@given(st.integers(0, 2**62), st.integers(1, 70), st.integers(0, 2**64 - 1))
def test_many_values_hashed_at_once_are_those_hashed_one_by_one(start, count, state):
    assert mix_range(start, count, state) == [mix(start + n, state=state) for n in range(count)]


def test_the_seeds_of_a_batchs_steps_are_asked_for_a_block_at_a_time(monkeypatch):
    asked = []

    def counted(start: int, count: int, state: int) -> list[int]:
        asked.append(start)
        return mix_range(start, count, state)

    monkeypatch.setattr(order, "mix_range", counted)
    tasks = order.Tasks(iter(range(200)), 7, 3)
    assert [task.seed for task in tasks] == [task_seed(7, 3, step) for step in range(200)]
    assert asked == [0, 64, 128, 192]
