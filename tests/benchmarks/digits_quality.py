"""How much the digits that runs drew look like digits: runs of one name but for `-sSEED` are one row.

    python tests/benchmarks/digits_quality.py studies/small/*-s? [--short] [--json FILE]

Of each run's own samples: the mean of an SVM's highest class probability, the fewest images of a class, and the Fréchet
distance to the real digits in their 20 largest principal components. The SVM learns from half of the real digits; the
other half is the first row. A distance grows as images get fewer: compare rows of equally many.
"""

import re
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
from bench import Report, arguments, benchmark, parsed
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from ebdiff_orchestrator.evaluation.statistics import Statistics, frechet_distance

Pixels = NDArray[np.float64]  # (images, 64), 0 to 16


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    options = parsed(parser)
    with benchmark("digits that look like digits", options) as (report, _):
        measure(report, options.runs)


def measure(report: Report, runs: list[Path]) -> None:
    """The real digits that were held out, then each row."""
    real, classes = load_digits(return_X_y=True)
    known, held_out, classes, _ = train_test_split(real, classes, test_size=0.5, random_state=0)
    svm = SVC(probability=True, random_state=0).fit(known, classes)
    components = PCA(20, random_state=0).fit(real)
    rows = defaultdict(list)
    for run in runs:
        rows[re.sub(r"-s\d+$", "", run.name)].append(samples_of(run))
    for row, drawn in {"real, held out": [held_out], **rows}.items():
        scores = [svm.predict_proba(images) for images in drawn]
        fewest = min(int(np.bincount(score.argmax(1), minlength=10).min()) for score in scores)
        add(report, f"{row}: top probability", [float(score.max(1).mean()) for score in scores])
        report.add(f"{row}: fewest of a class", fewest, "images")
        add(report, f"{row}: distance", [distance(components, known, images) for images in drawn])


def samples_of(run: Path) -> Pixels:
    """The images that the run drew at its end."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.stem.isdigit())
    return np.stack([np.asarray(Image.open(file), np.float64).ravel() for file in files]) / 255 * 16


def distance(components: PCA, first: Pixels, second: Pixels) -> float:
    """Between Gaussians fitted to the images' principal components."""
    points = [components.transform(images) for images in (first, second)]
    return frechet_distance(*(Statistics(each.mean(0), np.cov(each, rowvar=False), len(each)) for each in points))


def add(report: Report, name: str, values: list[float]) -> None:
    """The mean over seeds, and its deviation where there are several."""
    deviation = f"± {statistics.stdev(values):.3g} over {len(values)} seeds" if len(values) > 1 else ""
    report.add(name, statistics.mean(values), deviation)


if __name__ == "__main__":
    main()
