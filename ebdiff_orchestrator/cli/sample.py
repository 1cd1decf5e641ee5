"""The command `ebdiff sample`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ebdiff_orchestrator.cli.arguments import AddressOption, SeedOption
from ebdiff_orchestrator.run.view import sampling_report, terminal_view
from region_workers.storage.places import check_writable_folder
from schemas.errors import UserError, user_error
from schemas.limits import MANY, MOST_GUIDANCE, MOST_IMAGES, MOST_TIMESTEPS, MOST_WORKERS
from schemas.process import quick_imports

EnsembleArgument = Annotated[
    Path, Argument(metavar="DIR", help="A run's directory or URL, an ensemble's folder, or OWNER/NAME on the hub.")
]
RevisionOption = Annotated[
    str | None, Option(metavar="REVISION", help="On the hub: a branch, tag or commit; default: the newest of main.")
]
OutOption = Annotated[Path, Option(metavar="DIR", help="Folder for the PNGs, of drawings the SVGs, and a grid.")]
CountOption = Annotated[int, Option("-n", "--num-images", min=1, max=MOST_IMAGES, help="How many images.")]
StepsOption = Annotated[int | None, Option(min=1, max=MOST_TIMESTEPS, help="Sampling steps; default: the ensemble's.")]
BatchOption = Annotated[int, Option(min=1, max=MOST_IMAGES, help="Images at a time; changes only speed and memory.")]
ClassOption = Annotated[
    list[int] | None,
    Option("--class", min=0, max=MANY, help="A class to draw, for a class-conditional ensemble; repeatable, in turn."),
]
GuidanceOption = Annotated[
    float | None, Option(min=0, max=MOST_GUIDANCE, help="Guidance scale; default: the ensemble's; 1: none.")
]
DtypeOption = Annotated[Literal["fp32", "bf16", "fp16"], Option(help="Precision of the networks; fp16: GPU only.")]
CompileOption = Annotated[
    bool,
    Option(
        "--compile", help="torch.compile each expert at its first step: a minute each on a CPU, so for many images."
    ),
]
OffloadOption = Annotated[
    bool, Option("--offload", help="Read an expert's weights at its first step; one at a time is on the device.")
]
WorkersOption = Annotated[
    int | None,
    Option(
        min=1, max=MOST_WORKERS, help="Share the batches out over N workers of a Ray cluster; default: this process."
    ),
]


def sample(
    run_dir: EnsembleArgument,
    out: OutOption,
    num_images: CountOption = 64,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 64,
    revision: RevisionOption = None,
    classes: ClassOption = None,
    guidance: GuidanceOption = None,
    dtype: DtypeOption = "fp32",
    compile: CompileOption = False,  # noqa: A002 - the option's name
    offload: OffloadOption = False,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Draw images or drawings from a finished ensemble."""
    with quick_imports():
        from ebdiff_orchestrator.ensemble.pictures import GRID
        from ebdiff_orchestrator.ensemble.samples import write_samples
        from ebdiff_orchestrator.evaluation.sampling import SampleJob, sample_here, sample_on_workers

    _check_places(out, workers, address)
    job = SampleJob(
        ensemble=str(run_dir),
        count=num_images,
        batch_size=batch_size,
        seed=seed,
        revision=revision,
        steps=steps,
        classes=tuple(classes) if classes else None,
        guidance_scale=guidance,
        dtype=dtype,
        compile=compile,
        offload=offload,
    )
    with terminal_view() as view:
        if workers is None:
            drawn = sample_here(job, sampling_report(view))
        else:
            drawn = sample_on_workers(job, workers, address, view)
    write_samples(drawn.samples, out)
    print(f"{num_images} {drawn.noun} and {GRID} in {out}; peak memory {drawn.peak_memory_bytes / 2**20:,.0f} MiB")


def _check_places(out: Path, workers: int | None, address: str | None) -> None:
    from ebdiff_orchestrator.cluster.connecting import check_surroundings
    from ebdiff_orchestrator.ensemble.samples import check_samples_folder
    from ebdiff_orchestrator.run.stages import SAMPLE
    from schemas.manifest import MANIFEST_FILE

    if workers is not None:
        check_surroundings(address)
    elif address is not None:
        raise UserError("--address: expected --workers with it; one process needs no Ray. Give both or neither.")
    if out.name == SAMPLE and (out.parent / MANIFEST_FILE).is_file():
        raise user_error("--out", out, "a folder of yours, not the one of the run's own samples", "Choose another.")
    check_samples_folder(out)
    check_writable_folder(out, "--out")
