"""Production, prepared: what logical replication needs of the source; checked, set up, dropped."""
