"""The engine: change files in, rows and checkpoints out. Knows nothing of Django."""
