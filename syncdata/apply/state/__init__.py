"""syncdata's own tables: checkpoints, audit, metrics, runs, the queue. True by the transaction they share."""
