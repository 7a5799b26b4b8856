"""Correctness, speed and memory on a real GPU in a few minutes, without network access: see `command`."""
