"""Several feeds at once: restarted when they break, slowed down when the store falls behind."""
