"""Curves and pictures of a run where people keep theirs: TensorBoard, MLflow, Weights & Biases."""

from ebdiff_orchestrator.trackers.group import Trackers, check_trackers
from ebdiff_orchestrator.trackers.tracker import TENSORBOARD_FOLDER, WANDB_FOLDER, Series, Tracker

__all__ = ["TENSORBOARD_FOLDER", "WANDB_FOLDER", "Series", "Tracker", "Trackers", "check_trackers"]
