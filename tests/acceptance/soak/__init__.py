"""A fault harness: a random workload is archived and applied while things break; then all is compared.

`model` knows the tables and what transactions do to them, `workload` runs these, `world` knows servers and
processes, `faults` how they break, `judge` what must be so afterwards, `verified` what verification must
find, and `rounds` puts them together.
"""
