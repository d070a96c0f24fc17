"""The sinks of PostgreSQL: batches into the tables of a database. Knows SQL; knows nothing of cycles."""
