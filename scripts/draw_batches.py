"""Draw the pictures of docs/guides: what batches look like. Run it from the repository's root."""

from pathlib import Path

import numpy as np
import torch

from headrace.data.windows import SlidingWindows
from headrace.sampling.balanced import ClassBalancedSampler
from headrace.sampling.buckets import BucketBatchSampler
from headrace.sampling.packing import PackedBatchSampler
from headrace.sampling.stratified import StratifiedBatchSampler

PICTURES = Path("docs/guides/pictures")
COLOURS = ["#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#1f78b4", "#b15928"]
PADDING = "#9e9e9e55"
BAR, GAP = 7, 2


class Picture:
    """An SVG that grows downwards; its text is grey, to be read on white and on black."""

    def __init__(self, width):
        self.width, self.y, self.parts = width, 0, []

    def text(self, x, label, size=12):
        """Write a line at the present height."""
        self.parts.append(f'<text x="{x}" y="{self.y}" font-size="{size}">{label}</text>')

    def bar(self, x, y, width, fill, height=BAR):
        """Draw a bar with its corner at (x, y)."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{fill}"/>'
        )

    def save(self, name):
        """Write the file, as high as what was drawn."""
        style = 'font-family="sans-serif" fill="#808080"'
        body = "\n".join(self.parts)
        size = f'viewBox="0 0 {self.width} {self.y}" width="{self.width}"'
        (PICTURES / name).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n',
            encoding="utf-8",
        )


def padded(picture, x, y, lengths, scale):
    """Draw one padded batch; return its height."""
    for row, length in enumerate(lengths):
        top = y + row * (BAR + GAP)
        picture.bar(x, top, max(lengths) * scale, PADDING)
        picture.bar(x, top, length * scale, COLOURS[0])
    return len(lengths) * (BAR + GAP)


def batches_in_columns(picture, title, batches, lengths, scale):
    """Draw some batches side by side, with the share of their places that is padding."""
    places = sum(len(b) * lengths[b].max() for b in batches)
    share = 100 * (1 - sum(lengths[b].sum() for b in batches) / places)
    picture.y += 20
    picture.text(0, f"{title}: {share:.0f} % padding")
    picture.y += 10
    x, tallest = 0.0, 0
    for batch in batches:
        tallest = max(tallest, padded(picture, x, picture.y, lengths[batch], scale))
        x += lengths[batch].max() * scale + 12
    picture.y += tallest


def buckets():
    """Fixed batches beside length buckets, of the same samples."""
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(3.4, 0.7, 48).astype(int), 4, 150)
    shuffled = rng.permutation(48)
    sampler = BucketBatchSampler(
        lengths, max_tokens=400, generator=torch.Generator().manual_seed(1)
    )
    picture = Picture(720)
    fixed = [shuffled[a : a + 8] for a in range(0, 48, 8)]
    batches_in_columns(picture, "batches of 8 from a shuffle", fixed, lengths, 0.9)
    picture.y += 14
    batches_in_columns(picture, "max_tokens=400", list(sampler), lengths, 0.9)
    picture.y += 8
    picture.save("buckets.svg")


def collations():
    """One batch padded, jagged and packed."""
    lengths = np.array([52, 20, 34, 9])
    scale, picture = 4, Picture(720)
    picture.y = 16
    picture.text(0, "pad_collate: (4, 52)")
    picture.y += 10
    for row, length in enumerate(lengths):
        top = picture.y + row * (BAR + GAP)
        picture.bar(0, top, lengths.max() * scale, PADDING)
        picture.bar(0, top, length * scale, COLOURS[row])
    picture.y += 4 * (BAR + GAP) + 22
    picture.text(
        0, "jagged_collate: (4, ragged), one tensor of 115 steps and offsets 0, 52, 72, 106, 115"
    )
    picture.y += 10
    for row, length in enumerate(lengths):
        picture.bar(0, picture.y + row * (BAR + GAP), length * scale, COLOURS[row])
    picture.y += 4 * (BAR + GAP) + 22
    picture.text(0, "pack_collate: (115,), position_ids and cu_seqlens 0, 52, 72, 106, 115")
    picture.y += 10
    x = 0
    for row, length in enumerate(lengths):
        picture.bar(x, picture.y, length * scale, COLOURS[row])
        x += length * scale
    picture.y += BAR + 8
    picture.save("collations.svg")


def packing():
    """Rows of packed sequences."""
    rng = np.random.default_rng(2)
    lengths = np.clip(rng.lognormal(3.4, 0.7, 40).astype(int), 4, 150)
    sampler = PackedBatchSampler(lengths, 200, generator=torch.Generator().manual_seed(0))
    picture = Picture(720)
    picture.y = 16
    picture.text(
        0, f"40 sequences in {len(sampler)} rows of 200: {100 * sampler.fill:.0f} % filled"
    )
    picture.y += 10
    for row in sampler:
        picture.bar(0, picture.y, 200 * 3.5, PADDING)
        x = 0.0
        for k, i in enumerate(row):
            picture.bar(x, picture.y, lengths[i] * 3.5 - 1, COLOURS[k % len(COLOURS)])
            x += lengths[i] * 3.5
        picture.y += BAR + GAP + 2
    picture.y += 6
    picture.save("packing.svg")


def classes():
    """Twelve batches of eight: shuffled, stratified, balanced."""
    labels = np.repeat([0, 1, 2], [72, 18, 6])
    rng = np.random.default_rng(3)

    def seeded():
        return torch.Generator().manual_seed(3)

    rows = {
        "shuffle=True": rng.permutation(96).reshape(12, 8),
        "StratifiedBatchSampler(labels, 8)": list(
            StratifiedBatchSampler(labels, 8, generator=seeded())
        ),
        "ClassBalancedSampler(labels), batches of 8": np.array(
            list(ClassBalancedSampler(labels, generator=seeded()))
        ).reshape(12, 8),
    }
    picture = Picture(720)
    for title, batches in rows.items():
        picture.y += 20
        picture.text(0, title)
        picture.y += 10
        for column, batch in enumerate(batches):
            for row, label in enumerate(sorted(labels[np.asarray(batch)])):
                colour = COLOURS[label]
                picture.bar(column * 30, picture.y + row * (BAR + GAP), 22, colour)
        picture.y += 8 * (BAR + GAP) + 4
    picture.y += 6
    picture.save("classes.svg")


def windows():
    """Windows over a series, and a chronological split of them."""
    series = SlidingWindows(np.arange(60), length=8, stride=3, horizon=2)
    train = range(0, round(0.7 * (len(series) - series.gap)))
    test = range(train.stop + series.gap, len(series))
    scale, picture = 11, Picture(720)
    picture.y = 16
    picture.text(0, "series of 60 steps")
    picture.y += 8
    picture.bar(0, picture.y, 60 * scale, PADDING)
    picture.y += 30
    picture.text(0, "length=8, stride=3, horizon=2: training part, windows left out, test part")
    picture.y += 8
    for i in range(len(series)):
        start = i * series.stride * scale
        kept = i in train or i in test
        past = COLOURS[0 if i in train else 2] if kept else PADDING
        picture.bar(start, picture.y, series.length * scale, past)
        future = COLOURS[1] if kept else PADDING
        picture.bar(
            start + series.length * scale + 1, picture.y, series.horizon * scale - 1, future
        )
        picture.y += BAR
    picture.y += 8
    picture.save("windows.svg")


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for draw in (buckets, collations, packing, classes, windows):
        draw()
