"""From bars to signals: features and inference put together, live and over ranges of a store."""
