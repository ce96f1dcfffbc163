"""Errors of a model or a loss over types and indices: which line to write, in torch's own error."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from headrace.tree import leaves

_TYPES = re.compile(r"dtype|data ?type|scalar type|[Ii]nput type|not implemented for|bool tensor")


def explain_inputs(error: Exception, model: Any, inputs: Any) -> None:
    """Add to a model's error which line gives it inputs of the types, or indices, that it takes."""
    if not isinstance(model, nn.Module):
        return
    tensors = [leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor)]
    if isinstance(error, IndexError):
        _say(error, _out_of_table(str(error), model, tensors))
    elif _TYPES.search(str(error)):
        _say(error, _other_type(str(error), model, tensors))


def explain_targets(error: Exception, outputs: Any, targets: Any) -> None:
    """Add to a loss function's error which line gives it targets of the type that it takes."""
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not both or outputs.dtype == targets.dtype or not _TYPES.search(str(error)):
        return
    to = ".long()" if re.search(r"\b(Long|Int)\b", str(error)) else _cast(outputs.dtype)
    if targets.dtype != torch.int64 or to != ".long()":
        _say(
            error,
            f"the targets are {targets.dtype} and the outputs {outputs.dtype}. Write "
            f"targets{to}, best in the dataset.",
        )


def _say(error: Exception, text: str | None) -> None:
    """Put a line behind an error's text: there it is seen wherever the error is."""
    if text is not None:
        error.args = (f"{error}\nheadrace: {text}",)


def _other_type(said: str, model: nn.Module, tensors: list[Tensor]) -> str | None:
    indices = "indices" in said and "Long" in said
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for leaf in tensors:
        if indices and leaf.dtype not in (torch.int64, torch.int32):
            what, to = "an Embedding takes int64", ".long()"
        elif indices or wanted in (None, leaf.dtype):
            continue
        else:
            what, to = f"the model's parameters {wanted}", _cast(wanted)
            to += " / 255" if leaf.dtype == torch.uint8 else ""
        return (
            f"the inputs are {leaf.dtype}, and {what}. For batches (x, y) write "
            f"DataLoader(..., batch_transform=lambda b: (b[0]{to}, b[1])), or x{to} where the "
            f"model is given x."
        )
    return None


def _cast(wanted: Any) -> str:
    return ".float()" if wanted == torch.float32 else f".to({wanted})"


def _out_of_table(said: str, model: nn.Module, tensors: list[Tensor]) -> str | None:
    whole = [t for t in tensors if t.dtype in (torch.int64, torch.int32) and t.numel()]
    tables = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if "index out of range" not in said or not whole or not tables:
        return None
    low, high = min(int(t.min()) for t in whole), max(int(t.max()) for t in whole)
    short = {n: m for n, m in tables.items() if low < 0 or high >= m.num_embeddings}
    if not short:
        return None
    name, table = next(iter(short.items()))
    return (
        f"the inputs hold indices from {low} to {high}, and the Embedding {name!r} has "
        f"{table.num_embeddings} rows, 0 to {table.num_embeddings - 1}. Write nn.Embedding("
        f"{high + 1}, ...), or number them from 0."
    )
