"""The heart: what counters are and what claims get, without I/O or HTTP."""
