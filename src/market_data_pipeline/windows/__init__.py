"""Event-time windows: assignment, watermark, exact aggregation, and the engine that joins them."""
