"""Files somewhere else: found, fetched, put there once, removed. Knows names and bytes, no records."""
