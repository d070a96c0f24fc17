"""The contract of the two sides: names, lines and order of change files, read and written. Pure."""
