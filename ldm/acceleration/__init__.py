"""Optional ways to compute less, each at a price in accuracy that ``bench/accelerations.py`` measures."""
