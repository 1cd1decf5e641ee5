"""The model card of an exported ensemble: what it is, what making it took, what was measured, and how to load it."""

import re
from pathlib import Path

from ebdiff_orchestrator.ensemble.pictures import GRID
from ebdiff_orchestrator.plans.preview import PlanPreview, preview_of
from ebdiff_orchestrator.reports.distances import measured_values
from ebdiff_orchestrator.reports.measures import Measures, measures_of, method_of
from ebdiff_orchestrator.reports.sizes_table import network_sizes
from ebdiff_orchestrator.run.time_left import duration
from region_workers.storage.places import is_hub_name
from schemas.manifest import POINTS_COUNTED, Manifest
from schemas.model import LatentModelPlan
from schemas.plan import Plan

CARD_FILE = "README.md"
_HOME = "https://github.com/GATECH-EIC/Early-Bird-Diffusion"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_NOT_STATED = (
    "None is stated, and so nobody may use, change or pass on the weights beyond what law and the hub's terms allow. "
    "Whoever owns them can state one: `ebdiff export --license`, or `license:` at the top of this file."
)


def model_card(manifest: Manifest, name: str, license_id: str | None, has_grid: bool) -> str:
    """The card, its metadata at the top. `name`: what the examples load.

    `license_id`: the weights' licence as the hub calls it; None: none is stated. Of the machine that trained it holds
    no path.
    """
    from huggingface_hub import ModelCard, ModelCardData

    plan = manifest.plan
    data = ModelCardData(
        license=license_id,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["ebdiff", *_tags(plan)],
        datasets=[plan.data.path] if _on_hub(plan.data.path) else None,
    )
    sections = [
        f"# {_escaped(plan.name)}",
        _summary(plan),
        f"![{plan.data.kind} drawn by this ensemble]({GRID})" if has_grid else "",
        _loading(plan, name),
        _networks(preview_of(manifest)),
        _training(manifest, measures_of(manifest)),
        _measured(manifest),
        _limits(plan),
        f"## Licence\n\n{_licence(plan, license_id)}",
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _tags(plan: Plan) -> list[str]:
    found = {"timestep-experts": len(plan.regions) > 1, "vector-drawings": plan.data.drawings is not None}
    return [tag for tag, holds in found.items() if holds]


def _summary(plan: Plan) -> str:
    count = len(plan.regions)
    side = plan.data.resolution
    what = "vector drawings" if plan.data.drawings else f"images of {side}x{side} pixels"
    if plan.model.num_classes is not None:
        what += f" of {plan.model.num_classes} classes"
    text = f"A diffusion model that draws {what}, trained with ebdiff-orchestrator: {_escaped(method_of(plan))}."
    if count == 1:
        return text
    return (
        f"{text} It is {count} networks behind the call of a single UNet, one for each stretch of the denoising "
        f"timesteps, as in [Early-Bird Diffusion (CVPR 2025)]({_HOME})."
    )


def _loading(plan: Plan, name: str) -> str:
    labels = "" if plan.model.num_classes is None else ", class_labels=0"
    result = "drawings" if plan.data.drawings else "images"
    draw = (
        f"{result} = pipeline(batch_size=4{labels}).{result}  # in {plan.sampling.steps} steps, unless told otherwise"
    )
    return f"""## Load it

With diffusers alone. `trust_remote_code` runs the modules of this repository, the `.py` files: read them first.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({name!r}, trust_remote_code=True)
{draw}
```

With ebdiff-orchestrator, which runs no code of this repository, to the same bits:

```python
from ebdiff_orchestrator import load_ensemble

pipeline = load_ensemble({name!r})
{draw}
```

`pipeline.to("cuda")` moves all networks. `generator` may be a list, one for each of the {plan.data.kind}."""


def _networks(preview: PlanPreview) -> str:
    headings = ["network", "trained on", "owns", "pruned by", "removed", "parameters M", "MACs G", "with attention G"]
    pruned = any(each.region.pruning_ratio for each in preview.regions)
    sizes = network_sizes(preview, with_attention=True)
    dense, *experts, weighted = [cells[1:-1] for cells in sizes.rows]  # all but names and steps
    rows = [["dense, not included", *dense]] if pruned else []
    rows += [[f"`{each.region.name}`", *cells] for each, cells in zip(preview.regions, experts, strict=True)]
    rows.append(["weighted by what they own", *weighted])
    counted = f"one drawing of {POINTS_COUNTED} points" if preview.plan.data.drawings else "one image"
    note = (
        f"Timesteps are counted from 0, the clean end. Multiply-accumulates are those of a forward pass on {counted}. "
        "Pruned by: the target share of channels in each layer; removed: the share of all prunable ones that went."
    )
    sparse = [
        f"- `{each.region.name}` is sparse: {each.sparse.kept_params / 1e6:.2f} M of its parameters are not masked; "
        f"{each.sparse.forward_macs / 1e9:.3f} G multiply-accumulates, if masked weights cost nothing."
        for each in preview.regions
        if each.sparse is not None
    ]
    return "\n\n".join(["## What is in it", _table(headings, rows), note, *(["\n".join(sparse)] if sparse else [])])


def _training(manifest: Manifest, found: Measures) -> str:
    plan, rows = manifest.plan, [["method", method_of(manifest.plan)], ["data", _data(manifest.plan)]]
    if plan.model.pretrained is not None:
        rows.append(["started from", _shown_place(plan.model.pretrained)])
    if isinstance(plan.model, LatentModelPlan):
        rows.append(["latents of", _shown_place(plan.model.vae)])
    if found.steps is not None:
        steps = dict(zip((region.name for region in plan.regions), found.steps, strict=True))
        rows.append(["training steps", ", ".join(f"{name}: {count:,}" for name, count in steps.items())])
    rows += [
        ["batch", str(plan.training.batch_size)],
        ["learning rate", f"{plan.training.learning_rate:g}"],
        ["seed", str(plan.seed)],
        ["sampling", f"{plan.sampling.steps} steps, {plan.sampling.spacing} spacing, eta {plan.sampling.eta:g}"],
    ]
    devices = sorted({record.hardware.device for record in manifest.stages.values() if record.hardware})
    if devices:
        rows.append(["devices", ", ".join(devices)])
    if found.hours is not None:
        rows.append([f"{'GPU' if found.hours.on_gpus else 'worker'}-hours", f"{found.hours.hours:.3g}"])
    if found.wall_s is not None:
        rows.append(["wall-clock", duration(found.wall_s)])
    rows.append(["software", ", ".join(f"{name} {version}" for name, version in manifest.software.items())])
    return f"## How it was made\n\n{_table(['', ''], [[name, _escaped(value)] for name, value in rows])}"


def _measured(manifest: Manifest) -> str:
    found = measured_values(manifest)
    if not found:
        return "## Quality\n\nNothing was measured. Look at the samples."
    rows = [
        [
            _escaped(f"{each.label} ({each.comparable_note})" if each.comparable_note else each.label),
            each.text(2),
            "higher" if each.higher_is_better else "lower",
            f"{each.num_images:,}",
        ]
        for each in found
    ]
    return "\n\n".join(["## Quality", _table(["measure", "value", "better", "images"], rows)])


def _limits(plan: Plan) -> str:
    limits = [
        "It draws what its training data hold, their faults and biases included, and takes no text.",
        "The numbers above are those of this very ensemble; what was not measured is not claimed.",
        "Equal seeds give equal bits on one kind of device with one number of threads, not across them.",
        "float16 is for GPUs; `device_map`, `variant` and quantisation while loading are not supported.",
    ]
    if plan.data.drawings is None:
        limits.append(
            "diffusers' other schedulers fit this pipeline; quadratic spacing of timesteps is the ensemble's own alone."
        )
    return "## Limits\n\n" + "\n".join(f"- {each}" for each in limits)


def _licence(plan: Plan, license_id: str | None) -> str:
    stated = f"The weights: {_escaped(license_id)}." if license_id else _NOT_STATED
    return (
        f"{stated}\n\nThe modules (`.py`) are ebdiff-orchestrator's, Apache-2.0.\n\n"
        f"The data, {_escaped(_data(plan))}, have a licence of their own, which was not looked at."
    )


def _data(plan: Plan) -> str:
    """The data by name, nothing of the machine that they were on."""
    kind = "drawings" if plan.data.drawings else "images"
    split = f", split {plan.data.split}" if _on_hub(plan.data.path) else ""
    return f"{kind} of {_shown_place(plan.data.path)}{split}"


def _on_hub(place: str) -> bool:
    return is_hub_name(place) and not Path(place).exists()


def _shown_place(place: str) -> str:
    """A name as it is; of a path or URL the last part, since the rest says where somebody keeps files."""
    return place if _on_hub(place) else Path(place).name


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text as it is, in Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
