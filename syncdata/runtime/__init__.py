"""Threads, streams, durable files, retries and settings. Knows nothing of syncing."""
