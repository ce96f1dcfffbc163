"""The Trainer of transformers: training, evaluation, resuming in mid-epoch; pipelines."""

import pytest
import torch
from torch.utils.data import Dataset

import headrace

from .conftest import assert_same, seed_all

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # its own, of pinning and checkpoints
]


class Texts(Dataset):
    """Token lists of several lengths, whose order is seen in what is learnt."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 30, (4 + index % 5,), generator=generator)
        return {"input_ids": ids.tolist(), "labels": ids.tolist()}


def pad(samples):
    width = max(len(sample["input_ids"]) for sample in samples)

    def padded(key, filling):
        rows = [sample[key] + [filling] * (width - len(sample[key])) for sample in samples]
        return torch.tensor(rows)

    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}


def model():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config)


def arguments(folder, **options):
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        **options,
    )


class Ours(transformers.Trainer):
    """A Trainer with a loader of headrace's, as its users write one."""

    def get_train_dataloader(self):
        loader = headrace.DataLoader(
            self.train_dataset, 4, shuffle=True, collate_fn=self.data_collator, seed=7
        )
        return self.accelerator.prepare(loader)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.library("transformers", "Trainer: losses equal torch's")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_learns_the_same(tmp_path, workers):
    def program():
        trainer = transformers.Trainer(
            model(),
            arguments(tmp_path, dataloader_num_workers=workers),
            train_dataset=Texts(),
            eval_dataset=Texts(),
            data_collator=pad,
        )
        trainer.train()
        return losses(trainer), trainer.evaluate()["eval_loss"]

    assert len(assert_same(program)[0]) == 10


@pytest.mark.library("transformers", "Trainer: resume in mid-epoch")
@pytest.mark.parametrize(
    "kind", [transformers.Trainer, pytest.param(Ours, marks=pytest.mark.thorough)]
)
def test_the_trainer_resumes_in_mid_epoch(tmp_path, kind):
    headrace.install(quiet=True)

    def make(folder, **options):
        seed_all()
        return kind(model(), arguments(folder, **options), train_dataset=Texts(), data_collator=pad)

    whole = make(tmp_path / "whole")
    whole.train()

    def stopped(steps):
        folder = tmp_path / f"{kind.__name__}-{steps}"
        first = make(folder)
        first.args.save_strategy = transformers.trainer_utils.IntervalStrategy.STEPS
        first.args.save_steps = steps
        first.add_callback(_Stop(steps))
        first.train()
        second = make(folder)
        second.train(resume_from_checkpoint=str(folder / f"checkpoint-{steps}"))
        return losses(second)

    assert stopped(3) == pytest.approx(losses(whole), abs=1e-6)
    assert stopped(7) == pytest.approx(losses(whole), abs=1e-6)


class _Stop(transformers.TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.steps:
            control.should_save = True
            control.should_training_stop = True
        return control
