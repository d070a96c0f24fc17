"""From the archive to batches: files, what may follow what, tables that go on together, snapshots."""
