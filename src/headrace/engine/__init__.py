"""Movement: from tasks to batches in the order they were asked for."""
