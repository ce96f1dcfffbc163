"""A small language model: from texts to tokens to packed blocks, killed in between and resumed."""

import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from headrace import DataLoader, random_split, tokenize_files
from headrace.data import PackedBlocks, TokenFile
from headrace.train import Callback, Trainer

LENGTH, WIDTH, HEADS, LAYERS = 256, 128, 4, 4
folder = Path(tempfile.mkdtemp())

# The texts: what Python's own help() says, a paragraph a line.
paragraphs = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
(folder / "texts.txt").write_text("\n".join(paragraphs), encoding="utf-8")

# A tokenizer is learnt from them (byte pairs), and writes them to a corpus.
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
learner = trainers.BpeTrainer(
    vocab_size=2000,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
bpe.train_from_iterator(paragraphs, learner)
bpe.save(str(folder / "tokenizer.json"))
made = tokenize_files(folder / "texts.txt", folder / "corpus.bin", folder / "tokenizer.json")
print(f"{made.documents} documents, {made.tokens} tokens of {made.dtype}")

# Whole documents in blocks of 256: hardly a place is empty, and attention keeps them apart.
blocks = PackedBlocks(TokenFile(made.path), LENGTH)
print(f"{len(blocks)} blocks, {blocks.fill:.1%} full")
train, validation = random_split(blocks, [0.9, 0.1], generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Attention and a network of two layers, each added to what comes in."""

    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x, mask):
        batch, length, _ = x.shape
        parts = self.attention(self.before(x)).view(batch, length, 3, HEADS, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.network(self.between(x))


class Model(nn.Module):
    """A transformer; the scores of the next token have shape (batch, vocabulary, length)."""

    def __init__(self, vocabulary):
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last = nn.LayerNorm(WIDTH)
        for embedding in (self.token, self.place):  # small: they are added, and used as scores
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens, position_ids, document_ids):
        x = self.token(tokens) + self.place(position_ids)
        same = document_ids[:, :, None] == document_ids[:, None, :]
        mask = (same & torch.ones_like(same[0]).tril())[:, None]  # of its document, and before
        for layer in self.layers:
            x = layer(x, mask)
        return (self.last(x) @ self.token.weight.T).transpose(1, 2)


class Killed(Callback):
    """Ends the training at a step, as a machine that goes down does."""

    def __init__(self, at):
        self.at = at

    def on_log(self, trainer, step, values):
        if step == self.at:
            raise InterruptedError


def fit(checkpoints, *callbacks):
    """Train for two epochs: steps of 2 x 4 blocks, in bfloat16."""
    torch.manual_seed(0)
    model = Model(bpe.get_vocab_size())
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),  # leaves out targets of -100: ends of documents, empty places
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        precision="bf16-mixed",
        accumulate=2,
        clip_norm=1.0,
        device="cpu",
        callbacks=callbacks,
    )
    history = trainer.fit(
        DataLoader(train, batch_size=4, shuffle=True, drop_last=True, seed=0),
        DataLoader(validation, batch_size=8),
        epochs=2,
        checkpoint_dir=folder / checkpoints,
        checkpoint_every_steps=20,
    )
    return history, model


history, model = fit("whole")
print(f"parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million")
print(f"loss of the first step: {history.steps[0]['loss']:.2f}")
print(f"loss on blocks that it has not seen: {history.epochs[-1]['val_loss']:.2f}")

try:
    fit("parts", Killed(at=70))
except InterruptedError:
    print("killed at step 70")
resumed, _ = fit("parts")
same = resumed.epochs[-1]["val_loss"] == history.epochs[-1]["val_loss"]
print(f"resumed from step 60, the same loss to the bit: {same}")
