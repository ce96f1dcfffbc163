"""Tokenised texts, padded in the collate function, under Lightning's Trainer."""

import logging
import sys

import lightning
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset


class Texts(Dataset):
    """Numbered words, twenty to two hundred a text."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        words = torch.arange(20 + index * 7919 % 181)
        return (words * 31 + index) % 1000, index % 2


def pad(samples):
    """Put texts of several lengths into one batch."""
    texts, labels = zip(*samples, strict=True)
    return pad_sequence(texts, batch_first=True), torch.tensor(labels)


class Model(lightning.LightningModule):
    """The mean of the words' vectors, and a line through them."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(1000, 8)
        self.out = nn.Linear(8, 2)

    def training_step(self, batch, number):
        texts, labels = batch
        return nn.functional.cross_entropy(self.out(self.words(texts)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    batches, epochs = int(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    loader = DataLoader(Texts(32 * batches), 32, shuffle=True, collate_fn=pad)
    lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Model(), loader)
