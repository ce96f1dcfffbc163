"""What the user asked for, checked before anything is computed."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.cli.problems import WrongUse


@dataclass(frozen=True)
class Settings:
    """Checked values of the options of ``headrace demo``."""

    epochs: int
    batch_size: int
    device: torch.device
    seed: int
    out: Path


def checked(
    *, epochs: int, batch_size: int, device: str, seed: int, out: Path, train_size: int
) -> Settings:
    """Return the options as :class:`Settings`; raise ``WrongUse`` at the first bad value.

    ``train_size`` is the number of training images: no batch can be larger.
    """
    if epochs < 1:
        raise WrongUse(f"--epochs must be at least 1, not {epochs}")
    if batch_size < 1:
        raise WrongUse(f"--batch-size must be at least 1, not {batch_size}")
    if batch_size > train_size:
        raise WrongUse(
            f"--batch-size must be at most {train_size} (all training images), not {batch_size}"
        )
    if not 0 <= seed < 2**63:
        raise WrongUse(f"--seed must be between 0 and 2**63 - 1, not {seed}")
    found = _usable_device(device)
    _make_writable(out)
    return Settings(epochs, batch_size, found, seed, out)


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WrongUse(
            f"--device {name!r} is not a device; for example cpu, cuda, cuda:1, mps"
        ) from None
    try:
        # Only a round trip tells: a device may be known to torch and absent, or hold no values.
        torch.ones(1, device=device).item()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise WrongUse(f"--device {name} cannot be used here: {reason}; try --device cpu") from None
    return device


def _make_writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise WrongUse(f"--out {out} is a file; it must be a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Writing is the only sure test: permissions say yes to root on a read-only disk.
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise WrongUse(f"--out {out} cannot be written to: {error.strerror}") from None
