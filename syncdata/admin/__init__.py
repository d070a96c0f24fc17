"""The admin: the dashboard, the whitelist and requests for its tables, syncdata's own tables to read.

Knows pages and permissions; reads and changes the tables' state through the tables service alone.
"""

from syncdata.admin import model_admins, whitelist

__all__ = ["model_admins", "whitelist"]
