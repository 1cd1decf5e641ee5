"""Serve a finished ensemble over HTTP: seeds in, pictures out; one replica a GPU, which draws what comes in together.

python examples/serve.py runs/digits [--port 8000] [--batch-size 4] [--most-images 16] [--most-steps 250]
curl -d '{"seed": 7, "count": 4, "steps": 50}' http://127.0.0.1:8000/ -o four.png

POST / takes JSON: "seed" (0), "count" (1) and "steps" (the ensemble's own). It answers one image as a PNG, several as
one PNG with a grid of them, and drawings as an SVG. Image i of a seed is the same whoever asks for what beside it. Who
comes when too much waits already is told so at once, by a 503.

Nobody is asked for a password: it listens on this machine alone unless --host says otherwise, and what lets others in
must ask them itself. Needs ray[serve].
"""

import argparse
import asyncio
import io
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ebdiff_orchestrator import load_ensemble
from ebdiff_orchestrator.cluster.connecting import connect
from ebdiff_orchestrator.ensemble.pictures import image_grid, svg_grid, to_pil
from ebdiff_orchestrator.ensemble.samples import sample_generator
from schemas.plan import WorkersPlan

MOST_BYTES = 1024  # of a request's body


class Wanted(BaseModel):
    """What a request asks for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    seed: int = Field(0, ge=0, lt=2**63)
    count: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)


class Sample(NamedTuple):
    """One image or drawing; its noise comes from its seed and its index alone."""

    seed: int
    index: int
    steps: int | None


class Limits(NamedTuple):
    """Of a request, how many samples are drawn at a time, and how many may wait for that or be drawn now."""

    most_images: int
    most_steps: int
    batch_size: int
    most_waiting: int


class RefusedError(Exception):
    """A request that is not answered, with the status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Sampler:
    """An ensemble on one device, behind HTTP."""

    def __init__(self, run: str, limits: Limits) -> None:
        from ray import serve

        @serve.batch(max_batch_size=limits.batch_size, batch_wait_timeout_s=0.02)
        async def drawn(wanted: list[Sample]) -> list[Any]:
            return await asyncio.to_thread(self._draw_all, wanted)

        self._pipeline = load_ensemble(run, device="cuda" if torch.cuda.is_available() else "cpu")
        self._limits, self._drawn, self._waiting = limits, drawn, 0

    async def __call__(self, request: Request) -> Response:
        try:
            wanted = await read_request(request, self._limits)
            return picture(await self._in_turn(wanted))
        except RefusedError as refused:
            again = {"Retry-After": "1"} if refused.status == 503 else None
            return JSONResponse({"error": str(refused)}, refused.status, again)

    async def _in_turn(self, wanted: Wanted) -> list[Any]:
        """Its samples; RefusedError if they would have to wait for too many others."""
        if self._waiting + wanted.count > self._limits.most_waiting:
            raise RefusedError(503, f"{self._waiting} samples are wanted already, and {wanted.count} more: come again")
        self._waiting += wanted.count
        try:
            samples = (self._drawn(Sample(wanted.seed, index, wanted.steps)) for index in range(wanted.count))
            return await asyncio.gather(*samples)
        finally:
            self._waiting -= wanted.count

    def _draw_all(self, wanted: list[Sample]) -> list[Any]:
        """What several requests want, in one batch for each number of steps."""
        drawn: dict[Sample, Any] = {}
        for steps in {sample.steps for sample in wanted}:
            alike = [sample for sample in dict.fromkeys(wanted) if sample.steps == steps]
            drawn |= zip(alike, self._draw(alike), strict=True)
        return [drawn[sample] for sample in wanted]

    def _draw(self, samples: list[Sample]) -> list[Any]:
        """Batches of one size give the same bits whatever else is in them: a small one is filled up."""
        filled = samples + samples[-1:] * (self._limits.batch_size - len(samples))
        classes = self._pipeline.num_classes
        labels = {} if classes is None else {"class_labels": [sample.index % classes for sample in filled]}
        drawn, *_ = self._pipeline(
            batch_size=len(filled),
            generator=[sample_generator(sample.seed, sample.index) for sample in filled],
            num_inference_steps=samples[0].steps,
            output_type=self._pipeline.sample_type,
            return_dict=False,
            show_progress=False,
            **labels,
        )
        return list(self._pipeline.finished(drawn))[: len(samples)]


async def read_request(request: Request, limits: Limits) -> Wanted:
    """What it asks for; RefusedError if that is not clear, or too much."""
    if request.url.path != "/":
        raise RefusedError(404, f"{request.url.path}: expected /")
    if request.method != "POST":
        raise RefusedError(405, f"{request.method}: expected POST")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise RefusedError(413, f"the body: expected at most {MOST_BYTES} bytes")
    try:
        wanted = Wanted.model_validate_json(body or b"{}")
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'the body'}: {fault['msg']}" for fault in error.errors())
        raise RefusedError(400, "; ".join(faults)) from None
    for name, value, most in (
        ("count", wanted.count, limits.most_images),
        ("steps", wanted.steps or 0, limits.most_steps),
    ):
        if value > most:
            raise RefusedError(400, f"{name}: {value}, expected at most {most}")
    return wanted


def picture(samples: list[Any]) -> Response:
    """An image, or a grid of several; of drawings an SVG."""
    if not isinstance(samples[0], np.ndarray):
        return Response(svg_grid(samples), media_type="image/svg+xml")
    file = io.BytesIO()
    to_pil(samples[0] if len(samples) == 1 else image_grid(np.stack(samples))).save(file, format="PNG")
    return Response(file.getvalue(), media_type="image/png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run, or an ensemble's folder, that every node can read")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="a Ray cluster's; default: RAY_ADDRESS, else a Ray of its own here")
    parser.add_argument("--batch-size", type=int, default=4, help="samples drawn at a time; fewer take as long (4)")
    parser.add_argument("--most-images", type=int, default=16, help="of one request (16)")
    parser.add_argument("--most-steps", type=int, default=250, help="of one request (250)")
    parser.add_argument("--most-waiting", type=int, default=64, help="samples wanted of a replica at a time (64)")
    options = parser.parse_args()

    steps = load_ensemble(options.run).scheduler.config.num_train_timesteps  # and what is wrong with it is said here
    most_waiting = max(options.most_waiting, options.most_images)  # else the largest request would never have its turn
    limits = Limits(options.most_images, min(options.most_steps, steps), options.batch_size, most_waiting)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGINT's own may be to ignore it, in the background
    with connect(WorkersPlan(), 1, options.address, say=print):
        import ray  # not before: it reads its environment then, which has been prepared for it
        from ray import serve

        gpus = int(ray.cluster_resources().get("GPU", 0))
        replicas, devices = max(1, gpus), {"num_cpus": 1, "num_gpus": min(gpus, 1)}
        queue = {"max_ongoing_requests": most_waiting + 16, "max_queued_requests": most_waiting}  # more: 503, by Serve
        sampler = serve.deployment(Sampler, num_replicas=replicas, ray_actor_options=devices, **queue)
        serve.start(http_options={"host": options.host, "port": options.port})
        try:
            serve.run(sampler.bind(str(options.run.resolve()), limits), name="ensemble")
            print(f"{replicas} replicas at http://{options.host}:{options.port}/ (Ctrl-C ends it)", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            serve.shutdown()


if __name__ == "__main__":
    main()
