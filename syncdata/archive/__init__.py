"""Files somewhere else: found, fetched, put there once, removed. Knows names and bytes; knows no records."""
