"""The commands that give a finished ensemble to others: `ebdiff export | push`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

RunArgument = Annotated[Path, Argument(metavar="RUN", help="A finished run's directory or URL.")]
FolderArgument = Annotated[Path, Argument(metavar="FOLDER", help="Where to write; an older export there is replaced.")]
RepoArgument = Annotated[str, Argument(metavar="REPO", help="The hub's name for it: owner/name.")]
LicenseOption = Annotated[
    str | None,
    Option(metavar="ID", help="The weights' licence for the model card, as the hub calls it; default: none is stated."),
]
PrivateOption = Annotated[bool, Option("--private", help="Make a private repository; an existing one must be private.")]
RevisionOption = Annotated[
    str | None, Option(metavar="BRANCH", help="The branch to upload to, made if need be; default: main.")
]
MessageOption = Annotated[str | None, Option(help="The commit's message.")]


def export(run_dir: RunArgument, folder: FolderArgument, license: LicenseOption = None) -> None:  # noqa: A002 - the option's name
    """Write the ensemble as a folder that plain diffusers opens without this package, with a model card."""
    from ebdiff_orchestrator.sharing.export import export_run

    print(f"{export_run(run_dir, folder, license)}: read README.md, the model card, before others do.")


def push(
    run_dir: RunArgument,
    repo: RepoArgument,
    license: LicenseOption = None,  # noqa: A002 - the option's name
    private: PrivateOption = False,
    revision: RevisionOption = None,
    message: MessageOption = None,
) -> None:
    """Upload the export of a run to the Hugging Face hub; the token is HF_TOKEN's or that of `hf auth login`."""
    from ebdiff_orchestrator.sharing.export import push_run

    print(push_run(run_dir, repo, license, private, revision, message))
