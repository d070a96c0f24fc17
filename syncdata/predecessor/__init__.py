"""What exists for the Go tool alone: its tables adopted, its state file read and mirrored."""
