"""Images: found, decoded once into a memory-mapped store, served as batches that are functions of the step."""
