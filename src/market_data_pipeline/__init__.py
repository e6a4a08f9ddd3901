"""Capture, windows and delivery: from a provider to committed bars. Knows no SQL."""
