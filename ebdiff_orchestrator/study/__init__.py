"""Studies: rows of plans and seeds run as one piece of work on one cluster, and the table and plot of what came out."""
