"""What an evaluation was asked to measure, and what is refused of it before any work."""

from dataclasses import dataclass
from pathlib import Path

from ebdiff_orchestrator.evaluation.extractors import choose_extractor, choose_packets
from ebdiff_orchestrator.evaluation.feature_measures import NEIGHBOURS
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ASSEMBLE
from schemas.errors import user_error
from schemas.evaluation import ExtractorChoice, SampledImages
from schemas.manifest import Evaluation
from schemas.plan import Plan

MEASURES = ("fid", "kid", "precision-recall", "wavelet")


@dataclass(frozen=True)
class Options:
    """What is to be measured; None stands for the plan's or the usual."""

    num_images: int
    measures: tuple[str, ...]
    seed: int
    steps: int | None
    guidance_scale: float | None
    batch_size: int | None
    extractor: str | None
    inception_weights: Path | None
    reference: Path | None
    reference_images: int | None
    keep_images: bool

    @property
    def of_features(self) -> tuple[str, ...]:
        """The measures that need the features of both sides, not just their mean and covariance."""
        return tuple(measure for measure in self.measures if measure in ("kid", "precision-recall"))


def holds_all(evaluation: Evaluation, measures: tuple[str, ...]) -> bool:
    """Whether the evaluation has a value of each of the measures; its distance it always has."""
    return not set(measures) - {"fid", "wavelet"} - set(held_by(evaluation))


def held_by(evaluation: Evaluation | None) -> tuple[str, ...]:
    if evaluation is None:
        return ()
    kid: tuple[str, ...] = () if evaluation.kid is None else ("kid",)
    return kid if evaluation.precision is None else (*kid, "precision-recall")


def chosen_extractor(options: Options, plan: Plan) -> ExtractorChoice:
    """The extractor that the measures need. UserError for options that exclude each other."""
    for measure in options.measures:
        if measure not in MEASURES:
            raise user_error("--measure", measure, ", ".join(MEASURES), "Change it.")
    if "wavelet" not in options.measures:
        return choose_extractor(options.extractor or "inception", options.inception_weights)
    if set(options.measures) != {"wavelet"}:
        asked = ", ".join(options.measures)
        raise user_error("--measure", asked, "wavelet by itself: it has no features", "Evaluate twice.")
    for name, value in (("--extractor", options.extractor), ("--inception-weights", options.inception_weights)):
        if value is not None:
            raise user_error(name, value, "none with --measure wavelet, which needs no network", "Leave it out.")
    return choose_packets(plan.data.raster.canvas_px if plan.data.raster else plan.data.resolution)


def sampled_images(directory: RunDirectory, plan: Plan, options: Options) -> SampledImages:
    """The options with the plan's defaults filled in. UserError for a value out of range."""
    total, how = plan.diffusion.num_train_timesteps, plan.sampling
    steps = how.steps if options.steps is None else options.steps
    guidance = how.guidance_scale if options.guidance_scale is None else options.guidance_scale
    batch_size = how.batch_size if options.batch_size is None else options.batch_size
    if options.num_images < 2:
        raise user_error("--num-images", options.num_images, "at least 2", "A covariance needs two images.")
    if not 1 <= steps <= total:
        raise user_error("--steps", steps, f"1 to {total}, the plan's timesteps", "Change it.")
    if batch_size < 1:
        raise user_error("--batch-size", batch_size, "at least 1", "Raise it.")
    if guidance < 0 or (guidance != 1 and plan.model.num_classes is None):
        expected = "1, since the model has no classes" if plan.model.num_classes is None else "0 or more"
        raise user_error("--guidance", guidance, expected, "Leave it out.")
    return SampledImages(
        ensemble=str(directory.path / ASSEMBLE),
        seed=options.seed,
        steps=steps,
        guidance_scale=guidance,
        batch_size=batch_size,
        keep_images=options.keep_images,
    )


def check_reference(options: Options, reference_images: int, has_images: bool) -> None:
    """Raise UserError if the reference cannot give what the measures need."""
    if options.of_features and not has_images:
        expected = f"images, of which --measure {options.of_features[0]} needs the features"
        raise user_error("--reference", options.reference, expected, "Give a folder, or leave it out.")
    fewest = NEIGHBOURS + 1
    if "precision-recall" in options.measures and min(options.num_images, reference_images) < fewest:
        name = "--num-images" if options.num_images < fewest else "--reference-images"
        value = min(options.num_images, reference_images)
        expected = f"at least {fewest} with --measure precision-recall: an image and {NEIGHBOURS} neighbours"
        raise user_error(name, value, expected, "Raise it.")
