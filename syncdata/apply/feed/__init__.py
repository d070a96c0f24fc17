"""From the archive to batches: files, their continuity, groups of tables, snapshots. Knows no database."""
