"""The local side: from the archive to rows, exactly once. Knows nothing of production, or of Django."""
