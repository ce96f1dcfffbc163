"""Mini-batch training as one writes it by hand."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from headrace import DataLoader
from headrace.cli.demo.data import Digits
from headrace.cli.demo.display import Display, EpochResult
from headrace.cli.demo.settings import Settings

_PEAK_LEARNING_RATE = 5e-3


@dataclass
class History:
    """What happened, in order."""

    epochs: list[EpochResult] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)


def train_loader(digits: Digits, settings: Settings) -> DataLoader[Any]:
    """Return the loader of shuffled mini-batches; its order depends on the seed alone."""
    return DataLoader(
        digits.train,
        batch_size=settings.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(settings.seed),
    )


@dataclass
class Training:
    """One training of ``model``, in place; ``history`` fills as it goes."""

    model: nn.Module
    digits: Digits
    settings: Settings
    display: Display
    history: History = field(default_factory=History)

    def run(self) -> History:
        """Train for the epochs asked for."""
        batches = train_loader(self.digits, self.settings)
        epochs = self.settings.epochs
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, _PEAK_LEARNING_RATE, total_steps=epochs * len(batches)
        )
        for number in range(1, epochs + 1):
            self.display.epoch_begins(number)
            started = time.perf_counter()
            train_loss = self._train_epoch(batches, optimizer, schedule)
            trained = time.perf_counter()
            validation_loss, accuracy = self._validate()
            result = EpochResult(
                number=number,
                train_loss=train_loss,
                validation_loss=validation_loss,
                accuracy=accuracy,
                samples_per_s=len(self.digits.train) / (trained - started),
                seconds=time.perf_counter() - started,
            )
            self.history.epochs.append(result)
            self.display.epoch_ends(result)
        return self.history

    def _train_epoch(
        self, batches: DataLoader[Any], optimizer: Optimizer, schedule: LRScheduler
    ) -> float:
        """Train for one epoch; return the mean loss of a sample."""
        self.model.train()
        device = self.settings.device
        loss_sum, seen, started = 0.0, 0, time.perf_counter()
        for images, labels in batches:
            loss = cross_entropy(self.model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            # Reading the number makes the CPU wait for a GPU: the price of a live display.
            value = loss.item()
            # The last batch may be smaller: weigh by samples, or its few would count for more.
            loss_sum += value * len(labels)
            seen += len(labels)
            self.history.step_losses.append(value)
            self.display.step(value, seen / (time.perf_counter() - started))
        return loss_sum / seen

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Return the mean loss and the share of right answers on the validation images."""
        self.model.eval()
        loss_sum, right = 0.0, 0
        for images, labels in DataLoader(self.digits.validation, batch_size=256):
            scores: Tensor = self.model(images.to(self.settings.device))
            wanted = labels.to(self.settings.device)
            loss_sum += cross_entropy(scores, wanted, reduction="sum").item()
            right += int((scores.argmax(1) == wanted).sum())
        size = len(self.digits.validation)
        return loss_sum / size, right / size
