"""What only a device can show: batches that grow into its memory, and memory that comes back."""

import pytest
import torch
from torch import nn

from headrace import map_batches
from headrace.oom import release_memory
from headrace.tune import find_batch_size

pytestmark = pytest.mark.gpu


def test_a_model_is_moved_there_and_batches_grow():
    sizes = []

    class Model(nn.Linear):
        def forward(self, x):
            assert x.device.type == "cuda"
            sizes.append(len(x))
            return super().forward(x)

    x = torch.randn(200_000, 64)
    model = Model(64, 8)
    wanted = nn.functional.linear(x, model.weight, model.bias).detach()
    found = map_batches(model, x.numpy(), device="cuda")
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-3)
    assert sizes[0] == 4096
    assert max(sizes) > 4096
    assert torch.equal(map_batches(torch.neg, x.cuda()), -x)


def test_real_out_of_memory_is_split():
    free, _ = torch.cuda.mem_get_info()
    row = free // 8  # more than eight rows at once do not fit

    def function(batch):
        return torch.empty(len(batch) * row, dtype=torch.uint8, device="cuda")[: len(batch)] * 0 + (
            batch.to(torch.uint8)
        )

    assert map_batches(function, torch.arange(64), 64, device="cuda").tolist() == list(range(64))


def test_the_batch_size_fits_and_memory_is_given_back():
    model = nn.Linear(1024, 1024, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    release_memory("cuda")
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def step(x):
        optimizer.zero_grad()
        noise = torch.rand(len(x), 256, 1024, device="cuda")
        (model(noise) * x[:, None, None]).square().mean().backward()
        optimizer.step()

    found = find_batch_size(
        step,
        lambda n: torch.ones(n, device="cuda"),
        model=model,
        optimizer=optimizer,
        high=1 << 20,
        memory_share=0.5,
    )
    assert found.batch_size > 1
    assert any(not trial.fits for trial in found.trials)
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() <= reserved
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
