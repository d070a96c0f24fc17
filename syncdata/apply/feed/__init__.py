"""What comes next: files, what may follow what, tables that go on together, snapshots."""
