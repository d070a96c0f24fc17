"""All that exists for the Go tool alone: adopts its tables, reads its state file, mirrors the state in it."""
