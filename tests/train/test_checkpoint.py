"""Checkpoints: exact both ways, whole or not at all, and passed over where they are damaged."""

import json
import shutil
import zlib
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import StateError, TrainingError
from headrace.train import Callback, Trainer
from headrace.train.checkpoint import Checkpoints, load
from headrace.train.storable import pack, unpack

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
KEYS = st.integers() | st.text(max_size=4) | st.sampled_from(["$tensor", "$dict", "a.b"])
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_nested_values_come_back_exactly(tree):
    assert unpack(pack(tree)) == tree


def test_tensors_come_back_exactly():
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "strided": base.t(),
        "view": base[1],
        "same": base,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "half": torch.tensor([1.5, float("nan")]).bfloat16(),
        "flags": torch.tensor([True, False]),
        "key": {0: torch.tensor([0]), "0": torch.tensor([1])},
        "array": np.array([1, 2], np.uint32),
        "number": np.float64(0.1),
        "counter": Counter({30: 2}),
        "ordered": OrderedDict(b=torch.ones(2), a=None),
        "nan": float("nan"),
        "infinite": [float("inf"), float("-inf")],
    }
    found = unpack(pack(state))
    for name in ("strided", "view", "same", "scalar", "empty", "flags"):
        assert torch.equal(found[name], state[name])
        assert found[name].dtype == state[name].dtype
    assert torch.equal(found["half"].view(torch.int16), state["half"].view(torch.int16))
    assert (found["key"][0].item(), found["key"]["0"].item()) == (0, 1)
    assert found["array"].tolist() == [1, 2]
    assert found["array"].dtype == np.uint32
    assert found["number"] == 0.1
    assert isinstance(found["counter"], Counter)
    assert list(found["ordered"]) == ["b", "a"]
    assert found["nan"] != found["nan"]
    assert found["infinite"] == state["infinite"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2}]}, r"a set at state\.a\.1 cannot be saved"),
        ({"f": len}, r"a builtin_function_or_method at state\.f"),
        ({"z": torch.eye(2).to_sparse()}, r"layout torch\.sparse_coo at state\.z"),
        ({"z": torch.ones(2, dtype=torch.complex128)}, r"complex128.* at state\.z"),
        ({"z": np.complex64(1)}, r"a complex64 at state\.z"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_key_path(value, words):
    with pytest.raises(StateError, match=words):
        pack(value)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("later", None)

    def forward(self, x):
        return self.out(self.norm(self.embed(x))) * self.scale


def make(tmp_path, optimizer=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = Tied()
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer(model.parameters(), lr=0.01),
        device="cpu",
        progress=False,
        **options,
    )
    x = torch.arange(20) % 5
    loader = DataLoader(TensorDataset(x, x), batch_size=4, shuffle=True)

    def fit(epochs, **more):
        return trainer.fit(loader, epochs=epochs, checkpoint_dir=tmp_path, **more)

    return trainer, fit


OPTIMIZERS = [
    torch.optim.AdamW,
    lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    lambda p, lr: torch.optim.Adam(p, torch.tensor(lr), amsgrad=True, capturable=False),
    torch.optim.NAdam,
    torch.optim.Adagrad,
    torch.optim.Adafactor,
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_to_the_same_bit(tmp_path, optimizer):
    whole, fit = make(tmp_path / "whole", optimizer)
    fit(3)
    _, fit = make(tmp_path / "parts", optimizer)
    fit(1)
    again, fit = make(tmp_path / "parts", optimizer)
    history = fit(3)
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [s["step"] for s in history.steps] == list(range(1, 16))
    assert again.model.out.weight is again.model.embed.weight


SCHEDULERS = [
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 4], 0.5),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, total_iters=3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        milestones=[3],
    ),
]


@pytest.mark.parametrize("make_scheduler", SCHEDULERS)
def test_every_scheduler_goes_on(tmp_path, make_scheduler):
    rates = []
    for folder, stops in (("whole", [3]), ("parts", [1, 3])):
        for epochs in stops:
            torch.manual_seed(0)
            model = nn.Linear(3, 5)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scheduler = make_scheduler(optimizer)
            trainer = Trainer(
                model, nn.CrossEntropyLoss(), optimizer, scheduler=scheduler, device="cpu",
                progress=False,
            )  # fmt: skip
            x, y = torch.randn(20, 3), torch.arange(20) % 5
            trainer.fit([(x, y)] * 4, epochs=epochs, checkpoint_dir=tmp_path / folder)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    from safetensors.torch import load_file

    trainer, fit = make(tmp_path)
    fit(1)
    [folder] = tmp_path.iterdir()
    assert folder.name == "step-00000005-epoch-001"
    assert sorted(p.name for p in folder.iterdir()) == [
        "checksums.json",
        "model.safetensors",
        "state.json",
        "state.safetensors",
    ]
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(weights["embed.weight"], trainer.model.embed.weight)
    json.loads((folder / "state.json").read_text(), parse_constant=pytest.fail)


def test_the_last_ones_are_kept(tmp_path):
    _, fit = make(tmp_path)
    fit(3, checkpoint_every_steps=2, keep=2)
    names = ["step-00000014-epoch-002", "step-00000015-epoch-003"]
    assert Checkpoints(tmp_path, 2).names() == names
    assert len(list(tmp_path.iterdir())) == 2


def test_seconds_between_checkpoints(tmp_path):
    _, fit = make(tmp_path)
    fit(1, checkpoint_every_s=0.0, keep=9)
    assert len(Checkpoints(tmp_path, 9).names()) == 6  # behind each step, and at the end


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoints of two epochs, and the steps of all three."""
    folder = tmp_path_factory.mktemp("trained")
    _, fit = make(folder / "two")
    fit(2)
    _, fit = make(folder / "three")
    return folder / "two", fit(3).steps


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, trained, name, harm):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    path = folder / "step-00000010-epoch-002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if harm == "flip" else data[:-1])
    if harm == "remove":
        path.unlink()
    with pytest.warns(UserWarning, match="step-00000010-epoch-002 is damaged .* is passed over"):
        assert Checkpoints(folder, 1).newest() == "step-00000005-epoch-001"


def test_training_goes_on_from_the_whole_one_and_keeps_it(tmp_path, trained):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    (folder / "step-00000010-epoch-002" / "state.safetensors").write_bytes(b"")
    _, fit = make(folder)
    with pytest.warns(UserWarning, match="is damaged"):
        history = fit(3, keep=1, checkpoint_every_steps=1)
    assert history.steps == trained[1]
    assert Checkpoints(folder, 1).names() == ["step-00000015-epoch-003"]


def test_a_damaged_newer_one_does_not_push_out_the_whole_one(tmp_path, trained):
    folder = shutil.copytree(trained[0], tmp_path / "copy")
    (folder / "step-00000010-epoch-002" / "checksums.json").unlink()
    checkpoints = Checkpoints(folder, 1)
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.begin() == "step-00000005-epoch-001"
    checkpoints.save(7, 1, {"w": torch.ones(1)}, {})
    assert checkpoints.names() == ["step-00000007-epoch-001"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".unfinished-1-step-00000005-epoch-001").mkdir(parents=True)
    _, fit = make(tmp_path)
    fit(1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005-epoch-001"]


def test_a_run_that_is_over_is_not_run_again(tmp_path):
    _, fit = make(tmp_path)
    first = fit(2)
    _, fit = make(tmp_path)
    assert fit(2).steps == first.steps
    assert len(list(tmp_path.iterdir())) == 2


class Interrupts(Callback):
    def __init__(self, step):
        self.step = step

    def on_log(self, trainer, step, values):
        if step == self.step:
            raise KeyboardInterrupt


def test_who_interrupts_is_told_the_last_checkpoint_and_where_it_goes_on(tmp_path, capsys):
    folder = tmp_path / "ck"
    _, fit = make(folder, callbacks=[Interrupts(8)], log_every=1)
    with pytest.raises(KeyboardInterrupt) as error:
        fit(3, checkpoint_every_steps=7)
    note = f"the last checkpoint is step 7 in {folder}; the same program goes on from there."
    assert error.value.__notes__ == [f"headrace: {note}"]
    assert "".join(capsys.readouterr()) == ""  # progress=False

    def lines_of(epochs):
        trainer, fit = make(folder)
        trainer.progress = "auto"
        fit(epochs)
        return capsys.readouterr().err.splitlines()

    first, *epochs = lines_of(3)
    assert first == f"goes on from step 7 (epoch 2 of 3) in {folder}"
    assert [line.partition("  ")[0] for line in epochs] == ["epoch 2/3", "epoch 3/3"]
    assert lines_of(3) == [f"3 of 3 epochs are done in {folder}: nothing to train"]
    assert lines_of(2) == [f"2 of 2 epochs are done in {folder}: nothing to train"]


@pytest.mark.parametrize("where", ["before the first checkpoint", "without a folder"])
def test_where_there_is_no_checkpoint_none_is_named(tmp_path, where):
    _, fit = make(tmp_path if where[0] == "b" else None, callbacks=[Interrupts(2)], log_every=1)
    with pytest.raises(KeyboardInterrupt) as error:
        fit(1)
    assert not hasattr(error.value, "__notes__")


def test_resume_never_refuses_a_folder_in_use(tmp_path):
    _, fit = make(tmp_path)
    fit(1, resume="never")
    with pytest.raises(TrainingError, match="resume='never' would mix two runs"):
        fit(2, resume="never")


class Counts(Callback):
    def __init__(self):
        self.logs = 0

    def on_log(self, trainer, step, values):
        self.logs += 1

    def state_dict(self):
        return {"logs": self.logs}

    def load_state_dict(self, state):
        self.logs = state["logs"]


def test_callbacks_with_a_state_are_part_of_it(tmp_path):
    _, fit = make(tmp_path, callbacks=[Counts()], log_every=1)
    fit(1)
    counts = Counts()
    _, fit = make(tmp_path, callbacks=[counts], log_every=1)
    fit(2)
    assert counts.logs == 10
    _, fit = make(tmp_path)
    with pytest.raises(StateError, match="1 callbacks that have a state"):
        fit(3)


class Scaled(nn.Module):
    """A loss that learns, and counts."""

    def __init__(self, wide=()):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(wide))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs, targets):
        self.calls += 1
        return nn.functional.cross_entropy(outputs * self.scale, targets)


def test_what_a_loss_learns_is_part_of_it(tmp_path):
    def fit(epochs, wide=()):
        torch.manual_seed(0)
        model, loss_fn = nn.Linear(3, 2), Scaled(wide)
        optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], 0.1)
        trainer = Trainer(model, loss_fn, optimizer, device="cpu", progress=False)
        trainer.fit(
            [(torch.ones(4, 3), torch.ones(4).long())], epochs=epochs, checkpoint_dir=tmp_path
        )
        return float(loss_fn.scale.detach()), float(loss_fn.calls)

    scale, calls = fit(2)
    assert (scale != 1, calls) == (True, 2)
    assert fit(2) == (scale, calls)
    with pytest.raises(StateError, match=r"(?s)does not fit this optimizer or loss.*scale"):
        fit(3, wide=(2,))


def test_another_optimizer_is_refused(tmp_path):
    make(tmp_path)[1](1)
    with pytest.raises(StateError, match=r"written with AdamW optimizer, .* has SGD optimizer"):
        make(tmp_path, torch.optim.SGD)[1](2)


def test_another_model_is_refused(tmp_path):
    _, fit = make(tmp_path)
    fit(1)
    model = nn.Linear(3, 5)
    other = Trainer(
        model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()), device="cpu"
    )
    with pytest.raises(StateError, match=r"(?s)does not fit this model.*Missing key"):
        other.fit([(torch.randn(4, 3), torch.arange(4))], checkpoint_dir=tmp_path)


def test_a_newer_version_says_so(tmp_path):
    _, fit = make(tmp_path)
    fit(1)
    [folder] = tmp_path.iterdir()
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**document, "version": 99}))
    sums = json.loads((folder / "checksums.json").read_text())
    sums["state.json"] = zlib.crc32((folder / "state.json").read_bytes())
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(StateError, match="has version 99"):
        load(folder)
