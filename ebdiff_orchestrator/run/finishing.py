"""The last two stages: the experts put together as one pipeline, and images drawn from it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ebdiff_orchestrator.cluster.executor import Executor, ThisProcess, request_of, run_one
from ebdiff_orchestrator.ensemble.loading import ensemble_of, load_ensemble
from ebdiff_orchestrator.ensemble.samples import samples_of, write_samples
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, SAMPLE, assemble_key, sample_key
from ebdiff_orchestrator.run.view import View, sampling_report
from region_workers.data.encode import on_threads
from region_workers.data.vae import load_known_vae
from region_workers.networks.dense import load_verified
from region_workers.storage.integrity import DamagedFileError, artifact, files_in
from schemas.digest import digest
from schemas.errors import RunFailed
from schemas.job import EXPERT_FOLDER, Artifact
from schemas.model import LatentModelPlan
from schemas.plan import Plan
from schemas.stage_names import train_stage_name


def finish_or_reopen(ledger: Ledger, view: View, executor: Executor | None = None) -> bool:
    """`finish`; False where files that it goes on from turn out to be damaged: their stages are open again."""
    try:
        return finish(ledger, view, executor)
    except Exception:
        if ledger.reopen_damaged():
            return False
        raise


def finish(ledger: Ledger, view: View, executor: Executor | None = None) -> bool:
    """Assemble, then sample, unless that is done for these very experts. True.

    In this process, unless the `executor` has other machines.
    """
    if executor is None or executor.on_this_machine:
        executor = ThisProcess(request_of(ledger.plan.workers, float(torch.cuda.is_available())).gpus)
    plan, location, owner = ledger.plan, ledger.directory.location, ledger.directory.owner
    files = {region.name: ledger.artifacts(train_stage_name(region), EXPERT_FOLDER) for region in plan.regions}
    experts = {name: digest([file.sha256 for file in found]) for name, found in files.items()}
    vae = ledger.manifest.vae_digest
    ensemble_key = assemble_key(plan, experts, vae)
    gpus = executor.request.gpus
    ledger.finish_here(
        ASSEMBLE, ensemble_key, lambda: run_one(executor, assemble, plan, location, files, vae, owner), gpus
    )
    view.line(f"Sampling {plan.sampling.num_images} {plan.data.kind} in {plan.sampling.steps} steps ...")
    report = sampling_report(view) if isinstance(executor, ThisProcess) else None  # it cannot be sent elsewhere
    ledger.finish_here(
        SAMPLE,
        sample_key(plan, ensemble_key),
        lambda: run_one(executor, sample, plan, location, owner, report),
        gpus,
    )
    return True


def assemble(
    plan: Plan,
    location: str,
    expert_files: Mapping[str, tuple[Artifact, ...]],
    vae_digest: str | None,
    owner: str = "",
) -> tuple[Artifact, ...]:
    """Write the ensemble of the finished experts, with the VAE of their latents, to the run's `ensemble`; its files.

    Raises RunFailed if an expert is not what `expert_files` records of it, by region, or the VAE is no longer the one
    of `vae_digest`; RunTakenOverError if the run has another owner than the claim `owner`.
    """
    run = RunDirectory(location, owner)
    run.files.fetch_recorded([file for files in expert_files.values() for file in files])
    experts = [_expert(run.path / train_stage_name(region), expert_files[region.name]) for region in plan.regions]
    names, vae = [region.name for region in plan.regions], _vae(plan, vae_digest)
    with run.fenced():
        ensemble_of(experts, plan.routes(), names, plan.diffusion, plan.sampling, vae).save_pretrained(
            run.path / ASSEMBLE
        )
        return _published(run, ASSEMBLE)


def sample(
    plan: Plan, location: str, owner: str = "", report: Callable[[int, int], None] | None = None
) -> tuple[Artifact, ...]:
    """Write the plan's images or drawings, and a grid of them, to the run's `samples`; the files.

    On the GPU where there is one; on a CPU with the plan's threads, whatever is free, since their number shows in the
    bits. RunTakenOverError if the run has another owner than the claim `owner`.
    """
    use_gpu = torch.cuda.is_available() and plan.workers.gpus != 0
    device = torch.device("cuda" if use_gpu else "cpu")
    sampling = plan.sampling
    run = RunDirectory(location, owner)
    with on_threads(plan.training.cpu_threads):
        samples = samples_of(
            load_ensemble(run.ensemble() / ASSEMBLE, device=device),
            sampling.num_images,
            plan.seed,
            sampling.steps,
            sampling.batch_size,
            report,
        )
    with run.fenced():
        write_samples(samples, run.path / SAMPLE)
        return _published(run, SAMPLE)


def _expert(stage_folder: Path, files: tuple[Artifact, ...]) -> nn.Module:
    try:
        return load_verified(stage_folder / EXPERT_FOLDER, {Path(file.path).name: file.sha256 for file in files})
    except DamagedFileError as error:
        raise RunFailed(f"{error}. Go on with `ebdiff resume`: the expert is made again, to the same bits.") from None


def _vae(plan: Plan, vae_digest: str | None) -> nn.Module | None:
    """The VAE of a plan on latents; its config says how the experts' latents are scaled."""
    if not isinstance(plan.model, LatentModelPlan):
        return None
    return cast(nn.Module, load_known_vae(plan.model, plan.data.channels, vae_digest))


def _published(run: RunDirectory, folder: str) -> tuple[Artifact, ...]:
    run.publish(folder)
    return tuple(artifact(run.path, path) for path in files_in(run.path / folder))
