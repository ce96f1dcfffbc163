"""From a task to a batch: datasets, collation, gathering, their random numbers."""
