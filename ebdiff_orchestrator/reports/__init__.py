"""Reports: what finished and running runs show, read from their directories; nothing here writes into a run."""
