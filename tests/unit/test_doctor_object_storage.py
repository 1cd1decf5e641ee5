"""`ebdiff doctor` on a run directory in an object store: a real S3 server, and nodes that reach it or do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3_server import BUCKET, s3_server

from ebdiff_orchestrator.doctor.examine import examine
from ebdiff_orchestrator.doctor.storage import StorageAnswer, StorageTest, judge_store, look_at_storage, storage_test
from region_workers.storage.object_store import ObjectStore

URL = f"s3://{BUCKET}/runs/a"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with s3_server():
        yield ObjectStore(URL)


def _look(test: StorageTest) -> StorageAnswer:
    return test.judged(look_at_storage(test.location, test.secret))


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
