"""Training: one update equals the one big batch, for any split, and every run leaves its record."""
