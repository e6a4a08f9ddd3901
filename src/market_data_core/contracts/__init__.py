"""The seams: one protocol file per stage word, in the order in which data passes them."""

STAGES = ("provider", "bus", "window", "store", "feature", "inference", "signal")
"""The seven stages, in the one order used wherever stages are listed."""
