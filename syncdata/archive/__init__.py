"""The archive's files: listed, fetched, put there once, removed. Knows names, bytes, headers; no records."""
