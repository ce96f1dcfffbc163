"""Out of device memory in a step: an error that names a size that fits, or a smaller step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from headrace.errors import OptionError, OutOfMemoryError
from headrace.oom import batch_rows, is_out_of_memory, release_memory, split_rows
from headrace.train.guards.batch_norm import training_batch_norms
from headrace.train.guards.finding import warn

_T = TypeVar("_T")

OnOom: TypeAlias = Literal["error", "split"]


class OomSplit:
    """Runs the forward and backward pass of a step, and says or does what helps if memory ends.

    Args:
        model: the model that is trained.
        on_oom: ``"error"`` raises an error that names a batch size that was run and fits;
            ``"split"`` cuts the batches and accumulates the gradients of the pieces.
        clear: empties the gradients, as before a step.
        device: where the model is; its cached memory is given back between attempts.
        ranks: processes that train together. Those of others wait in the middle of a step that
            fails here, so with several of them nothing is tried again.

    Raises:
        OptionError: ``"split"`` would change the result, or cannot be done.
    """

    def __init__(
        self,
        model: nn.Module | None,
        on_oom: OnOom,
        clear: Callable[[], None],
        device: torch.device | str = "cpu",
        ranks: int = 1,
    ) -> None:
        if on_oom not in ("error", "split"):
            raise OptionError(f"on_oom={on_oom!r}: write on_oom='error' or on_oom='split'.")
        self._model, self._split, self._clear = model, on_oom == "split", clear
        self._device, self._ranks = torch.device(device), ranks
        self._fits: int | None = None  # rows: what was too large once is cut from then on
        if self._split:
            self._refuse()

    def _refuse(self) -> None:
        if self._ranks > 1:
            raise OptionError(
                f"on_oom='split' works in one process, and {self._ranks} train together: the "
                f"others would wait for gradients that never come. Write a smaller batch_size, "
                f"with accumulate= for the same number of samples a step."
            )
        norms = {} if self._model is None else training_batch_norms(self._model)
        if norms:
            first = next(iter(norms))
            raise OptionError(
                f"on_oom='split' would change the result: BatchNorm ({first!r}"
                f"{f' and {len(norms) - 1} more' if len(norms) > 1 else ''}) normalises each piece "
                f"by its own statistics. Write on_oom='error' and a batch_size that fits, or use "
                f"nn.GroupNorm."
            )

    def run(self, attempt: Callable[[list[Any]], _T], batches: list[Any]) -> _T:
        """Return ``attempt(batches)``.

        Args:
            attempt: runs forward and backward of a list of batches as one step, gradients
                accumulated to the mean over all their samples; the optimizer does not step.
            batches: the batches of one step, each of shape (batch, ...).

        Raises:
            OutOfMemoryError: memory ended and ``on_oom`` is ``"error"``, or one sample does not
                fit.
        """
        saved = self._random_state() if self._split else None
        pieces = batches if self._fits is None else _cut(batches, self._fits)
        text = ""
        try:
            return attempt(pieces)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = str(error) or type(error).__name__
        # Out of the except block: the traceback held the failed attempt's tensors.
        rows = [batch_rows(batch) for batch in pieces]
        sizes = [count for count in rows if count is not None]
        if self._ranks > 1 or len(sizes) < len(rows) or not sizes:
            self._clear()
            raise OutOfMemoryError(_no_way_text(text, sizes, self._ranks))
        if saved is None:
            self._probe(attempt, pieces, max(sizes), text)
        return self._run_smaller(attempt, pieces, max(sizes), text, saved)

    def _run_smaller(
        self,
        attempt: Callable[[list[Any]], _T],
        batches: list[Any],
        rows: int,
        text: str,
        saved: list[Tensor],
    ) -> _T:
        limit, found = rows, None
        while found is None and limit > 1:
            limit = (limit + 1) // 2
            self._restore(saved)
            found = self._try(attempt, _cut(batches, limit))
        self._fits = limit
        if found is None:
            self._clear()
            raise OutOfMemoryError(_one_sample_text(text, rows))
        warn(
            f"out of memory in a batch of {rows} samples ({_first_line(text)}): from here on "
            f"batches are cut into pieces of at most {limit}, and the gradients accumulated to "
            f"the same mean. Layers that draw random numbers draw others than they would have."
        )
        return found[0]

    def _probe(
        self, attempt: Callable[[list[Any]], _T], batches: list[Any], rows: int, text: str
    ) -> NoReturn:
        """Find a batch size that runs, by halving, and raise the error that names it."""
        saved, buffers = self._random_state(), self._buffers()
        fits = rows
        found = None
        while found is None and fits > 1:
            fits //= 2
            largest = max(batches, key=lambda batch: batch_rows(batch) or 0)
            found = self._try(attempt, _cut([largest], fits)[:1])
        self._clear()
        self._restore(saved)
        for buffer, value in buffers:
            buffer.copy_(value)
        release_memory(self._device)
        if found is None:
            raise OutOfMemoryError(_one_sample_text(text, rows))
        raise OutOfMemoryError(
            f"out of memory in a batch of {rows} samples ({_first_line(text)}). A batch of {fits} "
            f"was tried and fits. Write DataLoader(..., batch_size={fits}), with "
            f"Trainer(..., accumulate={-(-rows // fits)}) for as many samples a step; or "
            f"Trainer(..., on_oom='split'). headrace.tune.find_batch_size finds the largest "
            f"that fits."
        )

    def _try(self, attempt: Callable[[list[Any]], _T], batches: list[Any]) -> tuple[_T] | None:
        self._clear()
        release_memory(self._device)
        try:
            return (attempt(batches),)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        if self._model is None:
            return []
        return [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]

    def _random_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type != "cpu":
            states.append(torch.get_device_module(self._device).get_rng_state(self._device))
        return states

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.get_device_module(self._device).set_rng_state(states[1], self._device)


def _cut(batches: list[Any], limit: int) -> list[Any]:
    """Cut the batches into pieces of at most ``limit`` rows, each batch into nearly equal ones."""
    pieces: list[Any] = []
    for batch in batches:
        rows = batch_rows(batch)
        small = rows is None or rows <= limit
        pieces += [batch] if small else split_rows(batch, -(-rows // limit))  # type: ignore[operator]
    return pieces


def _first_line(text: str) -> str:
    """Return what an out-of-memory error says first: "CUDA out of memory"."""
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def _one_sample_text(text: str, rows: int) -> str:
    return (
        f"out of memory in a batch of {rows} samples ({_first_line(text)}), and one sample alone "
        f"does not fit either: other work takes the memory, or the model is too large for it. "
        f"Look at what else runs on the device, or write Trainer(..., precision='bf16-mixed')."
    )


def _no_way_text(text: str, sizes: list[int], ranks: int) -> str:
    if ranks > 1:
        why = f"with {ranks} processes no other size can be tried in the middle of a step"
    else:
        why = "its tensors do not share a first dimension, so it cannot be cut to try a smaller one"
    size = f"a batch of {max(sizes)} samples" if sizes else "a batch"
    half = f"DataLoader(..., batch_size={max(1, max(sizes) // 2)})" if sizes else "a smaller batch"
    return f"out of memory in {size} ({_first_line(text)}); {why}. Write {half}."
