"""Which batches, in which order: samplers, ranks, and where an order stands."""
