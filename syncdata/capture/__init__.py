"""The production side: from a replication slot to change files and snapshots. No Django in here."""
