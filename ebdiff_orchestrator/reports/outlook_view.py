"""How `ebdiff plan` shows the networks of a plan."""

from __future__ import annotations

from rich.table import Table

from ebdiff_orchestrator.plans.preview import Outlook
from ebdiff_orchestrator.reports.method import method_of
from region_workers.networks.costs import Costs


def outlook_table(outlook: Outlook) -> Table:
    """One row a region beside the dense network: ranges, ratios, parameters and multiply-accumulates."""
    title = f"plan {outlook.plan.name}: {method_of(outlook.plan)}"
    table = Table(title=title, show_edge=False, pad_edge=False, title_justify="left")
    for heading in ("network", "trains", "owns", "target", "removed", "params M", "MACs G", "steps"):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    table.add_row("dense", "", "", "", "", *_costs(outlook.dense), "")
    for region in outlook.regions:
        table.add_row(
            region.region.name,
            _span(region.region.train),
            _span(region.route),
            f"{region.region.pruning_ratio:.0%}",
            f"{region.realised_ratio:.1%}",
            *_costs(region.costs),
            str(region.steps),
        )
    table.add_row("weighted", "", "", "", "", *_costs(outlook.weighted), "")
    whole = [f"{costs.macs_with_attention / 1e9:.3f}" for costs in (outlook.dense, outlook.weighted)]
    table.caption = f"With the attention's matrix products: {whole[0]} G dense, {whole[1]} G weighted."
    if outlook.plan.draw.method == "one-shot" and outlook.plan.model.pretrained is None:
        table.caption += " To launch it, name the trained network: --set model.pretrained=RUN."
    table.caption_justify = "left"
    return table


def _span(timesteps: tuple[int, int]) -> str:
    return f"{timesteps[0]}..{timesteps[1] - 1}"


def _costs(costs: Costs) -> tuple[str, str]:
    return f"{costs.params / 1e6:.2f}", f"{costs.macs / 1e9:.3f}"
