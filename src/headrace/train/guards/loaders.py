"""The loaders: a last batch of one, validation that shuffles, a loop that waits for its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.utils.data as torch_data
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from headrace.machine import available_cores
from headrace.sampling.random import RandomSampler
from headrace.sized import length_of
from headrace.train.guards.batch_norm import training_batch_norms
from headrace.train.guards.finding import Finding

WAIT_SHARE = 0.25
WAIT_S = 2.0


def single_rows(loader: Any) -> str | None:
    """Return the line that avoids batches of one sample, None if a loader makes none.

    Said from sizes alone; what divides its own batches (a batch sampler, an iterable dataset,
    ranks) is not foretold.
    """
    plain = type(getattr(loader, "batch_sampler", None)) is torch_data.BatchSampler
    if not plain or getattr(loader, "shard", None) is not None or not length_of(loader.sampler):
        return None
    samples = len(loader.sampler)
    size = loader.batch_sampler.batch_size
    if size == 1:
        return "batch_size=1 makes batches of one sample. Write DataLoader(..., batch_size=32)"
    if loader.batch_sampler.drop_last or samples % size != 1:
        return None
    if samples == 1:
        return "the dataset has one sample. Give it more"
    other = next(s for s in range(size + 1, 2 * size + 3) if samples % s != 1)
    return (
        f"the last batch of an epoch has one sample ({samples:,} = {samples // size:,} x {size} "
        f"+ 1). Write DataLoader(..., drop_last=True), or another size: batch_size={other}"
    )


def foretell_batch_norm(
    model: nn.Module, loader: Any, report: Callable[[Finding], None]
) -> list[Any]:
    """Watch the first batch's way through BatchNorm if a batch of one sample is to come.

    Whether one sample is too few depends on what arrives there: (1, channels) is, an image is not.
    So the shapes of the first batch decide, before the first step of the optimizer. A compiled
    model does not call hooks: there it is a warning, for the kind that mostly gets (1, channels).

    Returns:
        the handles of the hooks, to be removed after the first batch.
    """
    line = single_rows(loader)
    if line is None:
        return []

    norms = training_batch_norms(model)
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()) or hasattr(
        model, "_orig_mod"
    ):
        flat = [name for name, module in norms.items() if isinstance(module, nn.BatchNorm1d)]
        if flat:
            report(Finding("batch norm", _batch_norm_text(flat[0], "mostly needs", line)))
        return []

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        def look(module: nn.Module, inputs: Any) -> None:
            values = inputs[0] if inputs else None
            if not module.training or not isinstance(values, Tensor) or values.ndim < 2:
                return
            if values.numel() == values.shape[0] * values.shape[1]:  # one value a sample
                text = _batch_norm_text(name, "needs", line)
                report(Finding("batch norm", text, is_error=True))

        return look

    return [m.register_forward_pre_hook(hook_of(name)) for name, m in norms.items()]


def _batch_norm_text(name: str, needs: str, line: str) -> str:
    return f"BatchNorm ({name!r}) {needs} more than one sample in training, and {line}."


def check_order(loader: Any) -> Finding | None:
    """Return whether a loader whose outputs are to be returned draws its samples at random."""
    sampler = _sampler_of(loader)
    if not isinstance(sampler, torch_data.WeightedRandomSampler) and not _shuffles(sampler):
        return None
    return Finding(
        "order",
        "the loader draws its samples at random, and outputs are returned in its order: nobody can "
        "tell which sample one belongs to. Write predict(DataLoader(dataset, ..., shuffle=False)).",
    )


def check_validation(loader: Any) -> Finding | None:
    """Return whether a validation loader draws its samples at random."""
    sampler = _sampler_of(loader)
    if isinstance(sampler, torch_data.WeightedRandomSampler):
        text = (
            "the validation loader draws samples with weights: its loss and metrics are those of "
            "another distribution than the data's, and differ from epoch to epoch. Write "
            "DataLoader(val_dataset, batch_size=...) without sampler="
        )
    elif _shuffles(sampler):
        text = (
            "the validation loader shuffles: that costs reads, and outputs do not stand in the "
            "order of the dataset. Write DataLoader(val_dataset, ..., shuffle=False)"
        )
    else:
        return None
    return Finding("validation", text + ".")


def _sampler_of(loader: Any) -> Any:
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    return getattr(loader, "sampler", None) if inner is None else inner


def _shuffles(sampler: Any) -> bool:
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    if isinstance(sampler, (torch_data.RandomSampler, RandomSampler)):
        return len(sampler) >= len(sampler.data_source)  # fewer: a random part, which is meant
    return False


def waited_s(loader: Any) -> float | None:
    """Return the seconds that loops have waited for a loader so far, None if it does not count."""
    statistics = getattr(loader, "statistics", None)
    return None if statistics is None else float(statistics().wait_s)


def check_waiting(loader: Any, waited: float, seconds: float) -> Finding | None:
    """Return whether an epoch of ``seconds`` waited too long for its batches."""
    if waited < WAIT_S or waited < WAIT_SHARE * seconds:
        return None
    workers, cores = loader.num_workers, max(1, int(available_cores()))
    path = loader.statistics().path
    if path in ("gather", "gather-thread"):
        line = (
            "The data lies in memory already, and the training step is shorter than the copying "
            "of its batch: write a larger batch_size"
        )
    elif workers < cores:
        line = f"Write DataLoader(..., num_workers={cores}): this process may use {cores} cores"
    else:
        line = (
            f"There are {workers} workers for {cores} cores already: make the samples cheaper "
            f"(smaller files, decoded or resized once and stored), or hold them in memory "
            f"(TensorDataset, ArrayDataset)"
        )
    return Finding(
        "waiting",
        f"the training waited {waited:.1f} s of {seconds:.1f} s ({waited / seconds:.0%}) of the "
        f"epoch for its batches. {line}.",
    )
