"""syncdata: keep whitelisted PostgreSQL tables in step with change files from an archive."""

__version__ = "1.0.0.dev0"
