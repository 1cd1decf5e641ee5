"""One worker's life: a job from its start to its end."""
