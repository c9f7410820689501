"""What goes wrong with machines and what is done on purpose: short in CI, long by `python -m tests.faults`."""
