"""Programs as people write them for torch: they move over by their imports, to the same numbers."""

import math
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from oracle import assert_programs_agree


def blobs(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    y = torch.randint(3, (n,), generator=generator)
    return torch.randn(n, 20, generator=generator) + y[:, None], y


def train(loader: Any, epochs: int = 2, dropout: float = 0.3) -> Any:
    """Mini-batch training whose model draws random numbers too: losses, and the weights."""
    model = nn.Sequential(nn.Linear(20, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 3))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return [losses, [p.detach().clone() for p in model.parameters()]]


def test_train_on_tensors() -> None:
    losses, _ = assert_programs_agree(
        lambda loader: train(loader(TensorDataset(*blobs()), batch_size=32, shuffle=True))
    )
    assert losses[-1] < losses[0]
    assert len(losses) == 20


def test_train_with_a_generator_and_drop_last() -> None:
    def program(loader: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        made = loader(
            TensorDataset(*blobs()), 32, shuffle=True, drop_last=True, generator=generator
        )
        return [train(made), torch.rand(3, generator=generator)]

    assert_programs_agree(program)


def test_split_into_training_and_validation() -> None:
    def program(loader: Any) -> Any:
        data = TensorDataset(*blobs())
        training, validation = random_split(data, [0.8, 0.2])
        trained = train(loader(training, batch_size=16, shuffle=True))
        return [trained, [y for _, y in loader(validation, batch_size=64)]]

    assert_programs_agree(program)


def test_train_on_a_dataset_of_ones_own() -> None:
    class Blobs(Dataset[Any]):
        def __init__(self, transform: Any = None) -> None:
            self.x, self.y = (t.numpy() for t in blobs())
            self.transform = transform

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> Any:
            x = torch.from_numpy(self.x[index])
            return self.transform(x) if self.transform else x, int(self.y[index])

    for transform in (None, lambda x: (x - x.mean()) / x.std()):
        assert_programs_agree(
            lambda loader, t=transform: train(loader(Blobs(t), batch_size=32, shuffle=True))
        )


def test_balance_classes_with_weights() -> None:
    def program(loader: Any) -> Any:
        x, y = blobs()
        weights = (1.0 / torch.bincount(y).double())[y]
        sampler = WeightedRandomSampler(weights, len(weights))
        return train(loader(TensorDataset(x, y), batch_size=32, sampler=sampler))

    assert_programs_agree(program)


def test_cross_validate_with_subset_samplers() -> None:
    def program(loader: Any) -> Any:
        data = TensorDataset(*blobs())
        folds = np.array_split(np.random.permutation(len(data)), 3)
        results = []
        for fold in range(3):
            rest = np.concatenate([f for i, f in enumerate(folds) if i != fold])
            sampler = SubsetRandomSampler(rest.tolist())
            results.append(train(loader(data, batch_size=50, sampler=sampler), epochs=1))
            held = Subset(data, folds[fold].tolist())
            results.append([y for _, y in loader(held, batch_size=64)])
        return results

    assert_programs_agree(program)


def test_pad_texts_in_a_collate_function() -> None:
    texts = ["a few words", "more words than that", "one", "two words"] * 5
    vocabulary = {w: i for i, w in enumerate(sorted({w for t in texts for w in t.split()}))}

    class Texts(Dataset[Any]):
        def __len__(self) -> int:
            return len(texts)

        def __getitem__(self, index: int) -> Any:
            return torch.tensor([vocabulary[w] for w in texts[index].split()]), index % 2

    def collate(samples: Any) -> Any:
        words, labels = zip(*samples, strict=True)
        lengths = torch.tensor([len(w) for w in words])
        return nn.utils.rnn.pad_sequence(words, batch_first=True), lengths, torch.tensor(labels)

    assert_programs_agree(
        lambda loader: list(loader(Texts(), batch_size=6, shuffle=True, collate_fn=collate))
    )
    assert_programs_agree(
        lambda loader: list(loader(Texts(), batch_size=4, collate_fn=lambda s: s[0][0]))
    )


def test_read_a_stream() -> None:
    class Lines(IterableDataset[Any]):
        def __init__(self, start: int, end: int) -> None:
            self.start, self.end = start, end

        def __iter__(self) -> Iterator[Any]:
            info = torch.utils.data.get_worker_info()
            assert info is None
            for i in range(self.start, self.end):
                yield {"id": i, "text": f"line {i}", "sqrt": math.sqrt(i)}

    assert_programs_agree(lambda loader: list(loader(Lines(3, 20), batch_size=4)))
    assert_programs_agree(lambda loader: list(loader(Lines(3, 20), batch_size=None)))
    assert_programs_agree(lambda loader: list(loader(Lines(3, 20), batch_size=4, drop_last=True)))


def test_rows_of_dicts_named_tuples_and_mixed_types() -> None:
    row = namedtuple("row", "image label name")

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 13

        def __getitem__(self, i: int) -> Any:
            return {
                "row": row(np.full((2, 2), i, np.uint8), np.int64(i), f"{i}.png"),
                "boxes": [torch.ones(4) * i, (i, i / 2)],
                "flag": i % 2 == 0,
            }

    assert_programs_agree(lambda loader: list(loader(Rows(), batch_size=5, shuffle=True)))


def test_a_sampler_and_a_batch_sampler_of_ones_own() -> None:
    class ByLabel(Sampler[list[int]]):
        def __init__(self, labels: torch.Tensor, size: int) -> None:
            self.labels, self.size = labels, size

        def __iter__(self) -> Iterator[list[int]]:
            for label in self.labels.unique():
                members = (self.labels == label).nonzero().flatten()
                for part in members[torch.randperm(len(members))].split(self.size):
                    yield part.tolist()

        def __len__(self) -> int:
            counts = torch.bincount(self.labels)
            return int((-(-counts // self.size)).sum())

    def program(loader: Any) -> Any:
        x, y = blobs()
        made = loader(TensorDataset(x, y), batch_sampler=ByLabel(y, 20))
        assert len(made) == len(list(made))
        return train(made)

    assert_programs_agree(program)

    class EveryThird(Sampler[int]):
        def __init__(self, n: int) -> None:
            self.n = n

        def __iter__(self) -> Iterator[int]:
            return iter(range(0, self.n, 3))

        def __len__(self) -> int:
            return len(range(0, self.n, 3))

    assert_programs_agree(
        lambda loader: train(loader(TensorDataset(*blobs()), 16, sampler=EveryThird(300)))
    )


def test_several_datasets_as_one() -> None:
    def program(loader: Any) -> Any:
        x, y = blobs()
        first, second = TensorDataset(x[:100], y[:100]), TensorDataset(x[100:], y[100:])
        stacked = StackDataset(image=x, label=y)
        return [
            train(loader(ConcatDataset([first, second]), batch_size=32, shuffle=True)),
            train(loader(first + second, batch_size=32)),
            list(loader(stacked, batch_size=100, shuffle=True)),
        ]

    assert_programs_agree(program)


def test_distributed_samplers_epoch_by_epoch() -> None:
    def program(loader: Any) -> Any:
        data = TensorDataset(*blobs())
        seen = []
        for rank in range(3):
            sampler = DistributedSampler(data, num_replicas=3, rank=rank, seed=5)
            made = loader(data, batch_size=16, sampler=sampler)
            for epoch in range(2):
                sampler.set_epoch(epoch)
                seen.append(torch.cat([y for _, y in made]))
        return seen

    assert_programs_agree(program)


def test_the_best_known_recipe_for_tensors() -> None:
    def program(loader: Any) -> Any:
        data = TensorDataset(*blobs())
        order = torch.randperm(len(data)).split(32)
        batches = BatchSampler(RandomSampler(data), 32, drop_last=False)
        return [
            train(loader(data, batch_size=None, sampler=order)),
            train(loader(data, batch_size=None, sampler=batches)),
        ]

    assert_programs_agree(program)


def test_an_endless_loader() -> None:
    def program(loader: Any) -> Any:
        made = loader(TensorDataset(*blobs(10)), batch_size=4, shuffle=True)

        def endless() -> Iterator[Any]:
            while True:
                yield from made

        return [batch for batch, _ in zip(endless(), range(8), strict=False)]

    assert_programs_agree(program)


def test_one_batch_to_look_at() -> None:
    def program(loader: Any) -> Any:
        made = loader(TensorDataset(*blobs()), batch_size=4, shuffle=True)
        return [next(iter(made)), next(iter(made)), torch.rand(2), len(made)]

    assert_programs_agree(program)


def test_two_loaders_in_step() -> None:
    def program(loader: Any) -> Any:
        labelled = loader(TensorDataset(*blobs(60)), batch_size=4, shuffle=True)
        unlabelled = loader(blobs(90)[0], batch_size=6, shuffle=True)
        return [list(pair) for pair in zip(labelled, unlabelled, strict=True)]

    assert_programs_agree(program)


def test_leave_an_epoch_early_and_start_again() -> None:
    def program(loader: Any) -> Any:
        made = loader(TensorDataset(*blobs()), batch_size=32, shuffle=True)
        seen = []
        for epoch in range(3):
            for step, batch in enumerate(made):
                if step == epoch:
                    break
                seen.append(batch)
        return seen

    assert_programs_agree(program)


@pytest.mark.parametrize("seed", range(3))
def test_reproduce_a_run_from_a_seed(seed: int) -> None:
    def program(loader: Any) -> Any:
        torch.manual_seed(seed)
        made = loader(TensorDataset(*blobs()), batch_size=32, shuffle=True)
        return train(made)

    assert_programs_agree(program)


def test_edit_the_dataset_between_epochs() -> None:
    """Pseudo-labels: the training writes into what it reads."""

    def program(loader: Any) -> Any:
        data = TensorDataset(*blobs())
        made = loader(data, batch_size=32, shuffle=True)
        first = train(made, epochs=1)
        data.tensors[1][:100] = 0
        data.tensors = (data.tensors[0] * 2, data.tensors[1])
        return [first, train(made, epochs=1)]

    assert_programs_agree(program)


def test_a_dataset_that_grows() -> None:
    def program(loader: Any) -> Any:
        replay: list[torch.Tensor] = [torch.zeros(2)]
        made = loader(replay, batch_size=3, shuffle=True)
        seen = []
        for step in range(6):
            seen.append(list(made))
            replay.append(torch.full((2,), float(step)))
        return seen

    assert_programs_agree(program)
