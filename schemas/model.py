"""The model section of a plan: what is denoised, and by which dense network."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from schemas.data import Posterior
from schemas.errors import cross_field_error
from schemas.limits import LARGE, MANY, MOST_CHANNELS
from schemas.section import Place, Section, Text, is_none

Width = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
PixelDownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
PixelUpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]

LatentDownBlock = Literal[PixelDownBlock, "CrossAttnDownBlock2D"]
LatentUpBlock = Literal[PixelUpBlock, "CrossAttnUpBlock2D"]


class _NetworkPlan(Section):
    """What both kinds of dense network have, by diffusers' argument names."""

    pretrained: Place | None = Field(
        None,
        description="Start from this dense network: a diffusers folder or hub name (with or without unet/), or an "
        "earlier dense run. It replaces the arguments below by its own; null: fresh weights.",
    )
    block_out_channels: tuple[Width, ...]
    layers_per_block: int = Field(2, ge=1, le=100)
    down_block_types: tuple[Text, ...]
    up_block_types: tuple[Text, ...]
    norm_num_groups: int = Field(8, ge=1, le=MOST_CHANNELS)
    attention_head_dim: int | None = Field(None, ge=1, le=MOST_CHANNELS)
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    dropout: float = Field(0.0, ge=0, lt=1)
    num_classes: int | None = Field(
        None, ge=1, le=MANY, description="Classes of a class-conditional model; null: none."
    )
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of labels replaced by `no class` in training, for classifier-free guidance."
    )

    @model_validator(mode="after")
    def _blocks_agree(self) -> Self:
        levels = len(self.block_out_channels)
        if levels == 0:
            raise cross_field_error("model.block_out_channels", [], "at least one width", "Name one for each level.")
        for field in ("down_block_types", "up_block_types"):
            types = getattr(self, field)
            if len(types) != levels:
                expected = f"{levels} entries, one for each of model.block_out_channels"
                raise cross_field_error(f"model.{field}", list(types), expected, "Make the two lists equally long.")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                expected = f"multiples of model.norm_num_groups = {self.norm_num_groups}"
                remedy = "Change the widths or the number of norm groups."
                raise cross_field_error("model.block_out_channels", list(self.block_out_channels), expected, remedy)
        return self


class PixelModelPlan(_NetworkPlan):
    """The dense network on pixels: diffusers' UNet2DModel, by its own argument names."""

    family: Literal["pixel"] = "pixel"
    block_out_channels: tuple[Width, ...] = (64, 128)
    down_block_types: tuple[PixelDownBlock, ...] = ("DownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[PixelUpBlock, ...] = ("AttnUpBlock2D", "UpBlock2D")
    norm_eps: float = Field(1e-6, gt=0, le=1)
    downsample_padding: int = Field(0, ge=0, le=1)
    flip_sin_to_cos: bool = False
    freq_shift: int = Field(1, ge=0, le=1)
    add_attention: bool = True


class LatentModelPlan(_NetworkPlan):
    """The dense network on a VAE's latents (LDM, arXiv 2112.10752), one of two by `network`.

    In a UNet2DConditionModel a class is one learned vector of `cross_attention_dim`, to which every transformer block
    attends.
    """

    family: Literal["latent"]
    network: Literal["UNet2DModel"] | None = Field(
        None,
        exclude_if=is_none,
        description="UNet2DModel: LDM's unconditional network, of Attn blocks whose heads have attention_head_dim "
        "channels; null: a UNet2DConditionModel, of CrossAttn blocks.",
    )
    vae: Place = Field(description="A diffusers AutoencoderKL or VQModel: a folder or a hub name.")
    vae_subfolder: Place | None = Field(None, description="Where in it the VAE is; found by itself in a pipeline.")
    scaling_factor: float | None = Field(
        None, gt=0, le=LARGE, description="Latents are multiplied by it; null: the VAE's own."
    )
    posterior: Posterior | None = Field(
        None,
        description="An AutoencoderKL's latent is one sample of the image's posterior, as LDM trains on, or its mode; "
        "null: sample. A VQModel has none.",
    )
    latent_channels: int = Field(3, ge=1, le=MOST_CHANNELS)
    latent_downscale: int = Field(4, ge=1, le=MOST_CHANNELS, description="Pixels a latent's side stands for; VQ-f4: 4.")
    block_out_channels: tuple[Width, ...] = (192, 384, 576, 960)
    down_block_types: tuple[LatentDownBlock, ...] = (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
    )
    up_block_types: tuple[LatentUpBlock, ...] = (
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
    )
    norm_num_groups: int = Field(32, ge=1, le=MOST_CHANNELS)
    attention_head_dim: int | None = Field(
        1,
        ge=1,
        le=MOST_CHANNELS,
        description="The number of heads, by diffusers' misnomer; a UNet2DModel's: as it says.",
    )
    norm_eps: float = Field(1e-5, gt=0, le=1)
    downsample_padding: int = Field(1, ge=0, le=1)
    flip_sin_to_cos: bool = True
    freq_shift: int = Field(0, ge=0, le=1)
    cross_attention_dim: int = Field(512, ge=1, le=MOST_CHANNELS)
    transformer_layers_per_block: int = Field(1, ge=1, le=100)

    @model_validator(mode="after")
    def _context_exists(self) -> Self:
        attends = any("CrossAttn" in name for name in (*self.down_block_types, *self.up_block_types))
        if attends and self.network is not None:
            types = [name for name in self.down_block_types if "CrossAttn" in name]
            expected = f"blocks of a {self.network}, which have no context to attend to"
            remedy = "Use Attn blocks, or leave model.network out."
            raise cross_field_error("model.down_block_types", types, expected, remedy)
        if attends and self.num_classes is None:
            expected = "a number of classes, since the CrossAttn blocks attend to the class"
            remedy = "Set model.num_classes and data.label_column, or use DownBlock2D and UpBlock2D."
            raise cross_field_error("model.num_classes", None, expected, remedy)
        return self


class VectorModelPlan(Section):
    """The dense network on vector drawings: ChiroDiff's bidirectional GRU (arXiv 2304.03785), of a DrawingGRU.

    The defaults are those of its released configuration.
    """

    num_classes: ClassVar[None] = None

    family: Literal["vector"]
    pretrained: Place | None = Field(
        None,
        description="Start from this dense network: a folder of a DrawingGRU, or an earlier dense run. It must have "
        "the sizes below; null: fresh weights.",
    )
    hidden_size: int = Field(96, ge=1, le=MOST_CHANNELS, description="Units of each layer in each direction.")
    num_layers: int = Field(3, ge=1, le=100)
    time_embed_dim: int = Field(
        8, ge=2, le=MOST_CHANNELS, multiple_of=2, description="Sines and cosines of time, of half as many frequencies."
    )


def _family_of(model: Any) -> str:
    return str(model.get("family", "pixel") if isinstance(model, dict) else getattr(model, "family", "pixel"))


ModelPlan = Annotated[
    Annotated[PixelModelPlan, Tag("pixel")]
    | Annotated[LatentModelPlan, Tag("latent")]
    | Annotated[VectorModelPlan, Tag("vector")],
    Discriminator(_family_of),
]
