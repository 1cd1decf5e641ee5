"""Evaluation: FID of a run's images against its data, by pytorch-fid, over all workers of a cluster, resumable."""
