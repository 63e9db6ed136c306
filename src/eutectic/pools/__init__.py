"""Pools: a base and its experts in one folder, each of them rebuilt as a lazy `Checkpoint` when it is read."""
