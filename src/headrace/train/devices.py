"""Devices, precision and strategy, from Lightning Fabric."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from headrace.errors import OptionError
from headrace.extras import import_extra
from headrace.machine import device_here

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KINDS = ("cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def launch(device: str, devices: int, precision: str, strategy: str) -> Fabric:
    """Return a Fabric whose processes are there.

    Under torchrun they are torchrun's, whatever ``devices`` says; elsewhere ``devices > 1`` starts
    this script again for each further one.

    Raises:
        OptionError: a value that cannot be.
    """
    for name, value, allowed in (
        ("precision", precision, PRECISIONS),
        ("strategy", strategy, STRATEGIES),
    ):
        if value not in allowed:
            raise OptionError(
                f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}. "
                f"Write Trainer(..., {name}={allowed[0]!r})."
            )
    asked_for = os.environ.get(_NVML)
    lightning = import_extra("lightning_fabric", "train")
    kind, number = _kind_and_number(device)
    options: dict[str, Any] = {"devices": [int(number)] if number else devices}
    world = int(os.environ.get("WORLD_SIZE", "1")) if _under_torchrun() else 1
    if world > 1:
        if number and kind != "cpu":
            raise OptionError(
                f"device={device!r} is one device, and torchrun has started {world} processes. "
                f"Write Trainer(..., device={kind!r})."
            )
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        options = {"devices": local, "num_nodes": world // local}
        strategy = "ddp" if strategy == "auto" else strategy
    if precision != "32-true":
        # Fabric itself would turn float16 on a CPU into bfloat16.
        plugins = import_extra("lightning_fabric.plugins", "train")
        options["plugins"] = plugins.MixedPrecision(precision, kind)
    fabric: Fabric = lightning.Fabric(accelerator=kind, strategy=strategy, **options)
    with _without_banner():
        fabric.launch()
    if asked_for is None:
        # Fabric sets it when it is imported, to find devices without waking CUDA. They are found,
        # and optimizers ask in each step: 0.3 ms a time on a machine without the library.
        os.environ.pop(_NVML, None)
    return fabric


def device_of(device: Any, function: str) -> torch.device:
    """Return a device as torch has it, with its number: "cuda" is "cuda:0".

    Args:
        device: what was given to ``function`` as its ``device=``.
        function: its name, for the message.

    Raises:
        OptionError: torch knows no such device, or finds none on this machine.
    """
    return torch.empty(0, device=device_here(device, function)).device


def _kind_and_number(device: str) -> tuple[str, str]:
    kind, _, number = device.partition(":")
    if kind == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = "cpu" if found is None or found.type not in KINDS else found.type
    if kind not in KINDS or (number and not number.isdigit()):
        raise OptionError(
            f"device={device!r} is none that a Trainer trains on: 'auto', 'cpu', 'cuda', 'cuda:1' "
            f"or 'mps'. Write Trainer(..., device='auto')."
        )
    device_here(f"{kind}:{number}" if number else kind, "Trainer")
    return kind, "" if kind == "cpu" else number  # there is one CPU, "cpu:0" in torch's terms


@contextmanager
def _without_banner() -> Iterator[None]:
    """Keep Fabric from telling, in each process, that processes have met."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def _under_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def leave_group_at_exit(release: Callable[[], None]) -> None:
    """Leave the group of processes before Python goes down.

    A thread of gloo lets go of a collective's tensors after it has told that it is done, and aborts
    the process where Python is gone by then. The group's end waits for its threads, and comes when
    nothing holds the group any more.

    Args:
        release: gives up what holds the group.
    """

    def leave() -> None:
        # After an error the others may be in a collective: to wait for them could hang.
        if hasattr(sys, "last_value"):
            return
        release()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)
