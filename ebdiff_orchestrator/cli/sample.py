"""The command `ebdiff sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ebdiff_orchestrator.cli.arguments import AddressOption
from ebdiff_orchestrator.run.view import sampling_report, terminal_view
from region_workers.storage.places import check_writable_folder
from schemas.errors import UserError
from schemas.limits import MANY, MOST_GUIDANCE, MOST_IMAGES, MOST_TIMESTEPS, MOST_WORKERS


def sample(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run's directory or URL, or an ensemble's folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the PNGs and grid.png.")],
    count: Annotated[int, typer.Option("-n", "--num-images", min=1, max=MOST_IMAGES, help="How many images.")] = 64,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=MOST_TIMESTEPS, help="Sampling steps; default: the ensemble's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i depends on (seed, i) alone.")] = 0,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, max=MOST_IMAGES, help="Images at a time; changes only speed and memory."),
    ] = 64,
    classes: Annotated[
        list[int] | None,
        typer.Option(
            "--class", min=0, max=MANY, help="A class to draw, for a class-conditional ensemble; repeatable, in turn."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", min=0, max=MOST_GUIDANCE, help="Guidance scale; default: the ensemble's; 1: none."),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Precision of the networks; fp16: GPU only.")
    ] = "fp32",
    compile_experts: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile each expert at its first step: a minute each on a CPU, so for many images."
        ),
    ] = False,
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Read an expert's weights at its first step; one at a time is on the device."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            max=MOST_WORKERS,
            help="Share the batches out over N workers of a Ray cluster; default: this process.",
        ),
    ] = None,
    address: AddressOption = None,
) -> None:
    """Draw images from a finished ensemble."""
    from ebdiff_orchestrator.cluster.surroundings import check_surroundings
    from ebdiff_orchestrator.ensemble.images import check_images_folder, write_images
    from ebdiff_orchestrator.evaluation.sampling import ImageJob, sample_here, sample_on_workers

    if address is not None and workers is None:
        raise UserError("--address: expected --workers with it; one process needs no Ray. Give both or neither.")
    if workers is not None:
        check_surroundings(address)
    check_images_folder(out)
    check_writable_folder(out, "--out")
    job = ImageJob(
        ensemble=str(run_dir),
        count=count,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        classes=tuple(classes) if classes else None,
        guidance_scale=guidance,
        dtype=dtype,
        compile=compile_experts,
        offload=offload,
    )
    with terminal_view() as view:
        if workers is None:
            drawn = sample_here(job, sampling_report(view))
        else:
            drawn = sample_on_workers(job, workers, address, view)
    write_images(drawn.pixels, out)
    print(f"{count} images and grid.png in {out}; peak memory {drawn.peak_memory_bytes / 2**20:,.0f} MiB")
