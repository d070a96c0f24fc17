"""From records to what must be written, as values. Pure: no connection, no thread, no clock."""
