"""Distances between distributions of pictures."""
