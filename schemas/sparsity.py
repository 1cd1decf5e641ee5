"""The sparsity section of a plan: experts of which most weights are zero, from their first step to their last."""

from typing import Any, Literal, Self

from pydantic import Field

from schemas.limits import MOST_STEPS
from schemas.section import Section

Distribution = Literal["erk", "er", "uniform"]
_ONLY_OF_UPDATES = {"prune_ratio", "decay", "interval_steps", "stop_share"}


class SparsityPlan(Section):
    """Sparse-to-sparse training (arXiv 2504.21380): every convolution and linear weight has a mask; biases have none.

    What the paper does not state, as far as it could be read, is a choice of ours and says so.
    """

    method: Literal["static", "rigl", "magran"] = Field(
        description="static: the first mask stays; rigl, magran: every update the smallest weights leave, and as many "
        "come: those of the largest gradient (rigl, arXiv 1911.11134), or at random (magran)."
    )
    sparsity: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="The share of the maskable weights that is zero, in every region without one of its own; the "
        "paper finds 0.25 to 0.5 safe for rigl and magran.",
    )
    distribution: Distribution = Field(
        "erk",
        description="How dense each layer is: erk, er: the smaller the denser, by all sides of its weight (arXiv "
        "1911.11134) or by its inputs and outputs (arXiv 1707.04780); uniform: all alike. The default is ours.",
    )
    prune_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The share of a layer's kept weights that an update exchanges; null: 0.5 up to a sparsity of 0.5, "
        "which is ours, and 0.05 above, which the paper recommends.",
    )
    decay: Literal["constant", "cosine"] = Field(
        "cosine", description="cosine: the exchanged share falls to 0 at the last update, as RigL's; ours."
    )
    interval_steps: int = Field(100, ge=1, le=MOST_STEPS, description="Steps between two updates; RigL's.")
    stop_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Updates end at this share of the steps: RigL's. The EMA must forget what left before the end.",
    )

    def of_region(self, sparsity: float | None) -> Self:
        return self if sparsity is None else self.model_copy(update={"sparsity": sparsity})

    def determinants(self, steps: int) -> dict[str, Any]:
        """The fields that determine a training of `steps`, of which a static mask is independent."""
        if self.method == "static":
            return self.model_dump(mode="json", exclude=_ONLY_OF_UPDATES)
        return {**self.model_dump(mode="json"), "steps": steps}
