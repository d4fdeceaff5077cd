"""Counters in PostgreSQL."""
