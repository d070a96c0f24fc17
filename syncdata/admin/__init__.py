"""The admin: the dashboard, the whitelist and what may be asked for its tables, the state to read."""

from syncdata.admin import model_admins

__all__ = ["model_admins"]
