"""The admin: the dashboard, the whitelist and requests for its tables, syncdata's own tables to read."""

from syncdata.admin import model_admins, whitelist

__all__ = ["model_admins", "whitelist"]
