"""Images: folders of files, and the small sets that people learn with."""

from headrace.data.images.cifar import CIFAR10, CIFAR100
from headrace.data.images.decoder import ImageDecoder
from headrace.data.images.folder import ImageFolder
from headrace.data.images.mnist import EMNIST, KMNIST, MNIST, FashionMNIST

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "FashionMNIST",
    "ImageDecoder",
    "ImageFolder",
]
