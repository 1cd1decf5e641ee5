"""One stage of training: loss, timesteps, randomness, step, checkpoints, the draw and the expert."""
