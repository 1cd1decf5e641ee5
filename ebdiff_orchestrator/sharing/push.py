"""A run's ensemble on the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ebdiff_orchestrator.sharing.card import CARD_FILE
from ebdiff_orchestrator.sharing.export import export_run
from region_workers.storage.places import hub_reason, is_hub_name
from schemas.errors import RunFailed, UserError, user_error

_MESSAGE = "Ensemble exported by ebdiff-orchestrator"
_OF_EXPORTS = ["unet/*", "scheduler/*", "vae/*", "*_pipeline.py"]  # what an earlier one left there goes
_LOG_IN = "Make one on the hub that may write, and set HF_TOKEN to it, or log in: hf auth login"


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
