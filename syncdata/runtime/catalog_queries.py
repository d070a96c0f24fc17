"""Parts of queries on PostgreSQL's catalogs that both sides ask. Knows SQL; opens no connection."""

from __future__ import annotations

from typing import LiteralString

# The collation of the column `a`, where texts that differ may be equal in it (nondeterministic); its locale
# has another column from version to version. The name is of no matter: it is given by whoever made it.
BLIND_COLLATION: LiteralString = """
SELECT concat_ws(':', l.collprovider::text,
                 coalesce(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale',
                          to_jsonb(l) ->> 'collcollate'),
                 to_jsonb(l) ->> 'collicurules')
FROM pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic
"""
