"""`ebdiff doctor` on a run directory in an object store: a real S3 server, and nodes that reach it or do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3_server import BUCKET, s3_server

from ebdiff_orchestrator.doctor.examine import Question, examine
from ebdiff_orchestrator.doctor.storage import (
    StoreAnswer,
    StoreTest,
    judge_store,
    look_at_store,
    store_test,
)
from region_workers.storage.object_store import ObjectStore

URL = f"s3://{BUCKET}/runs/a"


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with s3_server():
        yield ObjectStore(URL)


def _look(test: StoreTest) -> StoreAnswer:
    return StoreAnswer.model_validate(look_at_store(test.url, test.secret))


def test_a_node_that_reaches_the_store_reads_and_writes_there_and_nothing_stays(store: ObjectStore) -> None:
    with store_test(URL) as test:
        answer = _look(test)
        assert test.sees(answer)
        assert judge_store(URL, {"a": answer}, {"a": True}).status == "fine"
    assert store.list_keys() == []


def test_a_node_with_another_store_is_wrong(store: ObjectStore) -> None:
    with store_test(URL) as test:
        answer = _look(StoreTest(f"s3://{BUCKET}/elsewhere", test.secret))
    finding = judge_store(URL, {"a": StoreAnswer(wrote="node-1"), "b": answer}, {"a": True, "b": False})
    assert finding.status == "wrong"
    assert "b: what the driver wrote is not there" in finding.what


def test_a_node_that_may_not_write_is_wrong(store: ObjectStore) -> None:
    answer = StoreAnswer.model_validate(look_at_store("s3://no-such-bucket/run", "secret"))
    assert answer.problem is not None
    assert judge_store(URL, {"a": answer}, {"a": False}).status == "wrong"


@pytest.mark.parametrize(("url", "status"), [(URL, "fine"), ("s3://no-such-bucket/run", "wrong")])
def test_a_run_in_an_object_store_is_examined(store: ObjectStore, url: str, status: str) -> None:
    findings = examine(Question(None, url, None, None, 0.0)).findings
    assert [finding.status for finding in findings if finding.check == "shared storage"] == [status]
