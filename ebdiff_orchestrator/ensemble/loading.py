"""An ensemble as the pipeline of its kind: read from its folder, or put together from experts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import SchedulerMixin
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME
from torch import nn

from ebdiff_orchestrator.ensemble.folders import SUMS_FILE, check_whole, has_sums, read_sealed
from ebdiff_orchestrator.ensemble.network_files import cast_to, check_dtype, read_network
from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline
from ebdiff_orchestrator.ensemble.routed_pipeline import MODEL_INDEX, RoutedPipeline, component, is_ensemble
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.scheduler import ListDDIMScheduler
from ebdiff_orchestrator.ensemble.vector_pipeline import VectorPipeline
from region_workers.storage.places import HubError, download, is_hub_name
from schemas.errors import UserError, user_error
from schemas.plan import DiffusionPlan, SamplingPlan

# What an export consists of; its modules lie there to be verified, and are not imported.
_OF_AN_ENSEMBLE = ("*.json", "*.safetensors", "*.py", SUMS_FILE)


def load_ensemble(
    path: str | Path,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    compile: bool = False,  # noqa: A002 - torch's word and the plan's
    offload: bool = False,
    revision: str | None = None,
) -> RoutedPipeline:
    """The pipeline in an ensemble folder, in a run directory's `ensemble/`, or on the hub as `owner/name`.

    What is on the hub is downloaded once, from the branch, tag or commit `revision` (default: the newest of `main`); no
    code in it is run. A folder of that name goes first; then only local files are looked at.
    `torch_dtype`: float32, bfloat16 or float16 for the networks; default: as saved, float32. `device`: default the CPU.
    `compile`: `torch.compile` each expert at its first step, and again at another batch size.
    `offload`: the experts' weights stay in their files; only the expert at work has its own in memory, on `device`. A
    trajectory reads each expert once, to the same bits; the pipeline then stays on its device and in its dtype.
    An ensemble that draws images is an `EnsemblePipeline`, one that draws drawings a `VectorPipeline`.
    Raises `UserError` if there is no ensemble there, a file of it is missing or not what was saved, or the options do
    not go together.
    """
    folder = _folder_of_ensemble(_on_this_machine(path, revision))
    check_dtype(torch_dtype, device)
    home = torch.device(device or "cpu")
    router = TimestepRouter.from_pretrained(
        folder / "unet", torch_dtype=torch_dtype, offload_to=home if offload else None
    )
    if compile:
        _check_compiles(router)
        router.compile()
    library, name = component(folder, "vae")
    vae = None if name is None else cast_to(read_network(folder / "vae", f"{library}.{name}"), torch_dtype)
    for network in (vae,) if offload else (router, vae):
        if network is not None:
            network.to(home)
    return pipeline_of(router, _read_scheduler(folder), vae)


def pipeline_of(router: TimestepRouter, scheduler: SchedulerMixin, vae: nn.Module | None = None) -> RoutedPipeline:
    """The pipeline for what the experts draw. Raises `UserError` if it does not fit them."""
    if not _draws_drawings(router):
        return EnsemblePipeline(router, scheduler, vae)
    if vae is not None:
        raise user_error("vae", type(vae).__name__, "none for experts that draw drawings", "Leave it out.")
    return VectorPipeline(router, scheduler)


_OF_SAMPLING = (
    "spacing",
    "eta",
    "clip_sample",
    "guidance_scale",
    "steps_offset",
    "set_alpha_to_one",
    "variance_strength",
)


def ensemble_of(
    experts: Sequence[nn.Module],
    routes: Sequence[tuple[int, int]],
    names: Sequence[str],
    diffusion: DiffusionPlan,
    sampling: SamplingPlan,
    vae: nn.Module | None = None,
) -> RoutedPipeline:
    """The pipeline of `experts`, which own `routes` and are called `names`; `save_pretrained` writes its folder.

    `sampling` becomes what a call of the pipeline that names no steps, eta or guidance scale uses. With `vae` (a
    diffusers AutoencoderKL or VQModel) the experts' images are its latents, scaled as its config says. Raises
    `UserError` if the experts, routes, timesteps and VAE do not fit together.
    """
    router = TimestepRouter(experts, routes, names)
    covered = routes[-1][1]
    if covered != diffusion.num_train_timesteps:
        raise user_error(
            "routes", list(routes), f"a last stop of T = {diffusion.num_train_timesteps}", "Cover all of [0, T)."
        )
    return pipeline_of(router, scheduler_of(diffusion, sampling), vae)


def scheduler_of(diffusion: DiffusionPlan, sampling: SamplingPlan) -> ListDDIMScheduler:
    """The scheduler that samples as the plan says."""
    how = sampling.model_dump(include=set(_OF_SAMPLING))
    scheduler: ListDDIMScheduler = ListDDIMScheduler(
        **diffusion.model_dump(), **how, num_inference_steps=sampling.steps
    )
    return scheduler


def _draws_drawings(router: TimestepRouter) -> bool:
    return router.config.get("coordinates") is not None


def _check_compiles(router: TimestepRouter) -> None:
    if _draws_drawings(router):
        expected = "False for drawings: their network runs step by step over drawings of many lengths"
        raise user_error("compile", True, expected, "Leave compile out.")


def _on_this_machine(path: str | Path, revision: str | None) -> Path:
    """The path itself, or where its namesake of the hub was downloaded to."""
    if Path(path).exists() or not is_hub_name(str(path)):
        if revision is not None:
            raise user_error("revision", revision, f"None, since {path} is no name on the hub", "Leave it out.")
        return Path(path)
    try:
        return download(str(path), _OF_AN_ENSEMBLE, revision)
    except HubError as error:
        expected = "an ensemble's folder, a run directory, or the name of an ensemble on the hub"
        remedy = f"There is no such folder here, and the hub gives none ({error}). A private one needs HF_TOKEN."
        raise user_error("path", path, expected, remedy) from None


def _folder_of_ensemble(path: Path) -> Path:
    """`path` or the ensemble's folder below it, checked to be whole where we sealed it."""
    candidates = (path, path / "ensemble")
    for each in candidates:
        check_whole(each, has_sums)  # plain diffusers seals no pipeline, only our router in it
    folder = next((each for each in candidates if is_ensemble(each)), None)
    if folder is None:
        expected = f"an ensemble (a folder with {MODEL_INDEX} and unet/) or a run directory with one in ensemble/"
        remedy = "Check the path; an unfinished run has no ensemble yet: `ebdiff launch` goes on with it."
        raise user_error("path", path, expected, remedy)
    return folder


def _read_scheduler(folder: Path) -> Any:
    _, name = component(folder, "scheduler")
    kind = ListDDIMScheduler if name == ListDDIMScheduler.__name__ else getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise user_error("scheduler", name, "ListDDIMScheduler or one of diffusers'", f"Edit {MODEL_INDEX}.")
    try:
        return cast(Any, kind).from_config(json.loads(read_sealed(folder / "scheduler" / SCHEDULER_CONFIG_NAME)))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        remedy = f"Save the ensemble again ({str(error).splitlines()[0]})."
        raise user_error("scheduler", folder / "scheduler", f"the config of a {name}", remedy) from None
