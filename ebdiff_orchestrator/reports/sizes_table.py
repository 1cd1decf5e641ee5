"""A plan's networks as tables: their sizes and, of a sparse plan, kept weights and what they would cost in theory."""

from rich.console import Console
from rich.table import Table

from ebdiff_orchestrator.plans.preview import PlanPreview
from ebdiff_orchestrator.reports.formats import TextTable, plain_table, print_table
from ebdiff_orchestrator.reports.measures import method_of
from schemas.manifest import Costs, SparseCosts

_SPARSE_HEADINGS = (
    "network",
    "sparsity",
    "kept M",
    "of maskable M",
    "kept total M",
    "theoretical MACs G: forward",
    "theoretical MACs G: step",
    "stored MB",
)


def show_networks(preview: PlanPreview, console: Console) -> None:
    """Print the plan's networks, for `ebdiff plan`."""
    console.print(_sizes_table(preview))
    if preview.plan.sparsity is not None:
        console.print()
        print_table(sparse_table(preview), console)


def network_sizes(preview: PlanPreview, with_attention: bool = False) -> TextTable:
    """A row each: the dense network, each region's, and their mean as the timesteps weigh them."""

    def sizes(costs: Costs) -> tuple[str, ...]:
        macs = (costs.macs, costs.macs_with_attention) if with_attention else (costs.macs,)
        return _millions(costs.params), *(f"{each / 1e9:.3f}" for each in macs)

    attention = ("+ attention G",) if with_attention else ()
    headings = ("network", "trains", "owns", "target", "removed", "params M", "MACs G", *attention, "steps")
    rows = [("dense", "", "", "", "", *sizes(preview.dense), "")]
    for each in preview.regions:
        ratios = (f"{each.region.pruning_ratio:.0%}", f"{each.realised_ratio:.1%}")
        spans = (_span(each.region.train), _span(each.route))
        rows.append((each.region.name, *spans, *ratios, *sizes(each.costs), str(each.steps)))
    rows.append(("weighted", "", "", "", "", *sizes(preview.weighted), ""))
    return TextTable(headings, tuple(rows))


def sparse_table(preview: PlanPreview) -> TextTable:
    """Of a sparse plan, a row a region beside the dense network; multiply-accumulates say that they are theoretical."""
    dense, stored_bytes = preview.dense, 0
    macs = _macs(dense.macs_with_attention, 3 * dense.macs_with_attention)
    rows = [("dense", "", "", "", _millions(dense.params), *macs, "")]
    for region in preview.regions:
        sparsity, costs = preview.plan.sparsity_of(region.region), region.sparse
        assert sparsity is not None
        assert costs is not None
        stored_bytes += costs.stored_bytes
        stored = f"{_millions(costs.stored_bytes)} of {_millions(costs.dense_bytes)}"
        rows.append((region.region.name, f"{sparsity.method} {sparsity.sparsity:.0%}", *_cells(costs), stored))
    if weighted := preview.weighted_sparse:
        rows.append(("weighted", "", *_cells(weighted), ""))
    return TextTable(
        _SPARSE_HEADINGS,
        tuple(rows),
        (
            f"Theoretical: of {preview.sample}, if masked weights cost nothing. No device at hand skips them: a step "
            "takes as long as a dense one.",
            "Stored: the weights in the expert's file, of what they would take without a mask; "
            f"{_millions(stored_bytes)} MB together.",
        ),
    )


def _sizes_table(preview: PlanPreview) -> Table:
    """One row a region beside the dense network: ranges, ratios, parameters and multiply-accumulates."""
    sizes = network_sizes(preview)
    title = f"plan {preview.plan.name}: {method_of(preview.plan)}"
    table = plain_table(sizes.headings, left=("network",), title=title, no_wrap=True)
    for row in sizes.rows:
        table.add_row(*row)
    whole = [f"{costs.macs_with_attention / 1e9:.3f}" for costs in (preview.dense, preview.weighted)]
    table.caption = f"With the attention's matrix products: {whole[0]} G dense, {whole[1]} G weighted."
    if preview.plan.data.drawings is not None:
        table.caption = f"Multiply-accumulates (MACs) are those of {preview.sample}."
    if preview.plan.draw.method == "one-shot" and preview.plan.model.pretrained is None:
        table.caption += " To launch it, name the trained network: --set model.pretrained=RUN."
    table.caption_justify = "left"
    return table


def _span(timesteps: tuple[int, int]) -> str:
    return f"{timesteps[0]}..{timesteps[1] - 1}"


def _cells(costs: SparseCosts) -> tuple[str, str, str, str, str]:
    kept = (_millions(costs.kept), _millions(costs.maskable), _millions(costs.kept_params))
    return (*kept, *_macs(costs.forward_macs, costs.step_macs))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _macs(forward: float, step: float) -> tuple[str, str]:
    return f"{forward / 1e9:.3f}", f"{step / 1e9:.3f}"
