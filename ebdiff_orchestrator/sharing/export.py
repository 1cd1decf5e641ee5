"""A run's ensemble for others: a folder that plain diffusers opens where this package is not installed; on the hub."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ebdiff_orchestrator.ensemble.folders import SUMS_FILE, check_whole, damaged, has_sums, write_own_folder, write_sums
from ebdiff_orchestrator.ensemble.network_files import OUR_EXPERTS
from ebdiff_orchestrator.ensemble.pictures import GRID
from ebdiff_orchestrator.ensemble.routed_pipeline import MODEL_INDEX
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE, SAMPLE
from ebdiff_orchestrator.sharing.card import CARD_FILE, model_card
from ebdiff_orchestrator.sharing.modules import Symbol, module_source
from region_workers.storage.integrity import SEAL_FILE, is_whole, read_object, seal_folder
from region_workers.storage.places import hub_reason, is_hub_name
from schemas.errors import RunFailed, UserError, command, shown, user_error
from schemas.job import CONFIG_FILE
from schemas.manifest import Manifest

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,99}")
_PIPELINE = "_class_name"  # what model_index.json calls the pipeline itself
_FILES = {  # of the modules, by class: diffusers keeps those of all folders side by side, so each has a name of its own
    "TimestepRouter": "timestep_router",
    "ListDDIMScheduler": "list_ddim_scheduler",
    "EnsemblePipeline": "ensemble_pipeline",
    "VectorPipeline": "vector_pipeline",
}
_MARK = f"unet/{_FILES['TimestepRouter']}.py"  # only exports have it
_MESSAGE = "Ensemble exported by ebdiff-orchestrator"
_OF_EXPORTS = ["unet/*", "scheduler/*", "vae/*", "*_pipeline.py", GRID]  # what an earlier one left there goes
_LOG_IN = "Make one on the hub that may write, and set HF_TOKEN to it, or log in: hf auth login"


def export_run(run_dir: str | Path, folder: str | Path, license_id: str | None = None, name: str | None = None) -> Path:
    """Write a finished run's ensemble to `folder`, with its modules, samples and a model card; the folder.

    `license_id`: what the card says, as the hub calls it. `name`: what the card's examples load, default the folder's.
    The folder appears whole or not at all, in place of an older export. UserError if the run has no whole ensemble, or
    one with classes of somebody else's, or if `folder` holds anything else.
    """
    folder = Path(folder)
    if license_id is not None and not _LICENSE.fullmatch(license_id):
        expected = "a licence as the hub calls it, in small letters, such as mit or cc-by-4.0"
        raise user_error("--license", shown(license_id), expected, "Correct it.")
    run = RunDirectory(run_dir)
    manifest = run.read()
    ensemble = _ensemble_of(run, manifest)
    modules = module_files(ensemble)
    grid = _grid_of(run, manifest)
    card = model_card(manifest, name or folder.resolve().name, license_id, grid is not None)
    files = [run.path / item.path for item in manifest.stage(ASSEMBLE).artifacts]  # what else lies there stays there
    write = partial(_write, ensemble=ensemble, files=files, modules=modules, card=card, grid=grid)
    write_own_folder(folder, write, _is_export, "an export")
    return folder


def push_run(
    run_dir: str | Path,
    repo_id: str,
    license_id: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload what `export_run` makes of a run to the hub's model repository `owner/name`; the commit's address.

    A repository that is not there is made, a private one with `private`, and so is the branch `revision`. The token is
    that of HF_TOKEN or of the hub's own login. UserError as for `export_run`, and for what the hub refuses: the name,
    the token, its rights, the card; RunFailed if the hub does not do its part.
    """
    from huggingface_hub import HfApi, ModelCard, get_token

    if not is_hub_name(repo_id):
        raise user_error("REPO", repo_id, "owner/name, as the hub calls a repository", "Correct it.")
    if get_token() is None:
        raise user_error("HF_TOKEN", "nothing", "the hub's token for you", _LOG_IN)
    with TemporaryDirectory(prefix="ebdiff-push-") as folder:
        exported = export_run(run_dir, Path(folder) / "export", license_id, repo_id)
        with _hub_errors_for_people(repo_id):
            ModelCard.load(exported / CARD_FILE).validate()  # before there is anything of it on the hub
            api: Any = HfApi(library_name="ebdiff-orchestrator")
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                remedy = "Make it private in its settings on the hub, or leave --private out."
                raise user_error("--private", repo_id, "a new or a private repository: this one is public", remedy)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=exported,
                revision=revision,
                commit_message=message or _MESSAGE,
                delete_patterns=_OF_EXPORTS,
            )
    return str(commit.commit_url)


def module_files(ensemble: Path) -> dict[str, str]:
    """The modules that an ensemble's folder needs to be loaded without this package, by file. UserError as above."""
    classes = read_object(ensemble / "unet" / CONFIG_FILE)["expert_classes"]
    if strange := [each for each in classes if each not in OUR_EXPERTS and not each.startswith("diffusers.")]:
        raise user_error("expert_classes", strange[0], "networks of ebdiff or of diffusers", "Share its code yourself.")
    kinds = (OUR_EXPERTS[each] for each in classes if each in OUR_EXPERTS)
    experts = {(kind.__module__, kind.__name__): None for kind in kinds}
    return {
        f"{'' if part == _PIPELINE else f'{part}/'}{_FILES[symbol[1]]}.py": module_source(
            f"{symbol[1]} of an ensemble.", [symbol, *(experts if part == "unet" else ())]
        )
        for part, symbol in _own_classes(ensemble).items()
    }


def _own_classes(ensemble: Path) -> dict[str, Symbol]:
    """Our classes in an ensemble by what model_index.json calls them: the experts' in their router's module."""
    draws = read_object(ensemble / "unet" / CONFIG_FILE).get("coordinates") is not None
    pipeline = ("vector_pipeline", "VectorPipeline") if draws else ("pipeline", "EnsemblePipeline")
    parts = {"unet": ("router", "TimestepRouter"), "scheduler": ("scheduler", "ListDDIMScheduler"), _PIPELINE: pipeline}
    return {part: (f"ebdiff_orchestrator.ensemble.{module}", name) for part, (module, name) in parts.items()}


def _ensemble_of(run: RunDirectory, manifest: Manifest) -> Path:
    """The folder of the run's ensemble, checked to be whole."""
    if manifest.stage(ASSEMBLE).status != "done":
        remedy = f"Go on with it: {command('resume', run.short_location)}"
        raise user_error("RUN", run.short_location, "a run that has its ensemble", remedy)
    ensemble = run.ensemble() / ASSEMBLE
    if not (ensemble / MODEL_INDEX).is_file():
        raise damaged(ensemble / MODEL_INDEX)
    check_whole(ensemble, has_sums)
    check_whole(ensemble / "unet", lambda _: True)
    return ensemble


def _grid_of(run: RunDirectory, manifest: Manifest) -> Path | None:
    """The picture of the run's samples, if there is one, as it was recorded."""
    recorded = [item for item in manifest.stage(SAMPLE).artifacts if item.path == f"{SAMPLE}/{GRID}"]
    run.files.fetch_recorded(recorded)
    return run.path / recorded[0].path if recorded and is_whole(run.path, recorded[0]) else None


def _write(
    folder: Path, ensemble: Path, files: Sequence[Path], modules: dict[str, str], card: str, grid: Path | None
) -> None:
    """What loading needs is sealed; the card and the picture, which people edit on the hub, are not."""
    for file in files:
        if file.name not in (SEAL_FILE, SUMS_FILE):
            place = folder / file.relative_to(ensemble)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    for name, source in modules.items():
        (folder / name).write_text(source, encoding="utf-8")
    own = {part: [_FILES[name], name] for part, (_, name) in _own_classes(ensemble).items()}
    index = {**read_object(folder / MODEL_INDEX), **own}
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")
    seal_folder(folder / "unet")
    write_sums(folder)
    seal_folder(folder)
    if grid is not None:
        shutil.copyfile(grid, folder / GRID)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _is_export(folder: Path) -> bool:
    return (folder / _MARK).is_file() and (folder / MODEL_INDEX).is_file()


@contextmanager
def _hub_errors_for_people(repo_id: str) -> Iterator[None]:
    try:
        yield
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the hub's client raises of everything
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = hub_reason(error)
        if status == 401:
            raise user_error("HF_TOKEN", "...", f"a token that the hub knows ({reason})", _LOG_IN) from error
        if status == 403:
            remedy = "Give the token the right to write there, or push under your own name."
            raise user_error("REPO", repo_id, f"a repository that you may write to ({reason})", remedy) from error
        if status in (400, 404, 409, 422) or isinstance(error, ValueError):
            raise user_error("REPO", repo_id, f"what the hub accepts ({reason})", "Correct it.") from error
        raise RunFailed(f"{repo_id}: the hub did not take it ({reason}). The same command tries again.") from error
