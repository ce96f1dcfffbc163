"""Mixed precision: what computes in 16 bits, scaled gradients, a schedule that waits for steps."""

import pytest
import torch
from torch import nn

from headrace.errors import OptionError
from headrace.train import Trainer

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.dtypes = set()

    def forward(self, x):
        out = self.layer(x)
        self.dtypes.add(out.dtype)
        return out


def make(precision, scheduler=None, **options):
    torch.manual_seed(0)
    model = Watched()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = scheduler and scheduler(optimizer)
    chosen = {"device": "cpu", "progress": False, "scheduler": scheduler, **options}
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, precision=precision, **chosen)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_the_model_computes_in_its_precision(precision, dtype):
    trainer = make(precision)
    trainer.fit(BATCHES, BATCHES, epochs=2)
    assert trainer.model.dtypes == {dtype}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer.predict([x for x, _ in BATCHES]).dtype == torch.float32
    assert trainer.evaluate(BATCHES)["loss"] < 0.7


def test_bfloat16_is_torchs_own_recipe():
    trainer = make("bf16-mixed")
    history = trainer.fit(BATCHES)
    torch.manual_seed(0)
    model = Watched()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for x, y in BATCHES:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [s["loss"] for s in history.steps] == losses


def overflow_at(step, trainer):
    """Have the backward pass of one step overflow, as float16 does."""
    calls = []

    def scale(grad):
        calls.append(grad)
        return grad * float("inf") if len(calls) == step else grad

    trainer.model.layer.weight.register_hook(scale)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_skipped_step_is_not_scheduled(clip_norm):
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    trainer = make("16-mixed", schedule, clip_norm=clip_norm, guards=False)
    overflow_at(2, trainer)
    before = []
    trainer.updater.optimizer.register_step_post_hook(lambda *_: before.append(1))
    trainer.fit(BATCHES)
    assert len(before) == 2  # of three batches
    assert trainer.updater.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**2
    assert trainer.updater.precision.scaler.get_scale() == 65536 / 2
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_gradients_are_clipped_after_they_are_unscaled():
    norms = []
    trainer = make("16-mixed", clip_norm=0.01)
    trainer.updater.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
        )
    )
    trainer.fit(BATCHES)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_accumulation_in_float16_is_that_of_the_big_batch():
    ours = make("16-mixed", accumulate=3)
    ours.fit(BATCHES)
    theirs = make("16-mixed")
    theirs.fit([(X, Y)])
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"precision": "fp16"}, {"strategy": "fsdp"}, {"accumulate": 0}, {"log_every": 1.5}]
)
def test_options_that_cannot_be(options):
    chosen = {"precision": "32-true", **options}
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        make(**chosen)
