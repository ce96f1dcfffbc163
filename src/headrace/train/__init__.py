"""Training in mini-batches: a loop as it is written by hand, done right once."""

from headrace.train.early_stopping import EarlyStopping
from headrace.train.ema import EMA
from headrace.train.history import History
from headrace.train.step import train_epoch, train_step
from headrace.train.trainer import Callback, Trainer

__all__ = ["EMA", "Callback", "EarlyStopping", "History", "Trainer", "train_epoch", "train_step"]
