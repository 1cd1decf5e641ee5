"""Evaluation: the Frechet distance (FID) of a run's images to its data, over all workers of a cluster, resumable."""
