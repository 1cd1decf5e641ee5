"""Files that survive, and whether they are whole: in a folder or in an object store; no torch."""
