"""What tests of the platform and of its backends stand on.

Modules are imported one by one: :mod:`~market_data_core.testing.strategies` needs Hypothesis, the
rest only what the platform itself needs.
"""
