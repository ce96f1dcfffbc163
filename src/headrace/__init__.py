"""headrace: a drop-in PyTorch ``DataLoader`` and the batching around it."""

__version__ = "0.1.0"
