"""Rules and models over feature columns."""
