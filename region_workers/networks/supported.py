"""Which of diffusers' UNets can be pruned, as told by their config, and what one forward pass of a network takes."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from region_workers.networks.drawing_gru import DrawingGRU
from schemas.errors import user_error
from schemas.manifest import POINTS_COUNTED

_BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
}
_MID_BLOCKS = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn", None)
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "learned"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "time_cond_proj_dim": (None,),
    "dual_cross_attention": (False,),
    "only_cross_attention": (False,),
    "class_embeddings_concat": (False,),
}
_TEXT = ("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type")


def check_text_free(config: Mapping[str, Any]) -> None:
    """Raise UserError if the network of this config is conditioned on text, images or another sequence.

    Only classes condition a network here: `num_class_embeds`, or our own `num_context_classes`, one learned vector a
    class to which the CrossAttn blocks attend.
    """
    remedy = "Use an unconditional or a class-conditional network: text-conditioned ones are not supported."
    for field in _TEXT:
        if config.get(field) is not None:
            raise user_error(field, config[field], "none", remedy)
    blocks = (*config["down_block_types"], config.get("mid_block_type"), *config["up_block_types"])
    attending = [block for block in blocks if block is not None and "CrossAttn" in block]
    if attending and config.get("num_context_classes") is None:
        expected = "blocks that do not attend to a text (encoder_hidden_states)"
        raise user_error("block types", attending[0], expected, remedy)


def check_prunable(config: Mapping[str, Any]) -> None:
    """Raise UserError, naming the field, if the dense network of this config cannot be pruned and trained here.

    The config is that of a UNet2DModel, a UNet2DConditionModel or one of our classes.
    """
    check_text_free(config)
    for field, supported in _BLOCKS.items():
        for block in config[field]:
            _check(field, block, supported)
    _check("mid_block_type", config.get("mid_block_type"), _MID_BLOCKS)
    for field, values in _SUPPORTED.items():
        if field in config:
            _check(field, config[field], values)
    if config["out_channels"] != config["in_channels"]:
        expected = f"in_channels = {config['in_channels']}, since the network predicts the noise alone"
        raise user_error("out_channels", config["out_channels"], expected, "Choose one that predicts no variance.")


def _check(field: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported:
        names = " or ".join("none" if option is None else str(option) for option in supported)
        raise user_error(field, value, names, "Pruning knows no other: start from another dense network.")


def network_inputs(
    network: nn.Module, device: torch.device | str = "meta", side: int | tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Inputs of one forward pass of a diffusers UNet, batch of one: `sample` (1, in_channels, height, width),
    `timestep` (1,) and, if it takes classes, `class_labels` (1,); both int64. diffusers' UNet2DConditionModel insists
    on `encoder_hidden_states`, though no block of a text-free one looks at it: it gets a (1, 1, 1).

    `side` is height and width, the network's `sample_size` if None, or, where it has none, the smallest it can halve
    at every level. Of a DrawingGRU `sample` is (1, side, 3), with POINTS_COUNTED points if None.
    """
    timestep = torch.ones(1, dtype=torch.long, device=device)
    if isinstance(network, DrawingGRU):
        points = side if isinstance(side, int) else POINTS_COUNTED
        return {"sample": torch.zeros(1, points, 3, device=device), "timestep": timestep}
    config: Any = cast(Any, network).config
    size = side or config.sample_size or 2 ** len(config.block_out_channels)
    height, width = (size, size) if isinstance(size, int) else size
    inputs = {
        "sample": torch.zeros(1, config.in_channels, height, width, device=device),
        "timestep": timestep,
    }
    if isinstance(network, UNet2DConditionModel) and not hasattr(network, "context_embedding"):
        inputs["encoder_hidden_states"] = torch.zeros(1, 1, 1, device=device)
    if any(getattr(network, table, None) is not None for table in ("class_embedding", "context_embedding")):
        inputs["class_labels"] = torch.zeros(1, dtype=torch.long, device=device)
    return inputs
