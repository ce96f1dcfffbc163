"""A time series: predict the next hours from the last two days, without a look at the answers."""

import warnings

import numpy as np
import torch
from torch import nn

from headrace import DataLoader, SlidingWindows, chronological_split, random_split

torch.manual_seed(0)

# 100 days of hourly temperatures: a daily and a yearly wave, and weather that drifts.
rng = np.random.default_rng(0)
hours = np.arange(24 * 100)
drift = np.zeros(len(hours))
for t in range(1, len(hours)):
    drift[t] = 0.97 * drift[t - 1] + rng.normal(0, 0.4)
waves = 6 * np.sin(2 * np.pi * hours / 24) + 8 * np.sin(2 * np.pi * hours / (24 * 365))
temperature = (12 + waves + drift).astype(np.float32)

# Mean and spread come from the training part alone: the rest is the future, which nobody knows.
known = temperature[: int(0.7 * len(temperature))]
series = (temperature - known.mean()) / known.std()

# Window i covers the hours i .. i + 47, and the 6 behind them are what is to be predicted.
windows = SlidingWindows(series, length=48, horizon=6)
print(f"{len(series)} hours, {len(windows)} windows of 48 hours, each with 6 to predict")

# Neighbouring windows share 53 of their 54 hours. Split at random, the model would be tested on
# hours it was trained on. Cut by time, and leave out what would be on both sides of a cut.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    random_split(windows, [0.7, 0.3])
print(f"random_split warns: {type(caught[0].message).__name__}")
train, validation, test = chronological_split(windows, [0.7, 0.15, 0.15])
for name, part in (("train", train), ("validation", validation), ("test", test)):
    print(f"  {name:10} windows {part.indices[0]:4} to {part.indices[-1]:4}")
print(f"  left out between two parts: {windows.gap}")

# Within the training part a shuffle is fine: its order in time is not what we test.
train_loader = DataLoader(train, batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 6))
optimizer = torch.optim.Adam(model.parameters(), lr=0.002)


def mean_error(predict, part):
    """Return the mean absolute error in degrees."""
    total = 0.0
    with torch.no_grad():
        for past, future in DataLoader(part, batch_size=256):  # (256, 48) and (256, 6)
            total += float((predict(past) - future).abs().sum())
    return total / (len(part) * 6) * float(known.std())


for epoch in range(1, 9):
    for past, future in train_loader:
        loss = nn.functional.mse_loss(model(past), future)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 2 == 0:
        print(f"epoch {epoch}: validation error {mean_error(model, validation):.2f} degrees")


def as_yesterday(past):
    return past[:, -24:-18]  # the same hours of the day before


# A model is worth its cost if it beats the simplest guess. The test part is looked at once.
print(f"test error: model {mean_error(model, test):.2f} degrees, ", end="")
print(f"as yesterday {mean_error(as_yesterday, test):.2f} degrees")
