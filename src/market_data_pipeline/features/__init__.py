"""Features over closed bars: one file per family."""
