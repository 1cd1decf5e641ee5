"""`ebdiff doctor` on run directories: real files and locks, a real S3 server, and nodes that see others."""

import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import run_forked
from s3_server import BUCKET, s3_server

from ebdiff_orchestrator.cluster.executor import ThisProcess
from ebdiff_orchestrator.doctor import storage
from ebdiff_orchestrator.doctor.examine import examine
from ebdiff_orchestrator.doctor.facts import Finding
from ebdiff_orchestrator.doctor.storage import (
    StorageAnswer,
    StorageTest,
    check_storage,
    judge_folder,
    judge_store,
    look_at_storage,
    storage_test,
)
from region_workers.storage.object_store import ObjectStore
from region_workers.storage.run_files import RunFiles

GOOD = StorageAnswer(reads=True, lock="held", wrote="node-1", seen=True)


def _statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def _look(test: StorageTest) -> StorageAnswer:
    return test.judged(look_at_storage(test.location, test.secret))


def test_a_node_that_shares_the_folder_reads_writes_and_is_kept_out_by_the_lock(tmp_path: Path) -> None:
    with storage_test(tmp_path / "runs" / "a") as test:
        code = "import json\nfrom ebdiff_orchestrator.doctor.storage import *\n"
        code += f"print(json.dumps(look_at_storage({test.location!r}, {test.secret!r})))"
        answer = test.judged(json.loads(run_forked("-c", code).stdout))
        assert (answer.lock, answer.seen) == ("held", True)
        assert set(_statuses(judge_folder(tmp_path, {"a": answer})).values()) == {"fine"}


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with storage_test(tmp_path / "runs" / "a") as test:
        _look(test)
    assert list(tmp_path.iterdir()) == []
    there = tmp_path / "there"
    there.mkdir()
    (there / "manifest.json").write_text("{}")
    with storage_test(there):
        pass
    assert [path.name for path in there.iterdir()] == ["manifest.json"]


def test_a_run_that_begins_meanwhile_in_the_folder_stays(tmp_path: Path) -> None:
    with storage_test(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "manifest.json").write_text("{}")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "a", "manifest.json"]


def test_a_node_with_a_folder_of_its_own_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_VISIBLE_WITHIN_S", 0.3)
    with storage_test(tmp_path / "shared") as test:
        own = tmp_path / "local" / Path(test.location).name
        own.mkdir(parents=True)
        elsewhere = StorageTest(str(own), test.secret)
        answer = _look(elsewhere)
        (own / "driver").write_text("of another run")
        assert not _look(elsewhere).reads
    assert answer == StorageAnswer(reads=False)
    findings = judge_folder(tmp_path, {"a": GOOD, "b": answer})
    assert _statuses(findings)["shared storage"] == "wrong"
    assert "b: " in findings[0].what
    assert "a" not in findings[0].what.split(":")[0]


@pytest.mark.parametrize(
    ("answer", "wrong", "says"),
    [
        ({"seen": False}, "shared storage", "b: "),  # the driver does not see its files
        ({"lock": "free"}, "locks", "b (free)"),
        ({"lock": "unsupported"}, "locks", "b (unsupported)"),
    ],
)
def test_a_node_that_does_not_share_files_and_locks_is_wrong(answer: dict[str, Any], wrong: str, says: str) -> None:
    findings = judge_folder(Path("/runs"), {"a": GOOD, "b": GOOD.model_copy(update=answer)})
    assert _statuses(findings) == {"shared storage": "fine", "files": "fine", "locks": "fine", wrong: "wrong"}
    assert says in next(finding.what for finding in findings if finding.status == "wrong")


def test_a_node_that_cannot_write_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with storage_test(tmp_path) as test:
        monkeypatch.setattr(RunFiles, "write", full)
        answer = _look(test)
    findings = judge_folder(tmp_path, {"a": answer})
    assert _statuses(findings) == {"shared storage": "fine", "files": "wrong", "locks": "fine"}
    assert "Read-only file system" in findings[1].what


def test_a_filesystem_without_locks_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    [finding] = check_storage(ThisProcess(), str(tmp_path))
    assert finding.status == "wrong"
    assert "flock is not supported" in finding.what
    assert list(tmp_path.iterdir()) == []


URL = f"s3://{BUCKET}/runs/a"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with s3_server():
        yield ObjectStore(URL)


def test_a_node_that_reaches_the_store_reads_and_writes_there_and_nothing_stays(store: ObjectStore) -> None:
    with storage_test(URL) as test:
        answer = _look(test)
    assert answer.seen
    assert judge_store(URL, {"a": answer}).status == "fine"
    assert store.list_keys() == []


def test_a_node_with_another_store_is_wrong(store: ObjectStore) -> None:
    with storage_test(URL) as test:
        answer = _look(StorageTest(f"s3://{BUCKET}/elsewhere", test.secret))
    finding = judge_store(URL, {"a": StorageAnswer(reads=True, wrote="node-1", seen=True), "b": answer})
    assert finding.status == "wrong"
    assert "b: what the driver wrote is not there" in finding.what


def test_a_node_that_may_not_write_is_wrong(store: ObjectStore) -> None:
    answer = StorageAnswer.model_validate(look_at_storage("s3://no-such-bucket/run", "secret"))
    assert not answer.reads
    assert judge_store(URL, {"a": answer}).status == "wrong"


@pytest.mark.parametrize(("url", "status"), [(URL, "fine"), ("s3://no-such-bucket/run", "wrong")])
def test_a_run_in_an_object_store_is_examined(store: ObjectStore, url: str, status: str) -> None:
    findings = examine(run_dir=url).findings
    assert [finding.status for finding in findings if finding.check == "shared storage"] == [status]
