"""Structural pruning: which channels go together, how they rank, which stay, and the narrower network."""
