"""One preview of a run that still trains, drawn in a process of its own that gives way to the training."""
