"""syncdata's own tables: checkpoints, audit, metrics, runs, the queue of requests. Knows psycopg."""
