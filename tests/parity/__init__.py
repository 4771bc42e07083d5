"""Parity tests: this project against the public PyTorch implementations, run side by side on the same numbers."""
