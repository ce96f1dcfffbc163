"""Datasets and sources: what the samples are and how they are read."""
