"""syncdata's own tables: checkpoints, audit, metrics, runs, queue. Knows SQL; knows nothing of archives."""
