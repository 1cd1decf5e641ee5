"""The values of an evaluation under their right names, each with its number of images: an FID is Inception's alone."""

from dataclasses import dataclass

from schemas.manifest import Evaluation

FULL_IMAGES = 50_000
USUAL_LEVEL = 4
COMPARES_RUNS = "compares runs of this tool with each other, and nothing with the literature"
# Of pytorch-fid's weights; the eight digits that it begins with stand in their file's name.
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_KID_NOTE = "kernel distance of Inception's features; unbiased, so that numbers of images may differ"
_PRECISION_NOTE = "of Inception's features, 3 neighbours (the paper takes VGG-16's); compare at equal numbers of images"
_WAVELET_NOTE = (
    "Frechet wavelet distance, Haar packets of level {}; compare at equal numbers of images of one size "
    "(the paper's are of 256 pixels, level 4)"
)


@dataclass(frozen=True)
class MeasuredValue:
    """One value of an evaluation, and what a reader must know of it.

    `short`: its name without the renderer's settings. `comparable_note`: with what it may be compared, "" if with all.
    """

    short: str
    value: float
    num_images: int
    comparable_note: str
    evaluation: Evaluation
    deviation: float | None = None
    higher_is_better: bool = False

    @property
    def name(self) -> str:
        """Of its column."""
        return self.short + _settings(self.evaluation)

    @property
    def label(self) -> str:
        """The name with the number of images."""
        return f"{self.short}-{thousands(self.num_images)}{_settings(self.evaluation)}"

    def text(self, decimals: int) -> str:
        """The value with as many digits as are told apart.

        An FID with so many decimals, a share with three; another value, which may be any size, with four digits.
        """
        if self.higher_is_better:
            return f"{self.value:.3f}"
        shown = f"{self.value:.{decimals}f}" if self.short == "FID" else f"{self.value:.4g}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.2g}"


def values_of(evaluation: Evaluation) -> tuple[MeasuredValue, ...]:
    """The Frechet distance first, then what else was measured of the same features."""
    extractor, count = evaluation.extractor, evaluation.feature_images
    first = {"inception": "FID", "wavelet": "FWD"}.get(extractor, f"FD-{extractor}")
    note = _distance_note(evaluation)
    found = [MeasuredValue(first, evaluation.distance, evaluation.num_images, note, evaluation)]
    if count is None:
        return tuple(found)
    if evaluation.kid is not None:
        name, note = ("KID", _KID_NOTE) if extractor == "inception" else (f"KID-{extractor}", COMPARES_RUNS)
        found.append(MeasuredValue(name, evaluation.kid, count, note, evaluation, evaluation.kid_deviation))
    note = _PRECISION_NOTE if extractor == "inception" else COMPARES_RUNS
    for name, share in (("precision", evaluation.precision), ("recall", evaluation.recall)):
        if share is not None:
            short = f"{name}-{extractor}"
            found.append(MeasuredValue(short, share, count, note, evaluation, higher_is_better=True))
    return tuple(found)


def label_of(evaluation: Evaluation) -> str:
    """The distance's name to print beside it: `FID-50k`, or `FID-1k (1,000 images; not comparable with FID-50k)`."""
    distance = values_of(evaluation)[0]
    named = distance.short == "FID" and distance.comparable_note
    return f"{distance.label} ({distance.comparable_note})" if named else distance.label


def thousands(count: int) -> str:
    """As in 50k, 2.5k, 64."""
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def _settings(evaluation: Evaluation) -> str:
    """What a name says too: another level than the paper's, and of drawings the renderer, as in `, 64 px, ...`."""
    level, how = evaluation.packet_level, evaluation.raster
    levels = "" if level in (None, USUAL_LEVEL) else f", level {level}"
    if how is None:
        return levels
    return f"{levels}, {how.canvas_px} px, line {how.line_width_px:g} px, margin {how.margin * 100:g}%"


def _distance_note(evaluation: Evaluation) -> str:
    count, notes = evaluation.num_images, []
    if evaluation.extractor == "wavelet":
        return _WAVELET_NOTE.format(evaluation.packet_level)
    if evaluation.extractor != "inception":
        return COMPARES_RUNS
    if count < FULL_IMAGES:
        notes.append(f"{count:,} {'drawings' if evaluation.raster else 'images'}; not comparable with FID-50k")
    if evaluation.inception_sha256 != OFFICIAL_SHA256:
        notes.append(f"Inception weights {evaluation.weights_sha256[:8]} are not pytorch-fid's: not a published FID")
    return "; ".join(notes)
