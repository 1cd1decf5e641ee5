"""A plan with all that is looked up about it, its dense start too, once: it is handed on, and nobody looks again."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from ebdiff_orchestrator.plans.load import with_absolute_paths
from ebdiff_orchestrator.plans.preview import PlanPreview, preview_plan
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.networks.drawing_gru import DrawingGRU
from region_workers.networks.pretrained import DenseFolder, find_dense
from region_workers.storage.places import cache_dir_of
from schemas.errors import as_in_yaml, plan_error
from schemas.manifest import DenseCost, DenseSource
from schemas.model import LatentModelPlan, VectorModelPlan
from schemas.plan import Plan
from schemas.stage_names import train_stage_name

_NOT_OF_THE_NETWORK = {"family", "pretrained", "dropout", "num_classes", "label_dropout"}


@dataclass(frozen=True)
class ResolvedPlan:
    """`plan` has absolute paths, and the arguments of its dense start; `dense` is that start, if it has one."""

    plan: Plan
    dense: DenseSource | None

    @cached_property
    def preview(self) -> PlanPreview:
        """The sizes of its networks. PlanError for a network that cannot be built, or a ratio that does not fit it."""
        return preview_plan(self.plan, self.dense)

    @property
    def cache_dir(self) -> Path:
        """Where decoded images and latents are kept."""
        return cache_dir_of(self.plan.workers.cache_dir)


def resolve(plan: Plan, directory: RunDirectory) -> ResolvedPlan:
    """Look up what the plan names. PlanError for a dense start that cannot be had, UserError for a damaged run.

    Once every ticket is drawn, what the run recorded of that start will do.
    """
    plan = with_absolute_paths(plan)
    known = directory.read() if directory.exists() else None
    drawn = known is not None and all(record.status == "done" for record in known.draws())
    if known is not None and known.dense is not None and known.plan.model == plan.model and drawn:
        return ResolvedPlan(plan, known.dense)
    return ResolvedPlan(*adopt_dense(plan))


def adopt_dense(plan: Plan) -> tuple[Plan, DenseSource | None]:
    """The plan with the arguments of its dense start in place of its own, and that start.

    Raises PlanError where there is none though the plan prunes a trained network, where it cannot be read, or where
    the plan states another value for one of its arguments.
    """
    if plan.model.pretrained is None:
        if plan.draw.method == "one-shot":
            raise plan_error(
                "model.pretrained",
                None,
                "a trained dense network, since draw.method=one-shot prunes one",
                "Give a dense run's directory or a diffusers folder: --set model.pretrained=runs/cifar10-dense.",
            )
        return plan, None
    dense = find_dense(plan.model.pretrained)
    source = DenseSource(
        path=str(dense.run or dense.folder),
        digest=dense.digest(),
        class_name=dense.class_name,
        arguments=dense.arguments,
        cost=_cost(dense),
    )
    return _with_arguments(plan, dense), source


def _with_arguments(plan: Plan, dense: DenseFolder) -> Plan:
    """Values that the plan's author wrote must be the network's; defaults give way to it.

    What a plan has no form for (a list of head counts, say) stays in the network's own config alone.
    """
    _check_kind(plan, dense)
    update: dict[str, Any] = {}
    arguments = dense.arguments
    if isinstance(plan.model, VectorModelPlan):
        arguments = {**arguments, "time_embed_dim": 2 * len(arguments["frequencies"])}
    for name, field in type(plan.model).model_fields.items():
        if name in _NOT_OF_THE_NETWORK or name not in arguments:
            continue
        try:
            form: Any = Annotated[field.annotation, field, *field.metadata]
            theirs = TypeAdapter(form).validate_python(arguments[name])
        except ValidationError:
            continue
        own = getattr(plan.model, name)
        if own != theirs and name in plan.model.model_fields_set:
            raise _disagreement(plan, f"model.{name}", own, theirs)
        update[name] = theirs
    if plan.data.drawings is not None:
        own, theirs = plan.data.drawings.coordinates, dense.arguments["coordinates"]
        if own != theirs:
            raise _disagreement(plan, "data.drawings.coordinates", own, theirs)
    else:
        _check_images(plan, dense)
        _check_classes(plan, dense)
    return plan.model_copy(update={"model": plan.model.model_copy(update=update)})


def _check_kind(plan: Plan, dense: DenseFolder) -> None:
    """A network of drawings for drawings, and one of images for images."""
    is_vector = isinstance(plan.model, VectorModelPlan)
    if (dense.class_name == DrawingGRU.__name__) != is_vector:
        expected = f"a {DrawingGRU.__name__ if is_vector else 'UNet'}, since model.family = {plan.model.family}"
        remedy = f"It is a {dense.class_name}: choose another network or family."
        raise plan_error("model.pretrained", plan.model.pretrained, expected, remedy)


def _check_classes(plan: Plan, dense: DenseFolder) -> None:
    """The network's table of classes ends with a row for `no class`; without one it would lose its last class."""
    rows = dense.arguments.get("num_context_classes") or dense.arguments.get("num_class_embeds")
    classes = None if rows is None else int(rows) - 1
    if plan.model.num_classes != classes:
        expected = f"{classes} and a last row for `no class`, by the {rows} rows of" if rows else "null, as in"
        remedy = "Set it so; a network without that row cannot be a dense start."
        raise plan_error("model.num_classes", plan.model.num_classes, f"{expected} model.pretrained", remedy)


def _check_images(plan: Plan, dense: DenseFolder) -> None:
    channels: int = plan.data.channels
    field, side = "data.channels", plan.data.resolution
    if isinstance(plan.model, LatentModelPlan):
        field, channels, side = "model.latent_channels", plan.model.latent_channels, side // plan.model.latent_downscale
    for argument in ("in_channels", "out_channels"):
        theirs = dense.arguments.get(argument, channels)
        if theirs != channels:
            raise _disagreement(plan, field, channels, theirs)
    size = dense.arguments.get("sample_size")
    if size not in (None, side, [side, side]):
        raise _disagreement(plan, "data.resolution", plan.data.resolution, f"a side of {size} for the network")


def _disagreement(plan: Plan, field: str, value: object, theirs: object) -> Exception:
    remedy = "Leave it out, or set it so." if field.startswith("model.") else "Set it so."
    return plan_error(field, value, f"{as_in_yaml(theirs)}, as in model.pretrained = {plan.model.pretrained}", remedy)


def _cost(dense: DenseFolder) -> DenseCost | None:
    """What the run that trained it took; None for a network of unknown history."""
    if dense.run is None:
        return None
    manifest = RunDirectory(dense.run).read()
    record, earlier = manifest.stage(train_stage_name(manifest.plan.regions[0])), manifest.start_cost()
    if earlier is None:
        return None
    training = manifest.training_usage()
    return DenseCost(
        steps=record.steps + earlier.steps,
        active_s=record.active_s + earlier.active_s,
        worker_hours=sum(held.worker_hours for held in training) + earlier.worker_hours,
        gpu_hours=sum(held.gpu_hours for held in training) + earlier.gpu_hours,
    )
