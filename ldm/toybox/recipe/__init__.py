"""How the toybox's own models are trained and scored: scripts, each run as a module."""
