"""Where a training's batches come from, and what of it is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from headrace.errors import StateError
from headrace.train.randomness import loader_generators, random_states, set_random_states
from headrace.train.ranks import tell_epoch


class Feed:
    """The loaders of a training and the random numbers of this process.

    Args:
        train_loader, val_loader: what the training was given.
        device: the training's, which has random numbers of its own.
    """

    def __init__(self, train_loader: Any, val_loader: Any, device: torch.device) -> None:
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.device = device
        self.ended = False  # the loader has said that the present epoch has no more
        self._epoch_start: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None  # this rank's part of one in mid-epoch

    def epoch(self, epoch: int, done: int) -> Iterator[Any]:
        """Return an epoch's batches; of a resumed one those behind the first ``done``."""
        loader = self.train_loader
        tell_epoch(loader, epoch)
        saved, self._resumed = self._resumed, None
        self.ended = False
        if saved is not None and "epoch_start" in saved:
            self._set_random(saved["epoch_start"])
        if not _keeps_state(loader):
            self._epoch_start = self._random()
        batches: Iterator[Any] = iter(loader)
        if saved is None:
            return batches
        if "epoch_start" in saved:
            self._epoch_start = saved["epoch_start"]
            for _ in islice(batches, done):
                pass  # a loader that cannot say where it stands makes them again
        self._set_random(saved["random"])
        return batches

    def draw(self, batches: Iterator[Any], count: int) -> tuple[list[Any], Sequence[Any] | None]:
        """Return the batches of the next step, and the dataset indices of their samples."""
        if self.ended:
            return [], None
        last = getattr(self.train_loader, "last_indices", None)
        if last is None or (count == 1 and self.device.type == "cpu"):
            # A loss on the CPU is looked at in its step: its indices can be asked for then.
            group = list(islice(batches, count))
            self.ended = len(group) < count
            return group, None if last is None else _Asked(last)
        drawn = [(batch, last()) for batch in islice(batches, count)]
        self.ended = len(drawn) < count
        return [batch for batch, _ in drawn], [indices for _, indices in drawn]

    def state_dict(self, done: int) -> dict[str, Any]:
        """Return this process's part of a checkpoint behind ``done`` batches of the epoch."""
        mine: dict[str, Any] = {"random": self._random(), "batches": done}
        for name, loader in self._loaders_with_state():
            mine[name] = loader.state_dict()
        if done and not _keeps_state(self.train_loader):
            mine["epoch_start"] = self._epoch_start
        return mine

    def load_state_dict(self, mine: dict[str, Any], path: Path, *, ours: bool, done: int) -> None:
        """Put it back.

        Args:
            mine: what `state_dict` returned.
            path: the checkpoint that it stood in.
            ours: it was written by the rank of this number.
            done: the batches of the present epoch that were had; 0 between epochs.

        Raises:
            StateError: it does not fit the loaders.
        """
        for name, loader in self._loaders_with_state():
            if name in mine:
                load_into(loader, mine[name], name, path)
        if ours:
            self._set_random(mine["random"])
        if done:
            self._resumed = mine

    def _generators(self) -> list[torch.Generator]:
        both = loader_generators(self.train_loader) + loader_generators(self.val_loader)
        return list(dict.fromkeys(both))

    def _random(self) -> dict[str, Any]:
        generators = [generator.get_state() for generator in self._generators()]
        return {"process": random_states(self.device), "loaders": generators}

    def _set_random(self, states: dict[str, Any]) -> None:
        set_random_states(states["process"], self.device)
        for generator, state in zip(self._generators(), states["loaders"], strict=False):
            generator.set_state(state)

    def _loaders_with_state(self) -> list[tuple[str, Any]]:
        found = [("loader", self.train_loader)] if _keeps_state(self.train_loader) else []
        # Between its epochs a validation loader only has its count of them, if it follows from a
        # seed. Otherwise its state would put torch's generator back to before the validation.
        if _keeps_state(self.val_loader) and getattr(self.val_loader, "seed", None) is not None:
            found.append(("validation", self.val_loader))
        return found


class _Asked(Sequence[Any]):
    """What a loader says of its last batch, asked when it is wanted."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        return self._ask()


def _keeps_state(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def load_into(holder: Any, state: Any, name: str, path: Path) -> None:
    """Give a part of a training its state.

    Args:
        holder: has ``load_state_dict()``.
        state: that it once returned.
        name: of the holder, for the text.
        path: the checkpoint.

    Raises:
        StateError: it does not fit.
    """
    try:
        holder.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise StateError(
            f"the checkpoint {path} does not fit this {name}: {error}\nGive another "
            f"checkpoint_dir=, or make the {name} as it was."
        ) from error
