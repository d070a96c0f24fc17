"""Threads, streams and retries that know nothing of syncing."""
