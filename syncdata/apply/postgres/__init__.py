"""The sink: batches into the tables of a PostgreSQL database."""
