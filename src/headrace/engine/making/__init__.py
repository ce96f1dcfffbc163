"""From a task to a batch: datasets, collation, gathering, their random numbers."""

from headrace.engine.making.fetch import Recipe

__all__ = ["Recipe"]
