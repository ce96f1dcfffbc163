"""A small JAX model trained from the same loader: NumPy batches, workers, resume."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from headrace import ArrayDataset, DataLoader, numpy_collate

# 1,797 digits of 8 x 8 pixels, as NumPy arrays. No tensor is made of them.
digits = load_digits()
images = (digits.data / 16).astype(np.float32)
labels = digits.target.astype(np.int32)
train = ArrayDataset(images[:1500], labels[:1500])
test = ArrayDataset(images[1500:], labels[1500:])


def make_loader():
    """Return the loader for training; several processes would add shard=(index, count)."""
    return DataLoader(train, batch_size=64, shuffle=True, seed=0, collate_fn=numpy_collate)


def start():
    """Return the weights of an untrained network of one hidden layer."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(first, (64, 32)) / 8,
        "b1": jnp.zeros(32),
        "w2": jax.random.normal(second, (32, 10)) / 6,
        "b2": jnp.zeros(10),
    }


def scores(weights, x):
    hidden = jax.nn.relu(x @ weights["w1"] + weights["b1"])
    return hidden @ weights["w2"] + weights["b2"]


def loss_of(weights, x, y):
    return -jnp.mean(jax.nn.log_softmax(scores(weights, x))[jnp.arange(len(y)), y])


@jax.jit
def step(weights, x, y):
    loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
    return jax.tree.map(lambda w, g: w - 0.5 * g, weights, gradients), loss


weights = start()
loader = make_loader()
for epoch in range(5):
    losses = []
    for x, y in loader:  # NumPy arrays of shape (64, 64) and (64,)
        weights, loss = step(weights, x, y)
        losses.append(loss)
    print(f"epoch {epoch}: loss {np.mean(losses):.2f}")

x, y = next(iter(DataLoader(test, batch_size=297, collate_fn=numpy_collate)))
right = np.mean(np.argmax(scores(weights, x), axis=1) == y)
print(f"right on {right:.0%} of {len(y)} digits that it has not seen")

# A stop in the middle of an epoch: a state is JSON, and goes beside the weights.
stopped = make_loader()
batches = iter(stopped)
for _ in range(10):
    next(batches)
state = stopped.state_dict()
wanted = [y.tolist() for _, y in batches]

resumed = make_loader()
resumed.load_state_dict(state)
print("resumed with the same batches:", [y.tolist() for _, y in resumed] == wanted)
