"""Drawing tickets: train the dense model until its mask stops changing."""
