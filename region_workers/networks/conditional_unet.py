"""The class-conditional UNet of latents: CrossAttn blocks attend to one learned vector, the class; also pruned."""

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from region_workers.networks.pruned_network import KeptConfig, LoadedStrictly, build_narrow, takes_arguments_of
from schemas.errors import user_error


class PrunedUNet2DConditionModel(LoadedStrictly, UNet2DConditionModel):  # type: ignore[misc]  # diffusers is untyped
    """A `UNet2DConditionModel` that looks its context up by class, dense or narrowed to its kept channels.

    Its arguments and config are UNet2DConditionModel's, which describe the dense network, and

    - `num_context_classes`: rows of `context_embedding`, the classes and a last one for `no class`; every CrossAttn
      block attends to a class's row as to a sequence of one token (LDM, arXiv 2112.10752, cin256). None: no such
      table; the context is then what `forward` is given.
    - `kept_channels`: by layer, {"outputs": indices or None, "inputs": indices or None}; None or {}: dense.

    A new model has fresh weights. `save_pretrained` writes safetensors and config.json; `from_pretrained` needs
    neither torch-pruning nor the dense weights.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    @takes_arguments_of(UNet2DConditionModel)
    def __init__(
        self,
        *args: Any,
        num_context_classes: int | None = None,
        kept_channels: KeptConfig | None = None,
        **kwargs: Any,
    ) -> None:
        def build() -> None:
            super(PrunedUNet2DConditionModel, self).__init__(*args, **kwargs)
            self.context_embedding = None
            if num_context_classes is not None:
                self.context_embedding = nn.Embedding(num_context_classes, _context_width(self.config))

        build_narrow(self, build, kept_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """UNet2DConditionModel's `forward`, where `encoder_hidden_states` may be left out.

        `sample` is [B, in_channels, H, W], `timestep` a number or [B], `class_labels` int64 [B]: rows of
        `context_embedding` where there is one, otherwise of diffusers' own class embedding. ValueError without labels
        for the former.
        """
        if self.context_embedding is not None and encoder_hidden_states is None:
            if class_labels is None:
                raise ValueError(
                    "class_labels = None: expected one class for each sample, int64 [B]. Pass "
                    f"{self.config.num_context_classes - 1} for `no class`."
                )
            encoder_hidden_states = self.context_embedding(class_labels).unsqueeze(1)
        return super().forward(sample, timestep, encoder_hidden_states, class_labels, *args, **kwargs)


def _context_width(config: Any) -> int:
    width = config.cross_attention_dim
    if isinstance(width, int):
        return width
    expected = "one number with num_context_classes"
    raise user_error("cross_attention_dim", width, expected, "Make all levels equally wide.")
