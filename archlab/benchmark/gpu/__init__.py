"""Checks of a CUDA device, each of which also runs on the CPU at small sizes, as far as a CPU has what it asks about."""
