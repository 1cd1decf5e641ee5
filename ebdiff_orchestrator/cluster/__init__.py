"""Where work is done, and the only place that imports ray: an Executor in this process, or on Ray."""
