"""Curves and pictures of a run where people keep theirs: TensorBoard, MLflow, Weights & Biases."""
