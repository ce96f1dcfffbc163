"""The network: three small convolutions, 57,000 weights."""

from torch import nn

from headrace.cli.demo.data import CLASSES


def digits_network() -> nn.Sequential:
    """Return an untrained network from images (batch, 1, 8, 8) to scores (batch, 10)."""
    return nn.Sequential(
        *_convolution(1, 32),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 2 * 2, CLASSES),
    )


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
