"""Contracts of the platform: events, records, configuration and protocols; no I/O."""
