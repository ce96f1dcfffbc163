"""The Trainer's loop is the one written by hand: losses, weights, modes, epochs, metrics."""

import copy
import re
from functools import partial

import pytest
import torch
import torch.utils.data
import torchmetrics
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import OptionError, TrainingError
from headrace.train import Callback, Trainer, train_epoch
from headrace.train.checks import check_loss_module

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
DATA = TensorDataset(X, Y)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def make(model=None, loss_fn=None, lr=0.05, **options):
    model = model or net()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    chosen = {"device": "cpu", "progress": False, **options}
    return Trainer(model, loss_fn or nn.CrossEntropyLoss(), optimizer, **chosen)


@pytest.mark.parametrize("loader_class", [DataLoader, torch.utils.data.DataLoader])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_bit_for_bit_the_loop_by_hand(loader_class, clip_norm):
    def loaders():
        torch.manual_seed(7)
        return (
            loader_class(DATA, batch_size=8, shuffle=True),
            loader_class(DATA, batch_size=20),
        )

    train_loader, val_loader = loaders()
    model = net()
    trainer = make(model, clip_norm=clip_norm)
    torch.manual_seed(2)
    history = trainer.fit(train_loader, val_loader, epochs=3)

    theirs = net()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)
    train_loader, val_loader = loaders()
    torch.manual_seed(2)
    losses, validated = [], []
    for _ in range(3):
        theirs.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(theirs(x), y)
            loss.backward()
            if clip_norm:
                nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
            optimizer.step()
            losses.append(loss.item())
        theirs.eval()
        total = 0.0
        with torch.no_grad():
            for x, y in val_loader:
                total += nn.functional.cross_entropy(theirs(x), y).item() * len(x)
        validated.append(total / 50)

    assert [s["loss"] for s in history.steps] == losses
    assert [e["val_loss"] for e in history.epochs] == pytest.approx(validated, rel=1e-12)
    ours, wanted = model.state_dict(), theirs.state_dict()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_a_list_of_batches_is_a_loader():
    history = make().fit(list(zip(X.split(16), Y.split(16), strict=True)), epochs=2)
    assert len(history.steps) == 8


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "overfit_one_batch", "epoch"])
@pytest.mark.parametrize("kind", ["dataset", "tensor", "array"])
def test_a_dataset_is_no_loader(method, kind):
    """Its samples would be taken for batches, and the model would learn nonsense."""
    given = {"dataset": DATA, "tensor": X, "array": X.numpy()}[kind]
    call = partial(train_epoch, step=len) if method == "epoch" else getattr(make(), method)
    name = "train_loader" if method == "fit" else "loader"
    order = ", shuffle=True" if method == "fit" else ""
    wanted = {
        "dataset": f"TensorDataset, whose samples .* DataLoader(dataset, batch_size=32{order})",
        "tensor": "Tensor of shape (50, 6), .* DataLoader(TensorDataset(x), batch_size=256)",
        "array": "ndarray of shape (50, 6), .* DataLoader(ArrayDataset(x), batch_size=256)",
    }[kind]
    words = re.escape(f"{name} is a {wanted}").replace(r"\.\*", ".*")
    with pytest.raises(OptionError, match=words):
        call(given)


def test_what_yields_batches_is_a_loader():
    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(X.split(16), Y.split(16), strict=True)

    trainer = make()
    loaders = [DataLoader(DATA, 16), Batches(), list(Batches())]
    losses = [trainer.evaluate(loader)["loss"] for loader in loaders]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(OptionError, match="val_loader is a TensorDataset"):
        trainer.fit(loaders[0], DATA)


def test_the_step_may_be_a_function_of_the_batch():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    calls = []

    def step(model, batch):
        calls.append(len(batch["a"]))
        return nn.functional.cross_entropy(model(batch["a"]), batch["b"])

    trainer = Trainer(model, None, optimizer, step=step, device="cpu", progress=False)
    batches = [{"a": x, "b": y} for x, y in zip(X.split(20), Y.split(20), strict=True)]
    ours = trainer.fit(batches)
    theirs = make().fit([(b["a"], b["b"]) for b in batches])
    assert ours.steps == theirs.steps
    assert ours.epochs == theirs.epochs
    assert calls == [20, 20, 10]
    assert trainer.evaluate(batches).keys() == {"loss"}


@pytest.mark.parametrize("schedule_every", ["step", "epoch"])
def test_the_schedule_counts_steps_or_epochs(schedule_every):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        scheduler=scheduler,
        schedule_every=schedule_every,
        device="cpu",
        progress=False,
    )
    trainer.fit(DataLoader(DATA, batch_size=25), epochs=3)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** (6 if schedule_every == "step" else 3)


def test_a_plateau_is_told_the_validation_loss():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # so that nothing gets better
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    optimizer.param_groups[0]["lr"] = 1e-30
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, scheduler=scheduler, device="cpu", progress=False
    )
    model.eval()  # the same running statistics, whatever is seen
    trainer.fit([(X, Y)], [(X, Y)], epochs=1)
    assert scheduler.best == trainer.evaluate([(X, Y)])["loss"]


class Modes(Callback):
    def __init__(self):
        self.seen = []

    def on_epoch_start(self, trainer, epoch):
        self.seen.append(("train", trainer.model.training))

    def on_epoch_end(self, trainer, epoch, values):
        self.seen.append(("end", trainer.model.training, sorted(values)))


def test_modes_are_set_and_put_back():
    modes = Modes()
    model = net()
    trainer = make(model, callbacks=[modes])
    model.eval()
    trainer.fit([(X, Y)], [(X, Y)])
    assert modes.seen == [("train", True), ("end", True, ["loss", "val_loss"])]
    assert not any(module.training for module in model.modules())
    model.train()
    model[1].eval()  # frozen on purpose
    before = copy.deepcopy(model[1].state_dict())
    trainer.fit([(X, Y)], [(X, Y)])
    assert not model[1].training
    assert model[3].training
    assert torch.equal(model[1].running_mean, before["running_mean"])


def test_evaluation_weighs_samples_and_leaves_no_trace():
    trainer = make(
        metrics={
            "accuracy": torchmetrics.classification.MulticlassAccuracy(3, average="micro"),
            "wrong": lambda outputs, targets: (outputs.argmax(1) != targets).float().mean(),
        }
    )
    state = copy.deepcopy(trainer.model.state_dict())
    found = trainer.evaluate(DataLoader(DATA, batch_size=16))
    model = trainer.model.eval()
    right = (model(X).argmax(1) == Y).float().mean().item()
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(model(X), Y).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx(right)
    assert found["wrong"] == pytest.approx(1 - right)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert trainer.evaluate(DataLoader(DATA, batch_size=16)) == found  # metrics begin anew


def test_metrics_of_several_parts_have_several_names():
    collection = torchmetrics.MetricCollection(
        [
            torchmetrics.classification.MulticlassRecall(3, average=None),
            torchmetrics.classification.MulticlassF1Score(3),
        ]
    )
    assert sorted(make(metrics=collection).evaluate([(X, Y)])) == [
        "MulticlassF1Score",
        "MulticlassRecall_0",
        "MulticlassRecall_1",
        "MulticlassRecall_2",
        "loss",
    ]
    single = torchmetrics.classification.MulticlassF1Score(3)
    assert sorted(make(metrics=[single]).evaluate([(X, Y)])) == ["f1_score", "loss"]


class Told:
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter([(X, Y)])


def test_loaders_are_told_their_epoch():
    loader = Told()
    make().fit(loader, epochs=3)
    assert loader.epochs == [0, 1, 2]
    sampler = torch.utils.data.DistributedSampler(DATA, num_replicas=1, rank=0)
    trainer = make()
    trainer.fit(DataLoader(DATA, batch_size=25, sampler=sampler), epochs=2)
    assert sampler.epoch == 1
    batches = torch.utils.data.BatchSampler(sampler, 10, False)
    trainer.fit(torch.utils.data.DataLoader(DATA, batch_sampler=batches), epochs=4)
    assert sampler.epoch == 3


class Reads(Callback):
    def __init__(self):
        self.steps = []

    def on_log(self, trainer, step, values):
        self.steps.append(step)


def test_losses_are_read_every_few_steps_and_at_the_end():
    reads = Reads()
    history = make(callbacks=[reads], log_every=4).fit(DataLoader(DATA, batch_size=5), epochs=2)
    assert reads.steps == [4, 8, 10, 14, 18, 20]
    assert [s["step"] for s in history.steps] == list(range(1, 21))


def test_a_callback_stops_the_training():
    class Stop(Callback):
        def on_epoch_end(self, trainer, epoch, values):
            if epoch == 1:
                trainer.stop()

    trainer = make(callbacks=[Stop()])
    assert len(trainer.fit([(X, Y)], epochs=5).epochs) == 2
    assert len(trainer.fit([(X, Y)], epochs=1).epochs) == 1  # a new fit begins anew


def test_tensorboard_is_written(tmp_path):
    make(logger=tmp_path, log_every=1).fit([(X, Y)] * 2, [(X, Y)], epochs=2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "loss", "step_grad_norm", "step_loss", "step_lr", "val_loss",
    ]  # fmt: skip
    assert [e.step for e in events.Scalars("step_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda m, o: Trainer(m, nn.MSELoss()), "not a torch.optim.Optimizer"),
        (lambda m, o: Trainer(o, nn.MSELoss(), o), "not a torch.nn.Module"),
        (lambda m, o: Trainer(m, None, o), "exactly one of loss_fn and step="),
        (lambda m, o: Trainer(m, None, o, step=print, metrics=print), "metrics need outputs"),
        (lambda m, o: Trainer(m, print, torch.optim.LBFGS(m.parameters())), "LBFGS"),
        (lambda m, o: Trainer(m, print, o, metrics={"a": 3}), "the metric 3 is neither 'accuracy'"),
        (lambda m, o: Trainer(m, print, o, metrics="acuracy"), "'acuracy' is neither 'accuracy'"),
        (lambda m, o: Trainer(m, nn.MSELoss, o), r"Write Trainer\(model, MSELoss\(\), optimizer"),
        (lambda m, o: Trainer(m, print, o, clip_norm=0), "clip_norm=0 is no norm"),
        (lambda m, o: Trainer(m, print, o, logger=True), "logger=True is neither a folder"),
        (lambda m, o: Trainer(m, print, o, metrics=[max, max]), "a value called 'max' already"),
        (lambda m, o: Trainer(m, print, o, metrics={"loss": max}), "a value called 'loss' already"),
        (lambda m, o: Trainer(m, print, o, callbacks=Callback()), r"callbacks=\[MyCallback\(\)\]"),
        (lambda m, o: Trainer(m, print, o, callbacks=[Callback]), r"callbacks=\[MyCallback\(\)\]"),
        (lambda m, o: Trainer(m, print, o, schedule_every="batch"), "schedule_every='batch'"),
        (lambda m, o: Trainer(m, print, o, device="gpu"), "'cuda:1' or 'mps'"),
        (lambda m, o: Trainer(m, print, o, device="cuda:first"), "'cuda:1' or 'mps'"),
    ],
)
def test_wrong_use_says_what_to_write(make_it, words):
    model = net()
    with pytest.raises(OptionError, match=words):
        make_it(model, torch.optim.Adam(model.parameters()))


def test_a_loss_that_is_no_number_says_what_to_write():
    with pytest.raises(TrainingError, match=r"of shape \(50,\).*reduction='mean'"):
        make(loss_fn=nn.CrossEntropyLoss(reduction="none")).fit([(X, Y)])


@pytest.mark.parametrize("loaders", [([],), ([(X, Y)], [])])
def test_a_loader_without_batches_says_so(loaders):
    with pytest.raises(TrainingError, match="gave no batch"):
        make().fit(*loaders)


def test_fit_refuses_values_that_cannot_be():
    with pytest.raises(OptionError, match="epochs=0"):
        make().fit([(X, Y)], epochs=0)
    with pytest.raises(OptionError, match="resume='yes'"):
        make().fit([(X, Y)], resume="yes")
    with pytest.raises(OptionError, match="val_loader is a generator, which ends with the first"):
        make().fit([(X, Y)], (batch for batch in [(X, Y)]), epochs=2)
    assert make().fit(batch for batch in [(X, Y)]).epochs


def test_a_loss_module_is_on_the_device():
    moved = []
    loss_fn = nn.CrossEntropyLoss(torch.ones(3))
    loss_fn.to = moved.append  # there is only one device here
    make(loss_fn=loss_fn, device=torch.device("cpu"))
    assert moved == [torch.device("cpu")]


def test_a_loss_that_learns_is_refused_on_several_ranks():
    learning = nn.Module()
    learning.scale = nn.Parameter(torch.ones(()))
    check_loss_module(learning, 1)
    check_loss_module(nn.CrossEntropyLoss(torch.ones(3)), 2)  # class weights are buffers
    with pytest.raises(OptionError, match="a part of the model"):
        check_loss_module(learning, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there_is_an_error_of_ours():
    for device in ("cuda", "cuda:1"):
        with pytest.raises(OptionError, match="is not here"):
            make(device=device)


def test_cpu_0_is_the_cpu():
    assert make(device="cpu:0").device == torch.device("cpu")


def test_a_loss_without_a_gradient_says_where_to_look():
    trainer = make(
        loss_fn=lambda outputs, targets: nn.CrossEntropyLoss()(outputs.detach(), targets)
    )
    with pytest.raises(TrainingError, match=r"depends on no parameter.*detach"):
        trainer.fit([(X, Y)])


def test_the_norm_that_is_clipped_is_that_of_a_losss_own_parameters_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(100.0))

        def forward(self, outputs, targets):
            return self.scale * nn.functional.cross_entropy(outputs, targets)

    loss_fn = Scaled()
    trainer = make(loss_fn=loss_fn, clip_norm=0.1, guards=False)
    trainer.fit([(X, Y)])
    every = [*trainer.model.parameters(), loss_fn.scale]
    norm = sum(p.grad.norm() ** 2 for p in every) ** 0.5
    assert norm.item() == pytest.approx(0.1, rel=1e-4)
