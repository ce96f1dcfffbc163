"""What a batch weighs, whatever it holds."""

import pytest
import torch

from headrace.engine.making.weight import Scale
from headrace.tree import size_bytes

SPARSE = torch.eye(4).to_sparse()
ROW = torch.ones(4)


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(ROW, id="a tensor"),
        pytest.param([ROW, ROW.double()], id="a list"),
        pytest.param({"a": ROW, "b": [ROW, ROW]}, id="a dict of lists"),
        pytest.param([SPARSE, ROW], id="a sparse tensor, whose bytes torch does not say"),
        pytest.param({"a": SPARSE}, id="a sparse tensor in a dict"),
        pytest.param(SPARSE, id="a sparse tensor alone"),
        pytest.param(["text", ROW], id="a text"),
        pytest.param([ROW] * 40, id="many tensors"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_is_what_its_tensors_weigh(batch, exact):
    assert Scale(exact)(batch, 4) == size_bytes(batch)
