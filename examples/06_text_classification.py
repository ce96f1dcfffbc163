"""Raw text to a classifier: cleaned, cut into words, numbered, padded, sorted into two classes."""

import html
import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from headrace import DataLoader, Dataset, pad_collate, random_split

torch.manual_seed(0)

# One review a line: its class, a tab, the text as people typed it.
path = Path(__file__).parent / "data" / "reviews.tsv"
lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
texts = [text for _, text in lines]
labels = [int(name == "good") for name, _ in lines]


def clean(text):
    """Take out what carries no meaning: tags, entities, addresses, punctuation, capitals."""
    text = re.sub(r"<[^>]+>", " ", html.unescape(text))
    text = re.sub(r"https?://\S+", " ", text)
    return re.sub(r"[^a-z ]+", " ", text.lower())


def tokenise(text):
    """Cut a text into words. A real tokeniser would cut rare words into pieces as well."""
    return clean(text).split()


# Which reviews are for testing is drawn first: the numbers below must not know them.
train_part, test_part = random_split(range(len(texts)), [0.75, 0.25])

# Each word of the training texts gets a number. 0 is kept for padding, 1 for unknown words.
counts = Counter(word for i in train_part for word in tokenise(texts[i]))
vocabulary = {word: n for n, (word, _) in enumerate(sorted(counts.items()), start=2)}


class Reviews(Dataset):
    """The numbers of a review's words, and its class."""

    def __init__(self, indices):
        self.indices = list(indices)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        numbers = [vocabulary.get(word, 1) for word in tokenise(texts[index])]
        return torch.tensor(numbers), labels[index]


print(f"raw:     {texts[6]}")
print(f"words:   {tokenise(texts[6])}")
print(f"numbers: {[vocabulary.get(word, 1) for word in tokenise(texts[6])]}")

# The collate function makes one batch of samples of different lengths: the numbers are padded
# with 0 to the longest review of the batch, and the real lengths come along.
collate = pad_collate(padding_value=0)
train_loader = DataLoader(Reviews(train_part), batch_size=8, shuffle=True, collate_fn=collate)
test_loader = DataLoader(Reviews(test_part), batch_size=32, collate_fn=collate)
(words, lengths), classes = next(iter(train_loader))
print(f"a batch: words {tuple(words.shape)}, lengths {lengths.tolist()}")


class MeanOfWords(nn.Module):
    """A vector for each word; a review is the mean of its words, without the padding."""

    def __init__(self):
        super().__init__()
        self.vectors = nn.Embedding(len(vocabulary) + 2, 16, padding_idx=0)  # 0 gives zeros
        self.score = nn.Linear(16, 1)

    def forward(self, words, lengths):
        """Return one logit for each review; words: (batch, longest), lengths: (batch,)."""
        mean = self.vectors(words).sum(1) / lengths[:, None].clamp(min=1)
        return self.score(mean).squeeze(1)


model = MeanOfWords()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for epoch in range(1, 16):
    total = 0.0
    for (words, lengths), y in train_loader:
        logits = model(words, lengths)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    if epoch % 5 == 0:
        print(f"epoch {epoch:2}: train loss {total / len(train_part):.4f}")

with torch.no_grad():
    right = sum(
        int(((model(words, lengths) > 0) == y.bool()).sum()) for (words, lengths), y in test_loader
    )
print(f"test: {right} of {len(test_part)} reviews")
for text in ("Great price, and it works!", "It broke. What a waste..."):
    numbers = [vocabulary.get(word, 1) for word in tokenise(text)]
    logit = model(torch.tensor([numbers]), torch.tensor([len(numbers)]))
    print(f"{text} -> {'good' if logit > 0 else 'bad'}")
