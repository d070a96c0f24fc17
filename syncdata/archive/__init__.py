"""The archive's files: listed, fetched, put there once, removed. Knows names and bytes; knows no records."""
