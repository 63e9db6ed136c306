"""Quantised checkpoints read as the dense ones that they stand for: one file for each format."""
