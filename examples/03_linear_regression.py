"""A line through points: the model finds y = 2x + 1 from noisy samples."""

import torch
from torch import nn

from headrace import DataLoader, TensorDataset

torch.manual_seed(0)

# 200 points near the line. Shapes (200, 1): samples first, then one feature.
x = torch.rand(200, 1) * 4 - 2  # between -2 and 2
y = 2 * x + 1 + 0.1 * torch.randn(200, 1)

loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)

model = nn.Linear(1, 1)  # y = weight * x + bias, two numbers to learn
loss_function = nn.MSELoss()  # the mean of the squared errors
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

print(f"before : y = {model.weight.item():.3f} x + {model.bias.item():.3f}")
for epoch in range(1, 11):
    loss_sum = 0.0
    for inputs, targets in loader:  # (16, 1) and (16, 1); the last batch has 8 samples
        predictions = model(inputs)
        loss = loss_function(predictions, targets)
        optimizer.zero_grad()  # forget the gradients of the batch before
        loss.backward()  # how the loss changes with weight and bias
        optimizer.step()  # one small step against that
        loss_sum += loss.item() * len(inputs)
    if epoch in (1, 2, 5, 10):
        weight, bias = model.weight.item(), model.bias.item()
        print(f"epoch {epoch:2}: y = {weight:.3f} x + {bias:.3f}, loss {loss_sum / len(x):.4f}")

# What is left of the loss is the noise: its variance is 0.1 squared, 0.01.
assert abs(model.weight.item() - 2) < 0.05
assert abs(model.bias.item() - 1) < 0.05
