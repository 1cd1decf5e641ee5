"""Which region runs when, and on how many devices."""
