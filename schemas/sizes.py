"""Sizes of a plan's networks, counted once and recorded in the run: parameters and multiply-accumulates."""

from pydantic import Field

from schemas.section import Section, is_none

POINTS_COUNTED = 100  # of a drawing, where costs are counted: they are in proportion to it


class Costs(Section):
    """Parameters, and multiply-accumulates of one forward pass by two counters.

    `params` counts the UNet, as the paper does: not the table of class vectors that CrossAttn blocks attend to
    (`context_embedding`, classes + 1 rows; 0.51 M for ImageNet), which is never pruned and which CompVis keeps beside
    its UNet; a class embedding that is added to the time embedding counts.

    `macs` is torch-pruning's counter, which the paper used: convolutions, linear layers, norms and activations, but
    not the attention's matrix products. `macs_with_attention` is half of torch.utils.flop_counter's operations:
    convolutions, linear layers and the attention's products (CIFAR-10: 6.06 G and 6.22 G). Of a DrawingGRU both are
    the latter, of a drawing of POINTS_COUNTED points.
    """

    params: int
    macs: int
    macs_with_attention: int


class SparseCosts(Section):
    """What a sparse network keeps of the `maskable` weights and of all parameters, and would cost if nothing were
    computed for a masked weight: theoretical, for no device does so.

    `forward_macs` and `step_macs` count convolutions, linear layers and the attention's products, for one sample: of a
    forward pass, and of a training step by the method's average. `stored_bytes`: what the weights take in the expert's
    file, its header left out, and `dense_bytes`: what they would if none were masked.
    """

    maskable: int
    kept: int
    kept_params: int
    forward_macs: int
    step_macs: int
    stored_bytes: int
    dense_bytes: int


class RegionSizes(Section):
    """One region's expert."""

    realised_ratio: float = Field(description="The share of all prunable channels that its pruning ratio removes.")
    costs: Costs
    sparse: SparseCosts | None = Field(None, exclude_if=is_none, description="null: its weights have no mask.")


class NetworkSizes(Section):
    """The dense network and each region's expert, in the plan's order."""

    dense: Costs
    regions: tuple[RegionSizes, ...]
