"""The workers of one job on Ray: a single one is a plain actor, several are joined by a Ray trainer of their own.

The job itself knows nothing of ray. An actor has no process group, and none of the helpers that a trainer brings.
"""

import math
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ebdiff_orchestrator.cluster.executor import Request
from region_workers.storage.run_files import local_folder
from schemas.digest import digest
from schemas.job import WorkerJob
from schemas.manifest import RAY_FOLDER
from schemas.process import quick_imports

_NOTICE_S = 5.0


class RegionWorker:
    """A job's only worker."""

    def run(self, job: str) -> None:
        _complete(job, _DrainNotice())


def start_actor(request: Request) -> Any:
    """A worker with the request's share of a node; it never comes back by itself: the driver decides on retries."""
    actor = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_restarts=0, max_task_retries=0)(RegionWorker)
    return actor.remote()


def trainer_of(job: WorkerJob, request: Request, tell_controller: Callable[[Any], None]) -> Any:
    """A trainer under a name of its own: our checkpoints are the truth, so Ray's must never be resumed.

    `tell_controller` is given the actor that does all of its work, and with which all of it ends.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    resources = {"CPU": request.cpus} | ({"GPU": request.gpus} if request.gpus else {})
    return _trainer_class(tell_controller)(
        _work,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=request.processes, use_gpu=request.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(timeout_s=math.ceil(job.hang_limit_s)),
        run_config=RunConfig(
            name=f"{job.name.replace(' ', '-')}-{job.attempt}-{secrets.token_hex(4)}",
            storage_path=_ray_folder(job.run_dir),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # the driver decides on retries
        ),
    )


def _trainer_class(tell_controller: Callable[[Any], None]) -> Any:
    """TorchTrainer, whose `fit` keeps its controller to itself; as seen in Ray 2.60.0.

    A Ray that starts its controller in another way has none to tell, and cancels nothing here.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            from ray.train.v2._internal.constants import get_env_vars_to_propagate
            from ray.train.v2._internal.execution.controller import TrainController

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            environment = {"env_vars": get_env_vars_to_propagate()}
            controller_class = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env=environment)(
                TrainController
            )
            controller = controller_class.remote(**arguments)
            tell_controller(controller)
            try:
                ray.get(controller.run.remote())
            except ActorDiedError:
                _remove_placement_groups_of(controller)
                raise
            return ray.get(controller.get_result.remote())

    return Trainer


def _remove_placement_groups_of(controller: Any) -> None:
    """What a controller waited for when it was killed: Ray would keep it in its queue until the driver ends."""
    from ray import PlacementGroupID
    from ray._private.state import state  # Ray's public table of groups does not say whose each is
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    for entry in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(entry)
        if group.creator_actor_id == controller._actor_id.binary() and group.state != group.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _ray_folder(run_dir: str) -> str:
    """Where Ray Train keeps what nobody reads: in the run, or, if that is in an object store, on this machine."""
    folder = local_folder(run_dir)
    if folder is not None:
        return str(folder / RAY_FOLDER)
    return str(Path(tempfile.gettempdir(), f"ebdiff-ray-{digest(run_dir)[:16]}"))


def _work(config: dict[str, str]) -> None:
    """Runs on each of a trainer's workers; they ask for a notice at the log interval."""
    from ray.train import get_preemption_info

    _complete(config["job"], lambda: get_preemption_info() is not None)


def _complete(job: str, preemption_notice: Callable[[], bool]) -> None:
    """Run the job to its end, or to the checkpoint at which it is asked to stop."""
    with quick_imports():
        from region_workers.training.failures import StopRequestedError
        from region_workers.worker.run import run_job

    with suppress(StopRequestedError):
        run_job(WorkerJob.model_validate_json(job), preemption_notice)


class _DrainNotice:
    """Whether Ray drains this worker's node, which is about to be taken away; asked for every few seconds at most."""

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._asked_at = -math.inf

    def __call__(self) -> bool:
        from ray._private.state import state  # where Ray Train's own watcher asks

        if time.monotonic() - self._asked_at < _NOTICE_S:
            return False
        self._asked_at = time.monotonic()
        try:
            return self._node in state.get_draining_nodes()
        except RayError:  # no answer is no notice
            return False
