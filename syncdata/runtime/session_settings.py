"""The settings of a PostgreSQL session that results depend on: one list for both sides. Knows no driver.

A role or a database may have settings for its applications (``ALTER ROLE … SET``, ``ALTER DATABASE …
SET``). A session of ours pins those that decide how values read and print, whether it may write, and how long
it may take. Not in the list: ``synchronous_commit`` and the like, which are the owner's choice and change no
result; ``search_path`` at the local side, by which syncdata's own tables are found; and what only a superuser
may set.
Tests: test_settings_of_the_role_or_the_database_change_no_result,
test_every_setting_that_results_depend_on_is_pinned_on_both_sides.
"""

from __future__ import annotations

# The text forms of values, in both directions.
TEXT_SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "xmloption": "content",
    "xmlbinary": "base64",
    "array_nulls": "on",
}

# How long something may take, or wait: for ever. Whoever wants a limit sets its own afterwards.
PATIENCE = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",  # from 17 on
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

# What statements mean, and what they may do.
BEHAVIOUR = {
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "off",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "transform_null_equals": "off",
    "check_function_bodies": "on",
    "exit_on_error": "off",
    "default_table_access_method": "heap",
    "client_min_messages": "warning",
}

SESSION_SETTINGS = TEXT_SETTINGS | PATIENCE | BEHAVIOUR


def pin_statement(settings: dict[str, str]) -> str:
    """Return the statement that pins *settings*, as far as the server knows them.

    It has no parameters, since a replication connection takes none, and names its functions in full, since
    the search_path is not pinned yet.
    """
    values = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    return (
        "SELECT pg_catalog.set_config(s.name, wanted.value, false)"
        f" FROM (VALUES {values}) AS wanted (name, value)"
        " JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) wanted.name"
    )
