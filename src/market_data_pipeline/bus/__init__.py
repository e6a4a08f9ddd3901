"""The durable log: one file per backend, and the codec that all of them share."""
