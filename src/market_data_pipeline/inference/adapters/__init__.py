"""One file per way to evaluate rules or models."""
