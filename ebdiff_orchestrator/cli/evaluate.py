"""The command `ebdiff evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Option

from ebdiff_orchestrator.cli.arguments import AddressOption, RunArgument, SeedOption
from ebdiff_orchestrator.run.view import View, terminal_view
from schemas.limits import MOST_GUIDANCE, MOST_IMAGES, MOST_TIMESTEPS
from schemas.process import quick_imports

if TYPE_CHECKING:
    from schemas.evaluation import EvaluationReport
    from schemas.manifest import Evaluation


_MEASURES = ("fid", "kid", "precision-recall", "wavelet")

CountOption = Annotated[
    int, Option("-n", "--num-images", min=2, max=MOST_IMAGES, help="Images to draw; fewer than 50,000 are labelled so.")
]
StepsOption = Annotated[int | None, Option(min=1, max=MOST_TIMESTEPS, help="Sampling steps; default: the plan's.")]
GuidanceOption = Annotated[
    float | None, Option(min=0, max=MOST_GUIDANCE, help="Classifier-free guidance; default: the plan's.")
]
BatchOption = Annotated[
    int | None, Option(min=1, max=MOST_IMAGES, help="Images sampled at a time by a worker; default: the plan's.")
]


def measures_like(incomplete: str) -> list[str]:
    """For the shell: the measures that begin so."""
    return [name for name in _MEASURES if name.startswith(incomplete)]


MeasureOption = Annotated[
    list[str] | None,
    Option(
        "--measure",
        metavar="|".join(_MEASURES),
        autocompletion=measures_like,
        help="Repeatable. fid (default): the Frechet distance of the extractor's features, also with kid or "
        "precision-recall, which are of the same; wavelet, by itself: the Frechet wavelet distance, without a network.",
    ),
]
ExtractorOption = Annotated[
    Literal["inception", "random-conv"] | None,
    Option(
        help="What makes the features (default: inception); random-conv needs no weights, and compares runs of this "
        "tool alone."
    ),
]
WeightsOption = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="pytorch-fid's Inception weights, where every worker can read them; default: torch hub's download.",
    ),
]
ReferenceOption = Annotated[
    Path | None, Option(metavar="FOLDER|FILE.npz", help="Images, or pytorch-fid's statistics; default: the run's data.")
]
ReferenceImagesOption = Annotated[int | None, Option(metavar="N", help="Only the first N of the run's images.")]
KeepOption = Annotated[bool, Option("--keep-images", help="Keep the images as PNGs in the run.")]
HereOption = Annotated[bool, Option("--here", help="In this process, on one device, without Ray.")]
JsonOption = Annotated[bool, Option("--json", help="The report as JSON; no progress.")]


def evaluate(
    run_dir: RunArgument,
    num_images: CountOption = 50_000,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    batch_size: BatchOption = None,
    measure: MeasureOption = None,
    extractor: ExtractorOption = None,
    inception_weights: WeightsOption = None,
    reference: ReferenceOption = None,
    reference_images: ReferenceImagesOption = None,
    keep_images: KeepOption = False,
    here: HereOption = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run's images or drawings: FID against its own data, and what sampling costs.

    Interrupted, the same command goes on; an evaluation that is recorded is shown. FID is pytorch-fid's; with
    --extractor random-conv it is another distance, which needs no weights and is no FID. What is asked for later is
    measured of images drawn again, so ask for all at once.
    """
    with quick_imports():
        from ebdiff_orchestrator.evaluation.evaluate import evaluate
        from ebdiff_orchestrator.evaluation.records import recorded_report

    evaluation = evaluate(
        run_dir,
        num_images,
        measures=tuple(measure or ("fid",)),
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        batch_size=batch_size,
        extractor=extractor,
        inception_weights=inception_weights,
        reference=reference,
        reference_images=reference_images,
        keep_images=keep_images,
        in_process=here,
        address=address,
        view=View() if as_json else terminal_view(),
    )
    report = recorded_report(run_dir, evaluation)
    print(report.model_dump_json(indent=2)) if as_json else Console().print(report_table(report))


def report_table(report: EvaluationReport) -> Table:
    """The number under its right name, what it was measured with, and what sampling costs."""
    from ebdiff_orchestrator.evaluation.values import values_of

    measured = report.evaluation
    distance, *others = values_of(measured)
    title = f"{report.label}: {distance.text(4)}"
    table = Table(title=title, title_justify="left", show_header=False, show_edge=False, pad_edge=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    guidance = f", guidance {measured.guidance_scale:g}" if measured.guidance_scale != 1 else ""
    rows = {
        **{each.label: each.text(4) for each in others},
        "images"
        if measured.raster is None
        else "drawings": f"{measured.num_images:,} in {measured.steps} steps, seed {measured.seed}{guidance}",
        "reference": report.reference,
        **_weights(measured),
        "sampling": f"{measured.seconds_per_image:.3g} s an image and worker, {measured.workers} workers",
        "parameters": _both(_millions(report.params_by_steps), _millions(report.params_by_timesteps)),
        "MACs a step": _both(_billions(report.macs_by_steps), _billions(report.macs_by_timesteps)),
        "MACs an image": _billions(report.macs_per_image),
        "stored": f"{report.stored_bytes / 1e6:.1f} MB",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for share in report.shares:
        table.add_row(
            f"  {share.region}",
            f"{share.steps} of {measured.steps} steps, {share.timesteps} timesteps: "
            f"{_millions(share.params)} parameters, {_billions(share.macs)} MACs",
        )
    return table


def _weights(measured: Evaluation) -> dict[str, str]:
    from ebdiff_orchestrator.evaluation.values import COMPARES_RUNS, values_of

    if measured.extractor == "wavelet":
        return {"measure": values_of(measured)[0].comparable_note}
    if measured.extractor == "inception":
        return {"Inception weights": f"SHA-256 {measured.weights_sha256[:16]}"}
    return {"extractor": f"{measured.extractor}: {COMPARES_RUNS}"}


def _both(by_steps: str, by_timesteps: str) -> str:
    return f"{by_steps} weighted by sampling steps, {by_timesteps} by timesteps owned"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _billions(count: int) -> str:
    return f"{count / 1e9:.4g} G"
