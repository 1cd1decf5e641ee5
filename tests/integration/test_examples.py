"""The programs in examples/, as they are, on little."""

import asyncio
import io
import json
import runpy
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, MakePlan
from drawing_files import VECTOR
from finished_run import finished_run
from forked import run_forked
from pictures import save_images
from PIL import Image
from processes import free_port, wait_until
from serial_cluster import SerialCluster
from starlette.requests import Request

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.ensemble import samples_of
from ebdiff_orchestrator.ensemble.pictures import image_grid, svg_grid

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _without_ray() -> None:
    """In a new process: it launches without Ray, which test_command_line.py shows."""
    from ebdiff_orchestrator.run import launch

    launch.connect = lambda *_: nullcontext(SerialCluster())


def _run(name: str, *arguments: str | Path) -> str:
    result = run_forked(EXAMPLES / name, *arguments, begin=_without_ray)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_example_is_tried_here() -> None:
    tried = {"launch_and_plot.py", "other_scheduler.py", "own_images.py", "serve.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tried


@pytest.mark.slow
def test_a_run_is_launched_from_python_and_its_losses_are_plotted(cache_dir: Path, tmp_path: Path) -> None:
    plan = {**TINY, "regions": [{"train": [0, 1000], "pruning_ratio": 0.5}]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan))
    options = ("--set", "training.steps=6", "--run-dir", tmp_path / "run", "--plot", tmp_path / "losses.png")
    said = _run("launch_and_plot.py", tmp_path / "tiny.yaml", *options)
    assert said.count("ticket drawn at step") == 1
    assert np.asarray(Image.open(tmp_path / "losses.png")).std() > 0


@pytest.mark.slow
def test_a_folder_of_images_is_trained_on(cache_dir: Path, tmp_path: Path) -> None:
    save_images(tmp_path / "photos", [(24, 20)] * 8)
    little = ("--resolution", "8", "--steps", "4", "--batch-size", "4", "--run-dir", tmp_path / "run")
    said = _run("own_images.py", tmp_path / "photos", *little)
    assert said.count(": done") == 6
    assert Image.open(tmp_path / "run" / "samples" / "grid.png").size[0] > 8


def test_another_scheduler_draws_from_an_ensemble(tiny_plan: MakePlan, tmp_path: Path) -> None:
    finished_run(tmp_path / "run", tiny_plan())
    _run("other_scheduler.py", tmp_path / "run", "--steps", "3", "--out", tmp_path / "dpm.png")
    assert Image.open(tmp_path / "dpm.png").size == (4 * 8, 4 * 8)


def _ask(url: str, body: bytes | None, path: str = "/") -> tuple[int, bytes]:
    """The status and the body of the answer; POST unless there is no body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _answers(url: str) -> bool:
    try:
        return _ask(url, b"{}")[0] == 200
    except OSError:
        return False


def _ask_here(sampler: Any, *wanted: dict[str, int]) -> list[Any]:
    """The answers of a replica in this process to requests that come at once."""

    async def receive(body: bytes) -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def ask() -> list[Any]:
        bodies = [json.dumps(each).encode() for each in wanted]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        return list(await asyncio.gather(*(sampler(Request(scope, partial(receive, body))) for body in bodies)))

    return asyncio.run(ask())


def test_drawings_are_served_as_svg_and_who_comes_when_many_wait_is_told_so(
    tiny_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=22))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)
    finished_run(tmp_path, tiny_plan(*VECTOR))
    serve = runpy.run_path(str(EXAMPLES / "serve.py"))
    limits = serve["Limits"](most_images=4, most_steps=9, batch_size=4, most_waiting=6)
    sampler = serve["Sampler"](tmp_path, limits)
    few = samples_of(load_ensemble(tmp_path), 4, seed=7, steps=3, batch_size=4)
    four, too_many, two = _ask_here(sampler, *({"seed": 7, "steps": 3, "count": count} for count in (4, 3, 2)))
    assert (four.status_code, four.media_type, four.body.decode()) == (200, "image/svg+xml", svg_grid(few))
    assert (two.status_code, two.body.decode()) == (200, svg_grid(few[:2]))
    assert (too_many.status_code, too_many.headers["retry-after"]) == (503, "1")
    assert json.loads(too_many.body)["error"] == "4 samples are wanted already, and 3 more: come again"
    [again] = _ask_here(serve["Sampler"](tmp_path, limits), {"seed": 7, "steps": 3})
    assert again.body.decode() == svg_grid(few[:1])


@pytest.mark.slow
def test_an_ensemble_is_served_alike_to_whoever_asks_and_refuses_too_much(tiny_plan: MakePlan, tmp_path: Path) -> None:
    finished_run(tmp_path / "run", tiny_plan())
    few = samples_of(load_ensemble(tmp_path / "run"), 4, seed=7, steps=3, batch_size=4)
    address = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--port", str(port), "--batch-size", "4", "--most-images", "6", "--most-steps", "5"]
    in_background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # what is begun with & ignores SIGINT
    command = [*in_background, sys.executable, str(EXAMPLES / "serve.py"), str(tmp_path / "run"), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: _answers(address), "an answer", server)
        asked = [{"seed": 7, "count": 4, "steps": 3}, {"seed": 7, "steps": 3}, {"seed": 8, "count": 6, "steps": 2}] * 2
        with ThreadPoolExecutor(len(asked)) as clients:  # at once, so that batches are mixed
            answers = list(clients.map(lambda wanted: _ask(address, json.dumps(wanted).encode()), asked))
        assert [status for status, _ in answers] == [200] * len(asked)
        pictures = [np.asarray(Image.open(io.BytesIO(answer))) for _, answer in answers]
        for grid, first in (pictures[:2], pictures[3:5]):
            assert np.array_equal(grid, image_grid(few)[..., 0])
            assert np.array_equal(first, few[0, ..., 0])
        assert np.array_equal(pictures[2], pictures[5])
        for status, body, path, why in (
            (400, b'{"count": 7}', "/", "count: 7, expected at most 6"),
            (400, b'{"steps": 6}', "/", "steps: 6, expected at most 5"),
            (400, b'{"seed": -1, "count": "x", "size": 3}', "/", "seed: Input should be greater"),
            (400, b"seed=3", "/", "the body: Invalid JSON"),
            (413, b" " * 5000, "/", "the body: expected at most 1024 bytes"),
            (404, b"{}", "/images", "/images: expected /"),
            (405, None, "/", "GET: expected POST"),
        ):
            answer = _ask(address, body, path)
            assert answer[0] == status
            assert json.loads(answer[1])["error"].startswith(why)
        server.terminate()
        said, _ = server.communicate(timeout=300)  # Serve alone may take 30 s to end
        assert server.returncode == 0, said
    finally:
        server.kill()
        server.wait()
