"""Production: from the replication slot to the archive. Knows nothing of the local side, or of Django."""
