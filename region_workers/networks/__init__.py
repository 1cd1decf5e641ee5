"""The networks: dense, pruned, from a hub; their parameters and multiply-accumulates."""

from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pruned_unet import PrunedUNet2DConditionModel, PrunedUNet2DModel

__all__ = ["DrawingGRU", "PrunedUNet2DConditionModel", "PrunedUNet2DModel"]
