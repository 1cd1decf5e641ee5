"""One run: launched, recorded, resumed, extended."""
