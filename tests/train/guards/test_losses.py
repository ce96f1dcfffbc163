"""What a loss is given: each mistake is named, and right programs hear nothing."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace.errors import TrainingError, TrainingWarning
from headrace.train.guards import Guards


def outputs(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1))) * 1.0


def classes(*shape, of=3):
    return torch.randint(0, of, shape, generator=torch.Generator().manual_seed(2))


def look(loss_fn, made, targets, model=None):
    """Compute a loss as the loop does, in the eyes of the guards."""
    guards = Guards(model, loss_fn, None)
    with guards.watch_loss(made, targets):
        return loss_fn(made, targets)


ELEMENTWISE = [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()]


# ---- mistakes


@pytest.mark.parametrize("loss_fn", ELEMENTWISE, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("turned", [False, True])
def test_one_column_against_none(loss_fn, turned):
    made, targets = outputs(4, 1), torch.rand(4)
    if turned:
        made, targets = outputs(4), torch.rand(4, 1)
    line = "targets.squeeze(-1)" if turned else "outputs.squeeze(-1)"
    with pytest.raises(TrainingError) as caught:
        look(loss_fn, made, targets)
    assert "(4, 1)" in str(caught.value)
    assert "all with all (4x4 pairs)" in str(caught.value)
    assert f"{type(loss_fn).__name__}()" in str(caught.value)
    assert line in str(caught.value)


def test_the_line_to_write_for_shapes_is_right():
    made, targets = outputs(4, 1), torch.rand(4)
    with pytest.raises(TrainingError) as caught:
        look(nn.MSELoss(), made, targets)
    line = str(caught.value).partition("loss_fn = ")[2].partition(", or")[0]
    assert look(eval(line), made, targets) == F.mse_loss(made[:, 0], targets)


def test_class_numbers_into_a_loss_of_numbers():
    with pytest.raises(TrainingError, match="CrossEntropyLoss"):
        look(nn.MSELoss(), outputs(3, 3), classes(3))  # would broadcast in silence
    with pytest.raises(TrainingError, match="10 outputs for each target"):
        look(nn.MSELoss(), outputs(4, 10), classes(4))


@pytest.mark.parametrize(
    "loss_fn",
    [
        F.mse_loss,
        lambda o, t: F.mse_loss(o, t) * 2,
        lambda o, t: F.mse_loss(target=t, input=o),
        partial(F.smooth_l1_loss, beta=0.5),
    ],
)
def test_functions_of_torch_are_seen_wherever_they_are_called(loss_fn):
    with pytest.raises(TrainingError, match=r"outputs\.squeeze\(-1\)"):
        look(loss_fn, outputs(4, 1), torch.rand(4))


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, t: ((o - t) ** 2).mean(),
        lambda o, t: (t - o).abs().mean(),
        lambda o, t: torch.sub(o, t).pow(2).mean(),
    ],
)
def test_a_loss_written_by_hand(loss_fn):
    with pytest.warns(TrainingWarning, match=r"Write outputs\.squeeze\(-1\) - targets\."):
        look(loss_fn, outputs(4, 1), torch.rand(4))


SOFTMAX = [
    lambda x: x.softmax(1),
    nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)),
    lambda x: x.softmax(1).view(-1, 3).float(),
    lambda x: x.softmax(0),
    lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True),  # told by its values
    lambda x: x.sigmoid(),
]


@pytest.mark.parametrize("end", SOFTMAX)
def test_probabilities_into_cross_entropy(end):
    with pytest.warns(TrainingWarning, match="wants logits: it takes the softmax itself"):
        look(nn.CrossEntropyLoss(), end(outputs(4, 3)), classes(4))


@pytest.mark.parametrize("end", [torch.sigmoid, lambda x: x.sigmoid().squeeze(1)[:, None]])
def test_probabilities_into_binary_cross_entropy_with_logits(end):
    with pytest.warns(TrainingWarning, match=r"last nn\.Sigmoid\(\) out of the model"):
        look(nn.BCEWithLogitsLoss(), end(outputs(4, 1)), torch.ones(4, 1))


def test_probabilities_of_a_compiled_model():
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    made = model(torch.rand(4, 3)).detach()  # autograd does not say what made it
    with pytest.warns(TrainingWarning, match="wants logits"):
        look(nn.BCEWithLogitsLoss(), made, torch.ones(4, 1), model)


def test_logits_into_a_loss_of_probabilities():
    with pytest.raises(TrainingError, match=r"nn\.BCEWithLogitsLoss\(\)"):
        look(nn.BCELoss(), outputs(8, 1), torch.ones(8, 1))
    with pytest.warns(TrainingWarning, match=r"Write loss_fn = nn\.CrossEntropyLoss\(\)"):
        look(nn.NLLLoss(), outputs(4, 3), classes(4))
    with pytest.warns(TrainingWarning, match=r"nn\.LogSoftmax\(dim=1\) in place of nn\.Softmax"):
        look(nn.NLLLoss(), outputs(4, 3).softmax(1), classes(4))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (torch.ones(4), r"float32.*wants class numbers.*Write targets\.long\(\)"),
        (torch.ones(4, dtype=torch.int32), r"int32.*Write targets\.long\(\)"),
        (torch.ones(4, dtype=torch.bool), r"Write targets\.long\(\)"),
        (torch.ones(4, 1, dtype=torch.int64), r"\(4, 1\).*Write targets\.squeeze\(1\)\."),
        (torch.ones(4, 1), r"Write targets\.squeeze\(1\)\.long\(\)"),
        (F.one_hot(classes(4), 3), r"one-hot.*Write targets\.argmax\(1\)"),
        (torch.tensor([1, 2, 3, 3]), r"from 1 to 3.*3 outputs.*write targets - 1"),
        (torch.tensor([0, 2, 3, 3]), r"from 0 to 3.*last layer 4 outputs"),
        (torch.tensor([0, 2, -1, 1]), r"ignore_index=-1"),
        (torch.tensor([0, 2, 255, 1]), r"ignore_index=255"),
        (torch.tensor([0, 2, -7, 1]), r"Number the classes from 0"),
    ],
)
@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), nn.NLLLoss()])
def test_class_targets_that_are_none(loss_fn, targets, says):
    with pytest.raises(TrainingError, match=says):
        look(loss_fn, outputs(4, 3).log_softmax(1), targets)


def test_other_class_targets_that_are_none():
    with pytest.raises(TrainingError, match=r"movedim\(-1, 1\)"):
        look(nn.CrossEntropyLoss(), outputs(4, 5, 3), classes(4, 5))
    with pytest.raises(TrainingError, match="loss is always 0"):
        look(nn.CrossEntropyLoss(), outputs(4, 1), torch.rand(4, 1))
    with pytest.raises(TrainingError, match=r"targets\.argmax\(1\)"):
        look(nn.NLLLoss(), outputs(4, 3).log_softmax(1), torch.rand(4, 3))
    with pytest.raises(TrainingError, match="from 1 to 3"):
        look(lambda o, t: F.cross_entropy(o, t) / 2, outputs(4, 3), torch.tensor([1, 2, 3, 1]))


def test_number_targets_of_a_type_that_torch_refuses():
    for loss_fn in (nn.BCEWithLogitsLoss(), nn.HuberLoss()):
        with pytest.raises(TrainingError, match=r"int64.*Write targets\.float\(\)"):
            look(loss_fn, outputs(4, 1), classes(4, 1, of=2))
    with pytest.raises(TrainingError, match="float64 against outputs of float32"):
        look(nn.BCELoss(), outputs(4, 1).sigmoid(), torch.ones(4, 1).double())


def test_binary_targets_outside_0_and_1():
    with pytest.warns(TrainingWarning, match=r"\(targets \+ 1\) / 2"):
        look(nn.BCEWithLogitsLoss(), outputs(2), torch.tensor([-1.0, 1.0]))


# ---- right programs

LOGITS = outputs(4, 3)
RIGHT = [
    (nn.CrossEntropyLoss(), LOGITS, classes(4)),
    (nn.CrossEntropyLoss(), LOGITS, classes(4).to(torch.uint8)),
    (nn.CrossEntropyLoss(), LOGITS, torch.tensor([0, -100, 2, 1])),
    (nn.CrossEntropyLoss(), LOGITS, torch.full((4,), -100)),
    (nn.CrossEntropyLoss(ignore_index=255), LOGITS, torch.tensor([0, 255, 2, 1])),
    (partial(F.cross_entropy, ignore_index=-1), LOGITS, torch.tensor([0, -1, 2, 1])),
    (nn.CrossEntropyLoss(label_smoothing=0.1), LOGITS, classes(4)),
    (nn.CrossEntropyLoss(), LOGITS, torch.rand(4, 3).softmax(1)),
    (nn.CrossEntropyLoss(), LOGITS, torch.rand(4, 3).double().softmax(1)),
    (nn.CrossEntropyLoss(), outputs(2, 3, 5, 5), classes(2, 5, 5)),  # segmentation
    (nn.CrossEntropyLoss(), outputs(2, 3, 3), classes(2, 3)),  # tokens
    (nn.CrossEntropyLoss(), outputs(4, 3).log_softmax(1), classes(4)),  # twice is the same as once
    (nn.CrossEntropyLoss(), torch.zeros(4, 3), classes(4)),  # a last layer of zeros
    (nn.CrossEntropyLoss(), outputs(4, 3).clamp(0, 1), classes(4)),
    (nn.CrossEntropyLoss(), outputs(3), torch.tensor(1)),  # one sample, no batch
    (nn.NLLLoss(), LOGITS.log_softmax(1), classes(4)),
    (nn.NLLLoss(), LOGITS.bfloat16().log_softmax(1), classes(4)),
    (nn.NLLLoss(), (LOGITS.softmax(1) + 1e-9).log(), classes(4)),
    (nn.NLLLoss(), outputs(2, 3, 4).log_softmax(1), classes(2, 4)),
    (nn.BCEWithLogitsLoss(), outputs(4, 1), torch.ones(4, 1)),
    (nn.BCEWithLogitsLoss(), outputs(4), torch.ones(4)),
    (nn.BCEWithLogitsLoss(), outputs(4, 6), torch.ones(4, 6)),  # many labels
    (nn.BCEWithLogitsLoss(), torch.rand(4, 6), torch.ones(4, 6)),  # logits that happen to be small
    (nn.BCEWithLogitsLoss(), outputs(4).sigmoid() * 3 - 1, torch.ones(4)),
    (nn.BCEWithLogitsLoss(), outputs(4), torch.ones(4).double()),
    (nn.BCELoss(), outputs(4, 1).sigmoid(), torch.ones(4, 1)),
    (nn.BCELoss(), outputs(4).softmax(0), torch.rand(4)),
    (nn.MSELoss(), outputs(4, 1), torch.rand(4, 1)),
    (nn.MSELoss(), outputs(4), torch.rand(4)),
    (nn.MSELoss(), outputs(1, 1), torch.rand(1, 1)),
    (nn.MSELoss(), outputs(4, 2).sigmoid(), torch.rand(4, 2)),
    (nn.MSELoss(), outputs(4, 3, 8, 8), torch.rand(4, 3, 8, 8)),
    (nn.L1Loss(), outputs(4, 1), classes(4, 1)),
    (nn.HuberLoss(), outputs(4, 1).double(), torch.rand(4, 1).double()),
    (lambda o, t: ((o - t) ** 2).mean(), outputs(4, 1), torch.rand(4, 1)),
    (lambda o, t: (o[:, None] - o).abs().mean(), outputs(4), torch.rand(4)),  # all pairs, meant
    (lambda o, t: (o - o.mean()).mean() + t.mean(), outputs(4, 1), torch.rand(4)),
    (lambda o, t: o["a"].mean(), {"a": outputs(4)}, {"b": torch.rand(4)}),
    (nn.CosineEmbeddingLoss(), outputs(4, 3), torch.rand(4, 3)),
    (nn.CTCLoss(), outputs(5, 2, 4), None),
]


@pytest.mark.parametrize(("loss_fn", "made", "targets"), RIGHT)
def test_right_programs_hear_nothing(loss_fn, made, targets):
    guards = Guards(None, loss_fn, None)
    with guards.watch_loss(made, targets):
        if isinstance(loss_fn, nn.CosineEmbeddingLoss):
            loss_fn(made, targets, torch.ones(4))
        elif isinstance(loss_fn, nn.CTCLoss):
            lengths = torch.tensor([5, 5]), torch.tensor([2, 2])
            loss_fn(made.log_softmax(2), torch.ones(2, 2).long(), *lengths)
        else:
            loss_fn(made, targets)


def test_a_single_sample_that_fits_either_way_is_let_be():
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        warnings.simplefilter("ignore", UserWarning)  # torch's own
        look(nn.MSELoss(), outputs(1, 1), torch.rand(1))


def test_a_whole_step_is_watched():
    guards = Guards(None, None, None)
    model = nn.Linear(2, 1)

    def step(batch):
        return F.mse_loss(model(batch[0]), batch[1])

    with pytest.raises(TrainingError, match="all with all"), guards.watch_loss():
        step((torch.rand(4, 2), torch.rand(4)))


def test_a_loss_of_ones_own_that_inherits_is_judged_by_what_it_calls():
    class Own(nn.CrossEntropyLoss):
        def forward(self, made, targets):
            return (made[:, 0] - targets).abs().mean()

    look(Own(), outputs(4, 3), torch.rand(4))


SHAPES = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(SHAPES, SHAPES)
def test_an_error_of_shapes_means_that_the_loss_would_be_another_one(a, b):
    """It is raised only where torch refuses, or makes other pairs than element by element."""
    made, targets = torch.rand(a), torch.rand(b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own
        try:
            look(nn.MSELoss(reduction="none"), made, targets)
        except TrainingError:
            try:
                computed = F.mse_loss(made, targets, reduction="none")
            except RuntimeError:
                return
            assert computed.numel() > min(made.numel(), targets.numel())
        except RuntimeError:
            pass  # torch's own error


# ---- once, and no longer than needed


def test_a_warning_is_said_once():
    guards = Guards(None, nn.CrossEntropyLoss(), None)
    with pytest.warns(TrainingWarning), guards.watch_loss():
        F.cross_entropy(outputs(4, 3).softmax(1), classes(4))
    for _ in range(2):  # warnings are errors in these tests
        with guards.watch_loss():
            F.cross_entropy(outputs(4, 3).softmax(1), classes(4))


def test_the_warning_points_to_the_users_line():
    with pytest.warns(TrainingWarning) as caught:
        look(nn.CrossEntropyLoss(), outputs(4, 3).softmax(1), classes(4))
    assert caught[0].filename == __file__


def test_after_the_first_batches_nothing_is_watched():
    guards = Guards(None, None, None)
    contexts = [guards.watch_loss() for _ in range(5)]
    assert len({type(context) for context in contexts[:3]}) == 1
    assert contexts[3] is contexts[4]
    with contexts[4]:
        F.cross_entropy(outputs(4, 3).softmax(1), classes(4))


def test_guards_that_are_off_do_nothing():
    guards = Guards.off()
    with guards.watch_loss():
        F.cross_entropy(outputs(4, 3).softmax(1), classes(4))
    guards.before_fit(None, None)
    guards.after_backward(torch.tensor(float("nan")), step=1, group=[])
    guards.check_loss(float("nan"), step=1, group=None)
    guards.check_gradients(float("nan"), step=1)
    guards.after_epoch(None, 1.0)
