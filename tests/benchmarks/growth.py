"""How speed, memory and waiting grow with regions (1 to 16), parameters (2M to 437M) and images (10^3 to 10^6).

python tests/benchmarks/growth.py [--axis regions|size|images]... [--plot FILE.png] [--json FILE]

Every point runs in a process of its own (`growth_points.py`). The slope beside each curve is that of a straight line
through the points' logarithms: 1 is linear, 0 is flat.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import linear_regression

from bench import Report, arguments, benchmark, parsed

AXES = {
    "regions": (1, 2, 4, 8, 16),
    "size": (32, 64, 128, 256, 448),  # base channels: 2M to 437M parameters
    "images": (1_000, 10_000, 100_000, 1_000_000),
}
SHORT = {"size": (32,), "images": (300,)}
LABELS = {"regions": "regions", "size": "parameters (millions)", "images": "images"}
Points = list[dict[str, float]]


def point(axis: str, value: int) -> dict[str, float]:
    """One measured point, in a process of its own."""
    script = Path(__file__).with_name("growth_points.py")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(script), axis, str(value), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(", ".join(f"{name} {number:,.4g}" for name, number in found.items()), file=sys.stderr, flush=True)
    return found


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the straight line through (log x, log y) by least squares; 0 for one point."""
    if len(xs) < 2:
        return 0.0
    return linear_regression([math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]).slope


def against(axis: str, points: Points) -> list[float]:
    """The x of each point: parameters instead of base channels."""
    return [each["parameters_m" if axis == "size" else axis] for each in points]


def report_axis(report: Report, axis: str, points: Points) -> None:
    """A line for each curve and point, and its slope."""
    xs = against(axis, points)
    for name in points[0]:
        if name in (axis, "parameters_m"):
            continue
        for x, each in zip(xs, points, strict=True):
            report.add(f"{axis} {x:,.0f}: {name}", each[name])
        report.add(f"{axis}: slope of {name}", slope(xs, [each[name] for each in points]))


def plot(curves: dict[str, Points], file: Path) -> None:
    """A picture for each axis: every curve relative to its first point."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, len(curves), figsize=(6 * len(curves), 4.5), squeeze=False)
    for place, (axis, points) in zip(places[0], curves.items(), strict=True):
        xs = against(axis, points)
        for name in points[0]:
            if name not in (axis, "parameters_m"):
                place.loglog(xs, [each[name] / points[0][name] for each in points], marker="o", label=name)
        place.set_xlabel(LABELS[axis])
        place.set_ylabel("relative to the first point")
        place.grid(visible=True, which="major", alpha=0.3)
        place.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--axis", action="append", choices=list(AXES), help="repeatable; default: all")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves (needs matplotlib)")
    options = parsed(parser)
    values = SHORT if options.short else AXES
    with benchmark("growth", options) as (report, _):
        curves = {axis: [point(axis, value) for value in values[axis]] for axis in options.axis or values}
        for axis, points in curves.items():
            report_axis(report, axis, points)
        if options.plot:
            plot(curves, options.plot)


if __name__ == "__main__":
    main()
