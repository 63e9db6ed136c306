"""Merge methods for Eutectic; the entry points in pyproject.toml name them."""
