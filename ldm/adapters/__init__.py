"""What attaches to a U-Net from outside, through ``control=`` and ``hooks=``."""
