"""Public PyTorch checkpoints read into this project's models, without PyTorch."""
