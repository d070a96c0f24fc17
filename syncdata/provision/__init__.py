"""Checks, sets up and drops what logical replication needs at the source. Knows nothing of the archive."""
