"""From a task to a batch: datasets, collation, gathering, their random numbers."""

from headrace.engine.making.recipe import Recipe

__all__ = ["Recipe"]
