"""What one GPU does: build, prune, draw, train and checkpoint one region. Torch, never ray."""
