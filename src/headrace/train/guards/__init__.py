"""What is wrong with a training, said once, with the line to write."""

from headrace.train.guards.guards import Guards

__all__ = ["Guards"]
