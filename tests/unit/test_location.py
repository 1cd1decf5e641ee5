"""Where things lie: what no path can be, and keys in URLs, which are refused and never shown."""

from pathlib import Path

import pytest
from conftest import MakePlan

from ebdiff_orchestrator.cli import launch as commands
from ebdiff_orchestrator.cluster.embedded import EmbeddedRay
from ebdiff_orchestrator.run.manifests import new_manifest
from ebdiff_orchestrator.run.run_directory import RunDirectory
from schemas.errors import PlanError, UserError, without_secrets
from schemas.section import fault_of_place


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/run", "s3://...@bucket/run"),
        ("s3:/KEY:SECRET@bucket/run", "s3:/...@bucket/run"),
        ("s3://KEY:SEC/RET+@bucket", "s3://...@bucket"),
        ("at s3://KEY:A@b and gs://TOKEN@c.", "at s3://...@b and gs://...@c."),
        ("https://user:word@hub/name", "https://...@hub/name"),
    ],
)
def test_a_key_in_a_url_is_refused_and_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert "without a key" in (fault_of_place(text) or "")
    assert str(PlanError(f"data.path = {text}")) == f"data.path = {shown.replace('s3:/.', 's3://.')}"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b",
        "s3://bucket/a:b@c",
        "gs://anonymous@bucket/run",
        "/home/me@here/x",
        "file:///a@b/run",
        "me@host",
    ],
)
def test_an_address_without_a_key_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text
    assert fault_of_place(text) is None


@pytest.mark.parametrize("place", ["s3://KEY:SECRET@bucket/run", "a\0b", "n" * 256, "\udcff", "n/" * 2001])
def test_a_run_is_not_put_where_it_cannot_be(place: str) -> None:
    with pytest.raises(UserError, match="expected") as refused:
        RunDirectory(place)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("place", ["ftp://host/run", "abfs:/container/run", "S3://bucket/run"])
def test_a_url_that_nothing_opens_is_no_folder(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="begins with s3://"):
        RunDirectory(place)
    Path(place.partition("/")[0]).mkdir()  # then it names that
    assert RunDirectory(Path(place)).path == tmp_path / Path(place)


def test_a_finished_run_named_by_a_url_has_no_ray_started(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedRay, "begin", lambda *_: pytest.fail("there is nothing to be run"))
    plan = tiny_plan()
    manifest = new_manifest(plan)
    for record in manifest.stages.values():
        manifest = manifest.with_stage(record.model_copy(update={"status": "done"}))
    RunDirectory(tmp_path).write(manifest)
    for place in (tmp_path, Path(tmp_path.as_uri())):  # as the command line has it
        commands._start_ray_early(RunDirectory(place), plan, None)
