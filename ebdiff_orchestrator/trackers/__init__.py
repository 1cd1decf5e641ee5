"""Curves and pictures of a run where people keep theirs: TensorBoard, MLflow, Weights & Biases."""

from ebdiff_orchestrator.trackers.group import TENSORBOARD_FOLDER, WANDB_FOLDER, Series, Trackers, check_trackers

__all__ = ["TENSORBOARD_FOLDER", "WANDB_FOLDER", "Series", "Trackers", "check_trackers"]
