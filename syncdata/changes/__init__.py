"""The contract of the two sides: what a change file is called, what its lines say, and their order. Pure."""
