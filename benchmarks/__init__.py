"""Benchmarks that run both sides in one go and print ratios: ``python -m benchmarks``."""
